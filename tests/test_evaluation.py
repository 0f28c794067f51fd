"""Evaluation without a recipe: what is written, which models are meant, and the repeat."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck import api, recipe, store
from limbeck.errors import UserError, UserErrors
from limbeck.evaluation import again, packages, shortcut
from limbeck.evaluation.shortcut import Benchmark, Wishes
from limbeck.evaluation.subjects import Subject, subject, subjects
from limbeck.problems import protocol, public
from tests.serve import small

TINY = Subject("tiny", {"name": "gold"}, longest=512)
OTHER = Subject("other", {"name": "gold"})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sft" / "model"
    small.save_model(folder)
    return folder


def written(names: str, wishes: Wishes, *found: Subject) -> dict[str, Any]:
    benchmarks = [Benchmark.of(name) for name in names.split(",")]
    return shortcut.recipe(found or (TINY,), benchmarks, wishes)


# -- the recipe ---------------------------------------------------------------------------------


def test_a_benchmark_is_asked_by_its_protocol():
    stages = written("aime24", Wishes(), OTHER)["stages"]
    assert list(stages) == ["aime24", "aime24-other", "compare-aime24"]
    assert stages["aime24"] == {"stage": "collect", "source": {"name": "aime24"}, "num": 30}
    asked = stages["aime24-other"]
    assert (asked["num_samples"], asked["cons_at"], asked["pass_at"]) == (64, [64], [])
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (0.6, 0.95, 32_768)
    assert not asked["greedy"]
    assert recipe.load(written("aime24,math500", Wishes(), OTHER)).name == "evaluate-other"


def test_wishes_depart_from_it():
    asked = written("aime24", Wishes(num_samples=16, max_tokens=100))["stages"]["aime24-tiny"]
    assert (asked["num_samples"], asked["cons_at"], asked["max_tokens"]) == (16, [16], 100)
    stages = written("aime24", Wishes(num_samples=0, num_problems=3))["stages"]
    assert stages["aime24"]["num"] == 3 and stages["aime24-tiny"]["greedy"]
    assert stages["compare-aime24"]["metric"] == "greedy"


def test_models_and_ways_of_asking_are_rows_of_one_table(tmp_path):
    ways = Wishes(prompting=("direct", "zero_shot_cot"))
    compared = written("gsm8k", ways, TINY, OTHER)["stages"]["compare-gsm8k"]
    assert compared["scores"] == {
        "tiny, direct": "./gsm8k-tiny-direct/scores",
        "tiny, zero_shot_cot": "./gsm8k-tiny-zero_shot_cot/scores",
        "other, direct": "./gsm8k-other-direct/scores",
        "other, zero_shot_cot": "./gsm8k-other-zero_shot_cot/scores",
    }
    assert compared["pairs"] == [  # each differs in one thing
        ["tiny, zero_shot_cot", "tiny, direct"],
        ["other, zero_shot_cot", "other, direct"],
        ["other, direct", "tiny, direct"],
        ["other, zero_shot_cot", "tiny, zero_shot_cot"],
    ]
    third = Subject("third", {"name": "gold"})
    compared = written("gsm8k", Wishes(), TINY, OTHER, third)["stages"]["compare-gsm8k"]
    assert compared["pairs"] == [["other", "tiny"], ["third", "tiny"]]


def served(name: str, address: str) -> Subject:
    reached = {"name": "openai", "model": name, "base_url": f"http://{address}/v1"}
    return Subject(name, reached)


def test_a_server_has_a_folder_of_its_own():
    """A folder here, and another server, may well have a model of the same name."""
    models = TINY, served("tiny", "localhost:8000"), served("tiny", "[::1]:8000")
    names = [recipe.load(written("gsm8k", Wishes(), model)).name for model in models]
    assert names == ["evaluate-tiny", "evaluate-tiny-localhost-8000", "evaluate-tiny-1-8000"]


@pytest.mark.parametrize(
    ("package", "named", "told"),
    [
        ("langdetect", "ifeval,gsm8k", "--on ifeval: the package langdetect is not installed"),
        ("math_verify", "aime24,math500", "--on aime24, --on math500: the package math_verify"),
        ("datasets", "gsm8k,sst2", "--on gsm8k, --on sst2: the package datasets"),
        ("torch", "gsm8k", "engine local: the package torch is not installed"),
        ("openai", "gsm8k", "engine vllm, engine openai: the package openai"),
    ],
)
def test_packages_are_missed_before_anything_runs(package, named, told, monkeypatch):
    models = [Subject("a", {"name": name}) for name in ("local", "vllm", "openai")]
    models = [Subject(f"{m.name}{n}", m.engine) for n, m in enumerate(models)]
    assert written(named, Wishes(), *models)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(UserErrors) as caught:
        written(named, Wishes(), *models)
    (error,) = caught.value.errors
    assert str(error).startswith(told) and error.way_out.startswith("pip install 'limbeck[")


def test_the_hub_is_asked_again_in_silence(monkeypatch):
    """What came of it is told in a line of our own."""
    log = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(log, "level", logging.WARNING)
    public.read_table(path=None, dataset="google/IFEval")
    assert log.level == logging.ERROR


def test_a_name_on_the_hub_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert subject("org/base", None, None).longest is None  # the recipe names the package


def test_a_file_needs_no_hub(monkeypatch, tmp_path):
    store.write_text(tmp_path / "test.jsonl", "{}")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert not [*packages.missing(["gold"], {"gsm8k": str(tmp_path / "test.jsonl")})]
    (error,) = packages.missing(["gold"], {"ifeval": str(tmp_path / "test.jsonl")})
    assert error.what == "the package langdetect is not installed"


def test_every_benchmark_has_what_its_verifier_asks():
    asks = {"math": ["math_verify"], "ifeval": ["langdetect"]}
    folder = Path(protocol.__file__).parent
    for name in protocol.names():
        reader = "aime24" if name == "aime25" else name  # which it is read by
        verifiers = re.findall(r'verifier="(\w+)"', (folder / f"{reader}.py").read_text())
        wanted = [package for verifier in verifiers for package in asks.get(verifier, [])]
        assert packages.OF_VERDICTS.get(name, []) == wanted, name


def test_every_row_has_a_stage_of_its_own():
    """Names that differ in a point alone, and a way of asking that is named twice."""
    twins = Subject("v1.0", {"name": "gold"}), Subject("v1-0", {"name": "gold", "x": 1})
    stages = written("gsm8k", Wishes(prompting=("direct", "direct")), *twins)["stages"]
    scores = stages["compare-gsm8k"]["scores"]
    assert [*scores] == ["v1.0, direct", "v1-0, direct"] and len(stages) == 4
    engines = [stages[path.split("/")[1]]["engine"] for path in scores.values()]
    assert engines == [twin.engine for twin in twins]


def test_worked_examples_are_for_those_who_show_them():
    ways = Wishes(prompting=("direct", "few_shot_cot"), examples="lessons.jsonl")
    stages = written("gsm8k", ways)["stages"]
    assert stages["gsm8k-tiny-few_shot_cot"]["examples"] == "lessons.jsonl"
    assert "examples" not in stages["gsm8k-tiny-direct"]


def test_what_does_not_fit_is_cut_and_told():
    asked = written("math500", Wishes())["stages"]["math500-tiny"]
    assert asked["max_tokens"] == 512
    benchmarks = [Benchmark("math500"), Benchmark("gsm8k")]
    (line,) = shortcut.cuts([TINY, OTHER], benchmarks, Wishes())
    assert line.startswith("tiny has room for 512 tokens, not 32,768")
    assert not [*shortcut.cuts([TINY], benchmarks, Wishes(max_tokens=512))]


@pytest.mark.parametrize(
    ("names", "mistake"),
    [
        ("math5000", "is no benchmark; did you mean 'math500'"),
        ("math500=", "names no file"),
        ("math500=/none.jsonl", "there is no such file"),
    ],
)
def test_mistakes_in_names(names, mistake):
    with pytest.raises(UserError, match=mistake):
        Benchmark.of(names)


def test_a_benchmark_is_named_once():
    assert Benchmark.of(" math500").name == "math500"
    with pytest.raises(UserError, match="--on gsm8k: is named twice"):
        written("gsm8k,math500, gsm8k", Wishes())


def test_every_mistake_in_the_recipe_is_told():
    wishes = Wishes(prompting=("few_shot_cot", "zeroshot"))
    with pytest.raises(UserErrors) as told:
        recipe.load(written("math500", wishes))
    text = str(told.value)
    assert "no examples to show" in text and "no way of prompting is called 'zeroshot'" in text


# -- who is meant -------------------------------------------------------------------------------


def test_a_folder_a_stage_and_a_name_on_the_hub(model):
    of_stage, of_model = subject(str(model.parent), None, None), subject(str(model), None, None)
    assert of_stage == of_model == Subject("sft", {"name": "local", "model": str(model)}, 512)
    names = [each.name for each in subjects([str(model), str(model)])]
    assert names == ["sft 1", "sft 2"]


def test_a_server_is_told_from_a_folder_of_the_same_name(model):
    with serving({"id": "org/sft"}) as url:
        found = subjects([str(model), url, str(model)])
        alone = subjects([url])
    address = url.removeprefix("http://")
    assert [each.name for each in found] == ["sft 1", f"sft {address}", "sft 3"]
    assert [each.name for each in alone] == ["sft"] and alone[0].address == address
    name = written("gsm8k", Wishes(), *found)["name"]
    assert name == f"evaluate-sft-1-sft-{address.replace('.', '-').replace(':', '-')}-sft-3"


def test_here_is_a_name_too(model, monkeypatch):
    monkeypatch.chdir(model)
    assert subject(".", None, None).name == "sft"


@pytest.mark.parametrize(
    "told",
    ["[1]", "[" * 100_000, '{"text_config": [1]}', '{"max_position_embeddings": "512"}', "{}"],
)
def test_a_config_without_sense_is_left_to_the_plan(told, tmp_path):
    store.write_text(tmp_path / "config.json", told)
    assert subject(str(tmp_path), None, None).longest is None


@contextmanager
def serving(*models: Any, whole: str | None = None) -> Iterator[str]:
    """A server that says which models it has, or something else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = whole or json.dumps({"object": "list", "data": models})
            body = said.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_is_asked_what_it_serves():
    with serving({"id": "org/big", "object": "model", "max_model_len": 4096}) as url:
        found = subject(url, None, None)
    engine = {"name": "openai", "model": "org/big", "base_url": f"{url}/v1"}
    assert found == Subject("big", engine, 4096 - 1024)


