"""A report's opening words follow from what the stages of its run were, and say what they lost."""

from __future__ import annotations

import re

import pytest

from limbeck import store, tables
from limbeck.report import Report, headline, intro, render
from limbeck.report.words import LEARNED
from limbeck.reporting import compression, opening
from limbeck.runs import Run
from limbeck.types import Trace

# -- how models learned, by the stages of a recipe ----------------------------------------------


def data(name: str, engine: dict[str, str] | str) -> dict[str, dict[str, object]]:
    """Answers of an engine, checked and kept in the dataset of a stage of this name."""
    traces = {"problems": "./p/problems", "traces": f"./{name}_s/traces"}
    return {
        f"{name}_s": {"stage": "sample", "problems": "./p/problems", "engine": engine},
        f"{name}_v": {"stage": "verify", **traces},
        name: {"stage": "curate", **traces, "verdicts": f"./{name}_v/verdicts"},
    }


def sft(model: str, dataset: str) -> dict[str, str]:
    return {"stage": "sft", "model": model, "data": dataset}


GOLD = data("course", {"name": "gold"}) | {"base": sft("./newborn/model", "./course/dataset")}
OWN = data("own", {"name": "local", "model": "./base/model"})
TAUGHT = GOLD | OWN | {"student": sft("./start/model", "./own/dataset")}
PRUNED = GOLD | {
    "half": {"stage": "prune", "model": "./base/model", "method": "wanda", "sparsity": 0.5},
    "again": {"stage": "distill", "model": "./half/model", "data": "./own/dataset"},
    **OWN,
}


def run_of(folder, stages, summaries=None) -> Run:
    """A run of these stages, all finished; what they wrote is there already."""
    store.write_sealed(folder / "recipe.json", {"name": "r", "title": "r", "stages": stages})
    for name in stages:
        (folder / name).mkdir(exist_ok=True)
        about = {"finished": "", "summary": (summaries or {}).get(name, {})}
        files = store.hash_tree(folder / name)
        store.write_sealed(folder / name / "stage.json", {**about, "files": files})
    return Run(folder)


@pytest.mark.parametrize(
    ("stages", "learned"),
    [
        (GOLD, "answers"),
        (TAUGHT, "teacher"),
        (PRUNED, "answers"),  # what was pruned is recovered, and not distilled from a teacher
        (GOLD | OWN | {"again": sft("./base/model", "./own/dataset")}, "itself"),
        ({"base": sft("a/b", "c/d")}, "texts"),
        (GOLD | {"kd": {"stage": "distill", "model": "./x/model", "data": "c/d"}}, "distribution"),
        (TAUGHT | {"rl": {"stage": "grpo", "model": "./student/model"}}, "rewards"),
        ({"p": {"stage": "collect"}}, ""),
    ],
)
def test_how_models_learned_follows_from_the_stages(tmp_path, stages, learned):
    run = run_of(tmp_path, stages)
    assert opening.learned(run, compression.compression(run)) == learned


def test_who_wrote_what_was_curated_goes_by_name(tmp_path):
    stages = TAUGHT | data("far", {"name": "openai", "model": "deepseek-r1"})
    run = run_of(tmp_path, stages)
    assert opening.authors(run, "own") == ["base"]
    assert opening.authors(run, "far") == ["deepseek-r1"]
    funnel = {"stage": "own", "authors": ["base"], "sampled": 240, "kept": 200, "dropped": {}}
    page = render(Report(name="r", title="t", funnel=[funnel]))
    assert "answers written by base" in page and "teacher" not in page


def write(folder, texts) -> None:
    about = {"problem_id": "p", "model": "m", "finish": "stop"}
    rows = [
        Trace(id=f"t{i}", index=i, text=text, prompt_tokens=1, completion_tokens=1, **about)
        for i, text in enumerate(texts)
    ]
    tables.write_part(folder, tables.to_table("traces", rows))


@pytest.mark.parametrize(
    ("texts", "thinks"),
    [
        (["<think>1 and 1</think>2"] * 3, True),
        (["positive", "negative", "positive"], False),
        (["<think>\n</think>2"] * 3, False),
        (["<think> of nothing", "<think>a</think>", "b"], False),  # by chance, once
    ],
)
def test_whether_models_think_is_read_off_their_answers(tmp_path, texts, thinks):
    write(tmp_path / "eval" / "greedy", texts)
    run = run_of(tmp_path, {"eval": {"stage": "evaluate", "problems": {}, "engine": "x"}})
    assert opening.thinks(run) is thinks


# -- in words -----------------------------------------------------------------------------------


def score(value: float) -> dict[str, object]:
    ends = {"value": value, "low": value - 0.05, "high": value + 0.05}
    return {"split": "heldout", "metric": "greedy", **ends}


def model(name, made_of="", verb="", *, value=None, num_bytes=None, sparsity=None, called=None):
    row = {"name": name, "called": called, "verb": verb, "how": verb, "made_of": made_of}
    sizes = {"num_bytes": num_bytes, "num_parameters": None, "sparsity": sparsity}
    return row | sizes | (score(value) if value else {"value": None, "metric": None})


