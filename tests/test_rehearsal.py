"""What a plan for this machine is made of: stages done small, and reckoned up."""

import json
from math import nan
from types import SimpleNamespace

import pytest

from limbeck import api, store
from limbeck.estimates import measured, small, text
from limbeck.estimates.measured import Rehearsed, Series, Stage
from limbeck.estimates.small import TINY, USUAL
from limbeck.train.config import LessonsConfig, TrainingConfig
from limbeck.types import Problem, Request, Sampling, Trace

MODEL = {"stage": "create", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 300}
RECIPE = {
    "name": "tiny",
    "machine": {"threads": 1},
    "stages": {
        "collect": {
            "source": {"name": "reasoning_gym", "tasks": {"chain_sum": {"max_terms": 3}}},
            "num": 1200,
            "num_heldout": 8,
            "heldout_share": 0.1,
        },
        "sample": {"problems": "./collect/problems", "engine": "worked"},
        "verify": {"problems": "./collect/problems", "traces": "./sample/traces"},
        "curate": {
            "problems": "./collect/problems",
            "traces": "./sample/traces",
            "verdicts": "./verify/verdicts",
            "keep": ["correct"],
        },
        "fresh": {**MODEL, "texts": "./curate/dataset"},
        "sft": {
            "model": "./fresh/model",
            "data": "./curate/dataset",
            "num_tokens": 300_000,
            "batch_size": 16,
            "lr": 3e-3,
        },
        "answers": {
            "stage": "sample",
            "problems": "./collect/heldout",
            "engine": {"name": "local", "model": "./sft/model"},
            "num_samples": 2,
            "max_tokens": 400,
        },
        "teacher": {
            "stage": "sample",
            "problems": "./collect/problems",
            "engine": {"name": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"},
        },
    },
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "cache", lambda: tmp_path / "cache")


def stage(found, name):
    return next(each for each in found.stages if each.step.stage.name == name)


def test_two_takes_make_a_line():
    # 10 rows take 3 s, 110 take 8: 0.05 s a row and 2.5 s at any rate; the first time 4 s more
    series = Series(4.0, (10, 3.0), (110, 8.0))
    assert series.at(110) == pytest.approx(4 + 8)
    assert series.at(1000) == pytest.approx(4 + 2.5 + 50)
    assert series.at(1000, rounds=3) == pytest.approx(4 + 7.5 + 50)
    assert Series(0, (10, 3.0), (10, 8.0)).at(99) == 8, "of one size nothing grows"
    assert Series(0, (10, 3.0), (20, 2.9)).at(1e6) == pytest.approx(2.9), "nor downwards"
    assert Series(1.0, (nan, 3.0), (nan, 4.0)).at(nan) == 5, "what nobody counts"


def training(kind, **fields):
    return kind.model_construct(**{name: f.get_default(call_default_factory=True)
                                   for name, f in kind.model_fields.items()} | fields)  # fmt: skip


def test_a_training_is_cut_to_a_few_steps():
    config = training(LessonsConfig, num_tokens=10**9, batch_size=10)
    # 6 x 1e6 x 50 = 3e8 FLOPs an example: 2e10 are 66.7 of them, a third of 200 rows
    cut = small.lessons(config, 200, 50, 1e6, USUAL)
    assert cut["num_epochs"] == pytest.approx(2e10 / 3e8 / 200)
    assert cut["num_tokens"] is None
    assert small.lessons(config, 200, 50, 1e6, TINY)["num_epochs"] == 10 / 200, "one step"
    large = small.lessons(config, 200, 50, 1e9, USUAL)
    assert large["num_epochs"] == 3 * 10 / 200, "three steps at least"
    assert small.lessons(config, 200, 50, 1e3, USUAL)["num_epochs"] == 80 * 10 / 200, "80 at most"


@pytest.mark.parametrize("budget", [{"num_tokens": 3000}, {"num_epochs": 0.3}, {"num_flops": 1e10}])
def test_a_short_training_is_rehearsed_whole(budget):
    config = training(LessonsConfig, batch_size=10, **budget)
    assert small.lessons(config, 200, 50, 1e6, USUAL) == {"validation": None}


def test_rounds_are_as_long_as_what_was_learned():
    config = training(TrainingConfig, num_tokens=10**9)
    config = config.model_copy(update={"max_tokens": 500, "steps_per_round": 16})
    assert small.rounds(config, 30, USUAL)["max_tokens"] == 30
    assert small.rounds(config, 900, USUAL)["max_tokens"] == 500


def test_a_stand_in_says_what_will_have_been_learned():
    from limbeck.estimates.stand_in import StandIn

    asked = []

    class Engine:
        name, num_parameters, stops = "local", 7, [1]

        def tokenizer(self, text):
            return SimpleNamespace(input_ids=text.split())

        def generate(self, requests, sampling):
            asked.append(sampling.max_tokens)
            for request in requests:
                trace = Trace(request.id, request.problem.id, request.index, "x", "length", "local")
                yield trace

    problem = Problem("p", (), "42", "exact")
    requests = [Request(str(i), problem, i, i) for i in range(3)]
    engine = StandIn(Engine(), ["<think>one two</think>3", "four five six seven"])
    texts = [trace.text for trace in engine.generate(requests, Sampling(max_tokens=900))]
    assert texts == ["<think>one two</think>42", "42", "<think>one two</think>42"]
    assert asked == [4], "the mean of 2 and 4 words, and an end"
    assert engine.num_parameters == 7


def test_a_recipe_is_rehearsed_and_kept(cache, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("openai")
    found = api.estimate(RECIPE, run=tmp_path / "run")
    sources = {each.step.stage.name: each.source for each in found.stages}
    assert sources.pop("teacher") == "assumed"
    assert set(sources.values()) == {"measured"}, found.here.left_out
    assert "openai" in found.here.left_out["teacher"]
    for each in found.stages[:-1]:
        assert 0 < each.cpu_seconds < 600
        assert 100e6 < each.memory < 10e9
    # 16 answers, as long as worked solutions are, far from the 400 tokens that they might have
    answers = stage(found, "answers").work
    assert answers.rows == 16
    assert 5 * 16 < answers.tokens < 60 * 16
    # the training is cut to a small part of its 300,000 tokens
    sft = stage(found, "sft")
    (takes,) = [found.here.stages["sft"].takes]
    assert sft.work.tokens == 300_000
    assert sft.cpu_seconds > 1.5 * takes["usual"]["cpu"]
    monkeypatch.setattr(measured, "_make", None)  # whoever rehearses again fails
    again = api.estimate(RECIPE, run=tmp_path / "run")
    assert again.summary() == found.summary()
    json.dumps(found.summary(), allow_nan=False)


def test_what_makes_models_smaller_is_rehearsed(cache, tmp_path):
    pytest.importorskip("torch")
    told = {"calibration": "./curate/dataset"}
    asked = {"stage": "evaluate", "problems": {"heldout": "./collect/heldout"}, "max_tokens": 64}
    small = {
        "half": {"stage": "prune", "model": "./sft/model", "method": "wanda", "sparsity": 0.5},
        "int8": {"stage": "quantize", "model": "./half/model", "method": "gptq", "weights": "int8"},
    }
    engine = {"name": "local"}
    stages = {
        name: stage
        for name, stage in RECIPE["stages"].items()
        if name not in ("answers", "teacher")
    }
    stages |= {name: stage | told for name, stage in small.items()}
    stages |= {f"eval_{name}": {**asked, "engine": {**engine, "model": f"./{name}/model"}}
               for name in ("sft", "int8")}  # fmt: skip
    stages["gate"] = {
        "model": "./sft/model",
        "before": "./eval_sft/scores",
        "trials": {"int8": {"model": "./int8/model", "scores": "./eval_int8/scores"}},
        "otherwise": "stop",
    }
    stages["eval_gate"] = {**asked, "engine": {**engine, "model": "./gate/model"}}
    found = api.estimate({**RECIPE, "stages": stages}, run=tmp_path / "run")
    assert {each.source for each in found.stages} == {"measured"}, found.here.left_out
    half, int8 = stage(found, "half"), stage(found, "int8")
    assert half.work.tokens == int8.work.tokens == 128 * half.work.tokens / half.work.rows
    assert 0 < half.cpu_seconds < 60
    assert 0 < int8.cpu_seconds < 60
    assert stage(found, "eval_gate").work.shape.bits == 8


def test_what_was_left_out_first_is_the_reason_of_all_behind_it():
    said = {
        "collect": "its source math is not on this machine",
        "sample": "./collect/problems was not rehearsed",
        "sft": "./sample/traces was not rehearsed",
        "other": "./elsewhere/model was not rehearsed",
    }
    found = {stage: measured._first_reason(stage, said) for stage in said}
    behind = "collect was not, as its source math is not on this machine"
    assert found == {**said, "sample": behind, "sft": behind}


def test_notes_of_many_stages_are_told_once():
    def noted(name, *notes):
        return SimpleNamespace(step=SimpleNamespace(stage=SimpleNamespace(name=name)), notes=notes)

    stages = [noted("a", "x"), noted("b", "x", "y"), noted("c", "x"), noted("d", "y")]
    told = list(text._notes(SimpleNamespace(stages=stages)))
    assert told == ["a and 2 others: x", "b, d: y"]


def test_rows_of_another_stage_are_a_source_of_this_machine():
    from limbeck.estimates import rehearsal

    def asks(name, **knobs):
        return SimpleNamespace(source=SimpleNamespace(name=name, knobs=knobs))

    rehearsal._refuse_foreign(asks("table", problems="./collect/problems"))
    rehearsal._refuse_foreign(asks("gsm8k", path="rows.jsonl"))
    with pytest.raises(rehearsal.LeftOut, match="gsm8k is not on this machine"):
        rehearsal._refuse_foreign(asks("gsm8k"))


def test_what_is_done_the_ledger_tells(cache, tmp_path, monkeypatch):
    stages = {"collect": {**RECIPE["stages"]["collect"], "num": 20}}
    recipe = {**RECIPE, "stages": stages}
    api.run(recipe, run=tmp_path / "run")
    monkeypatch.setattr(measured, "_make", None)
    found = api.estimate(recipe, run=tmp_path / "run")
    (done,) = found.stages
    rows = store.read_jsonl(tmp_path / "run" / "collect" / "ledger.jsonl")
    assert done.source == "ledger"
    assert done.cpu_seconds == pytest.approx(sum(row["cpu_seconds"] for row in rows))
    assert done.memory == max(row["peak_memory_mib"] for row in rows) * 2**20
    assert found.assumptions() == ""
    assert len(text.table(found).splitlines()) == 2, "no sums and no assumptions"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_words_are_those_of_the_times_that_are_told(monkeypatch, threads):
    takes = {"usual": {"cpu": 2.0, "wall": 5.0, "read": {}, "changed": {}}}
    here = Rehearsed({"collect": Stage(takes, 100.0, None, {})}, {}, 50.0, threads, 3.0)
    monkeypatch.setattr(measured, "rehearse", lambda *_: here)
    recipe = {"stages": {"collect": RECIPE["stages"]["collect"]}}
    found = api.estimate(recipe, run="nowhere")
    is_alone = threads == 1
    assert found.stages[0].seconds == (2.0 if is_alone else 5.0)
    assert ("times are CPU-seconds" in found.assumptions()) == is_alone
    assert ("CPU-seconds are in --json" in found.assumptions()) != is_alone


def test_what_is_too_large_for_this_machine_is_refused(monkeypatch):
    here = Rehearsed({}, {"sft": "its model is large"}, 50.0, 2, 3.0)
    monkeypatch.setattr(measured, "rehearse", lambda *_: here)
    recipe = {
        "stages": {
            "collect": {"num": 10, "source": {"name": "reasoning_gym", "tasks": {"gcd": {}}}},
            "grpo": {
                "model": "meta-llama/Llama-3.1-8B",
                "problems": "./collect/problems",
                "num_steps": 1,
                "gradient_checkpointing": True,
            },
        }
    }
    (refusal,) = api.estimate(recipe, run="nowhere", machine="local").refusals()
    assert refusal.where == "grpo"
    assert refusal.what.endswith("GB of this machine")
    assert "would fit" in refusal.way_out or "smaller" in refusal.way_out
    assert not api.estimate(recipe, run="nowhere", machine="64xH200").refusals()


def test_gpus_that_are_here_are_reckoned_with(monkeypatch):
    here = Rehearsed(gpu="NVIDIA H100 80GB HBM3", num_gpus=4)
    monkeypatch.setattr(measured, "rehearse", lambda *_: here)
    found = api.estimate(RECIPE, run="nowhere")
    assert (found.device.name, found.machine.devices) == ("H100", 4)
    assert {each.source for each in found.stages} == {"assumed"}


def test_without_torch_nothing_is_measured(cache, monkeypatch):
    monkeypatch.setattr(measured, "find_spec", lambda name: None)
    found = api.estimate(RECIPE, run="nowhere")
    assert found.here is None
    assert found.assumptions().startswith("no device is named")