def test_of_several_models_one_must_be_named():
    with serving({"id": "one", "object": "model"}, {"id": "two", "object": "model"}) as url:
        with pytest.raises(UserError, match=r"serves 2 models \(one, two\); say which"):
            subject(f"{url}/v1", None, None)
        assert subject(f"{url}/v1", "vllm", "two").engine["name"] == "vllm"


@pytest.mark.parametrize("said", ["[1]", "5", '"a page"', '{"data": ["a"]}', "[" * 100_000])
def test_a_server_that_says_no_sense(said):
    with serving(whole=said) as url, pytest.raises(UserError, match="what it serves"):
        subject(url, None, None)


def test_what_a_server_says_is_held_against_sense():
    with serving({"x": 1}, {"id": 5}, {"id": "big", "max_model_len": "much"}) as url:
        assert subject(url, None, None).longest is None


@pytest.mark.parametrize(
    ("place", "engine", "served", "mistake"),
    [
        ("runs/x", None, "big", "runs/x is no server"),
        ("runs/x/sft", None, None, "there is no such folder"),
        ("org/name", "openai", None, "is no server; give its address"),
        ("http://localhost:9", "local", None, "is a server"),
        ("http://localhost:9", None, None, "does not say what it serves"),
        ("http://[::1", None, None, "Invalid IPv6 URL; write it like"),
        ("http://user:secret@localhost:9", None, None, "take out user, key and query"),
    ],
)
def test_mistakes_in_places(place, engine, served, mistake):
    with pytest.raises(UserError, match=mistake):
        subject(place, engine, served)