FAMILY = [
    model("base", value=0.81, num_bytes=400, called="fp32"),
    model("half", "base", "prune", value=0.79, sparsity=0.5, num_bytes=400),
    model("half_again", "half", "distill", value=0.8, sparsity=0.5, num_bytes=400),
    model("most", "base", "prune", value=0.51, sparsity=0.7, num_bytes=400),
    model("int4", "base", "quantize", value=0.78, num_bytes=100),
]


def test_only_who_was_taught_to_reason_is_said_to_have_been():
    told = intro("teacher", True)
    assert "reasoning" in told and "DeepSeek-R1" in told and "the student reasons now" in told
    for learned, thinks in LEARNED:
        if not thinks:
            told = intro(learned, thinks, FAMILY) + intro(learned, thinks)
            assert not re.search("reason|DeepSeek", told), learned
    assert "teacher" not in intro("answers", False) + intro("", False)


def test_what_was_made_smaller_is_named_step_by_step():
    told = intro("answers", False, FAMILY, gated=True)
    assert "Then models were pruned, trained again and quantized. A smaller one went on" in told
    assert told.endswith("how much smaller it became, what that lost, and what all of it cost.")
    assert intro("", False, FAMILY[:2]).count("Models were pruned. This page") == 1
    assert "smaller" not in intro("answers", False, [model("base")])


TEST = {"a": "half", "b": "fp32", "split": "heldout", "metric": "greedy", "p": 0.4,
        "difference": -0.02, "low": -0.05, "high": 0.01}  # fmt: skip


def test_the_headline_has_by_how_much_and_what_it_lost():
    told = headline([], [TEST], FAMILY)
    assert told == (
        "`fp32` solves 81.0 % (76.0–86.0) of held-out problems; pruned (50 to 70 % zeros or gone),"
        " 51.0 % (`most`) to 79.0 % (`half`); trained again, 80.0 % (`half_again`);"
        " quantized (75 % fewer bytes), 78.0 % (`int4`)."
    )


def test_a_test_of_other_models_keeps_its_place_before_it():
    rows = [{"name": name, **score(0.7)} for name in ("half", "other")]
    told = headline(rows, [{**TEST, "b": "other"}], FAMILY)
    assert told.startswith("`half` solves 70 %") and "; quantized (75 % fewer bytes)" in told
    assert headline(rows, [], FAMILY[:1]) == headline(rows, [])  # nothing was made of it


GATE = {"stage": "gate", "model": "int4", "before": "base", "max_drop": 0.05, "chosen": True}
GATE |= {"test": {"difference": -0.008, "low": -0.022, "high": 0.005}}


def test_the_headline_tells_what_gates_let_through():
    dropped = {**GATE, "model": "most", "chosen": False}
    told = headline([], [TEST], FAMILY, [dropped, GATE])
    assert told == (
        "Made smaller: `int4` has 75 % fewer bytes than `base`, at -0.8 points (-2.2 to +0.5)."
    )
    zeros = headline([], [TEST], FAMILY, [{**GATE, "model": "half"}])
    assert "`half` with 50 % zeros in place of `base`, at" in zeros
    none = headline([], [TEST], FAMILY, [dropped])
    assert none == (
        "Made smaller: of `base` nothing, as nothing was shown to lose no more than 5.0 points."
    )


def test_headings_speak_of_reasoning_only_where_there_is_any():
    rows = [{"name": "a", "domain": domain, **score(0.7)} for domain in ("x", "y")]
    for thinks, word in ((True, "reasons"), (False, "answers")):
        page = render(Report(name="r", title="t", thinks=thinks, results=rows[:1], families=rows))
        assert f"How well it {word}<" in page and f"Where it {word} well<" in page
    assert "reason" not in re.sub("(?s)<style>.*?</style>", "", page)


def test_a_run_tells_its_own_opening(tmp_path):
    evaluation = {"stage": "evaluate", "problems": {"heldout": "./p/problems"}}
    stages = PRUNED | {
        f"eval_{name}": {**evaluation, "engine": {"name": "local", "model": f"./{name}/model"}}
        for name in ("base", "half", "again")
    }
    about = {"num_problems": 9, "num_samples": 1, "tokens_per_answer": 2.0, "cost": 1.0}
    summaries = {
        f"eval_{name}": {"num_parameters": 100, "results": [{**score(value), **about}]}
        for name, value in (("base", 0.8), ("half", 0.5), ("again", 0.7))
    }
    summaries |= {"half": {"sparsity": 0.5}}
    for name in ("own", "course"):
        summaries[name] = {"sampled": 4, "kept": 4, "dropped": {}, "funnel": []}
    for name in ("own_v", "course_v"):
        summaries[name] = {"reasons": {"correct": 4}}
    run = run_of(tmp_path, stages, summaries)
    smaller = compression.compression(run)
    told = headline(run.results(), [], smaller) + intro(
        opening.learned(run, smaller), opening.thinks(run), smaller
    )
    assert "pruned (50 % zeros or gone), 50.0 % (`eval_half`); trained again, 70.0 %" in told
    assert "A model learned from problems and their known answers. Then models were" in told
    assert "teacher" not in told and "reason" not in told