# -- once more ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(model, tmp_path_factory) -> Path:
    """A run folder: a real model, four sampled and one greedy answer to each of 12 problems."""
    home = tmp_path_factory.mktemp("evaluated") / "run"
    tasks = {"chain_sum": {}, "leg_counting": {}}
    stages = {
        "collect": {"source": {"name": "reasoning_gym", "tasks": tasks}, "num": 12},
        "examined": {
            "stage": "evaluate",
            "engine": {"name": "local", "model": str(model)},
            "problems": {"sums": "./collect/problems"},
            "max_tokens": 40,
            "pass_at": [2],
            "cons_at": [4],
            "rewards": ["format"],
        },
    }
    machine = {"threads": 1, "device": "cpu"}
    limbeck.run({"machine": machine, "stages": stages}, run=home)
    return home


def manifest(home: Path) -> Path:
    return home / "examined" / "evaluation" / "manifest.json"


def test_again_is_identical(evaluated, tmp_path):
    repeated = again.again(manifest(evaluated), tmp_path / "again")
    assert repeated.changes == [] and repeated.surroundings == []
    assert repeated.num_numbers > 40
    assert "identical: all" in [*again.words(repeated)][-1]
    first, second = (store.read_json(manifest(run)) for run in (evaluated, tmp_path / "again"))
    assert first["answers"] == second["answers"]


def test_other_numbers_are_listed(evaluated, tmp_path):
    home = tmp_path / "run"
    shutil.copytree(evaluated, home)
    (home / "examined" / "stage.json").unlink()  # nobody vouches for what follows
    made = store.read_json(manifest(home))
    made["results"][0]["value"] = 2.0
    made["answers"]["greedy"] = "0" * 64
    made["versions"]["torch"] = "1.0"
    store.write_json(manifest(home), made)
    repeated = again.again(manifest(home), tmp_path / "again")
    assert len(repeated.changes) == 2
    assert repeated.changes[0].startswith("sums pass_at_1 value: was 2.0, is ")
    assert repeated.changes[1].startswith("texts of greedy: was 000")
    assert repeated.surroundings[0].startswith("torch: was 1.0, is ")


def test_problems_that_are_gone_are_collected_again(evaluated, tmp_path):
    alone = tmp_path / "sent" / "examined" / "evaluation"
    alone.mkdir(parents=True)
    shutil.copy(manifest(evaluated), alone)
    assert again.again(alone / "manifest.json", tmp_path / "again").changes == []


def test_another_model_or_other_problems_are_refused(evaluated, model, tmp_path):
    def asked_of(change: Callable[[Any], object], again_in: Path) -> str:
        made = store.read_json(manifest(evaluated))
        change(made)
        place = tmp_path / "sent" / "examined" / "evaluation" / "manifest.json"
        store.write_json(place, made)
        with pytest.raises(UserError) as told:
            again.again(place, again_in)
        assert not (again_in / "examined").exists()
        return str(told.value)

    other = tmp_path / "model"
    shutil.copytree(model, other)
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(f"{template} ")
    told = asked_of(
        lambda made: made["config"]["engine"].update(model=str(other)), tmp_path / "one"
    )
    assert told.startswith("engine.model: chat template: not as the manifest has it")
    told = asked_of(
        lambda made: made["config"]["engine"].update(model="nobody/nothing"), tmp_path / "three"
    )
    assert told.startswith("engine.model: nobody/nothing: is not on this machine; mend the path")
    told = asked_of(
        lambda made: made["inputs"]["problems.sums"]["source"].update(num=11), tmp_path / "two"
    )
    assert told.startswith("problems.sums: number, content: not as the manifest has it")


@pytest.mark.parametrize(
    ("key", "value", "mistake"),
    [
        ("stage", 3, "stage: should be a valid string"),
        ("results", None, "results: should be a valid list"),
        ("config", {"engine": "local"}, "config: engine.model: is required"),
        ("config", {"new_knob": 1}, "config: new_knob: unknown key"),
        ("inputs", {}, "is not there any more"),
    ],
)
def test_a_manifest_of_another_version(key, value, mistake, evaluated, tmp_path):
    """And not three folders deep."""
    made = store.read_json(manifest(evaluated))
    store.write_json(tmp_path / "manifest.json", made | {key: value})
    with pytest.raises((UserError, UserErrors), match=mistake):
        again.again(tmp_path / "manifest.json")


def test_what_is_no_manifest(evaluated, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        again.again(tmp_path / "none.json")
    with pytest.raises(UserError, match="is no manifest of an evaluation"):
        again.again(evaluated / "recipe.json")
    store.write_json(tmp_path / "manifest.json", {"kind": "limbeck evaluation"})
    with pytest.raises(UserErrors, match=r"manifest.json: stage: is required"):
        again.again(tmp_path / "manifest.json")
    text = manifest(evaluated).read_text()
    try:
        manifest(evaluated).write_text(text.replace('"value": 0', '"value": 1', 1) + " ")
        with pytest.raises(UserError, match="changed on disk"):
            again.again(manifest(evaluated))
    finally:
        manifest(evaluated).write_text(text)


def test_from_python(model, tmp_path):
    rows = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(5)]
    store.write_text(tmp_path / "test.jsonl", "\n".join(map(json.dumps, rows)))
    wishes = Wishes(num_samples=2, max_tokens=8, prompting=("direct", "zero_shot_cot"))
    on = f"gsm8k={tmp_path / 'test.jsonl'}"
    run = api.evaluate([str(model)], on, wishes, run=tmp_path / "run")
    assert {row["name"] for row in run.results()} == {"sft, direct", "sft, zero_shot_cot"}
    assert len(run.compared()["tests"]) == 1
    told = shortcut.text(run, [Benchmark.of(on)])
    assert "gsm8k: where its numbers can differ from others'" in told and "truncated" in told
    told = shortcut.text(run, [Benchmark.of(on)], wishes.prompting)
    assert "gsm8k, asked by its own prompt (--prompting asks otherwise): where its" in told
    assert shortcut.manifest(run) == str(tmp_path / "run" / "*" / "evaluation" / "manifest.json")
