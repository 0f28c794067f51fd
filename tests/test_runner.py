"""Skip, resume, extend, refuse: what happens to a run folder when its recipe comes again."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import limbeck
from limbeck import runner, store, tables
from limbeck.errors import UserError, UserErrors

pytest.importorskip("reasoning_gym")

RECIPE = {
    "name": "small",
    "stages": {
        "collect": {
            "num": 6,
            "num_heldout": 3,
            "heldout_share": 0.3,
            "source": {"name": "reasoning_gym", "tasks": {"chain_sum": {}, "leg_counting": {}}},
        },
        "sample": {"problems": "./collect/problems", "engine": "worked", "num_samples": 2},
        "verify": {"problems": "./collect/problems", "traces": "./sample/traces"},
        "curate": {
            "problems": "./collect/problems",
            "traces": "./sample/traces",
            "verdicts": "./verify/verdicts",
            "keep": ["correct", "deduplicate"],
        },
    },
}


def changed(**settings):
    recipe = copy.deepcopy(RECIPE)
    for key, value in settings.items():
        stage, field = key.split("__")
        recipe["stages"][stage][field] = value
    return recipe


def states(recipe, folder):
    return {step.stage.name: step.state for step in limbeck.plan(recipe, run=folder)}


def content(folder):
    """Every table's rows, by place; times and paths left out."""
    places = sorted({path.parent for path in Path(folder).rglob("part-*.parquet")})
    return {str(t.relative_to(folder)): tables.read_table(t).to_pylist() for t in places}


def test_a_finished_run_is_skipped_whole(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    stamps = {p: p.stat().st_mtime_ns for p in run.path.rglob("*.parquet")}
    assert set(states(RECIPE, run.path).values()) == {"done"}
    limbeck.run(RECIPE, run=run.path)
    assert stamps == {p: p.stat().st_mtime_ns for p in run.path.rglob("*.parquet")}


def test_splits_share_no_question_and_no_numbers(tmp_path):
    from limbeck.problems import collision_key

    recipe = changed(collect__num=60, collect__num_heldout=30)
    run = limbeck.run(recipe, run=tmp_path / "run")
    train, held = (tables.read_problems(run.path / "collect" / s) for s in ("problems", "heldout"))
    assert (len(train), len(held)) == (60, 30)
    assert not {collision_key(p) for p in train} & {collision_key(p) for p in held}
    assert not {p.question for p in train} & {p.question for p in held}


def test_more_samples_buy_the_difference_only(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    before = content(run.path)["sample/traces"]
    more = changed(sample__num_samples=5)
    assert states(more, run.path) == {
        "collect": "done", "sample": "extend", "verify": "extend", "curate": "extend"
    }  # fmt: skip
    limbeck.run(more, run=run.path)
    after = content(run.path)["sample/traces"]
    assert after[: len(before)] == before
    assert len(tables.parts(run.path / "sample" / "traces")) == 2
    fresh = limbeck.run(more, run=tmp_path / "fresh")

    def by_id(rows):
        return sorted(rows, key=lambda row: row.get("id") or row["trace_id"])

    for name, rows in content(fresh.path).items():
        assert by_id(rows) == by_id(content(run.path)[name]), name
    assert len({row["id"] for row in after}) == len(after) == 30


def test_fewer_samples_are_refused(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    with pytest.raises(UserErrors, match="num_samples was 2, is 1"):
        limbeck.run(changed(sample__num_samples=1), run=run.path)


def asked(verb, num_samples):
    """Three problems, and the samples of each; None leaves them at the stage's default."""
    stages = {"collect": {**RECIPE["stages"]["collect"], "num": 3, "num_heldout": 0}}
    stages["asked"] = {"stage": verb, "engine": "worked"}
    problems, answers = "./collect/problems", "./asked/traces"
    if verb == "sample":
        stages["asked"]["problems"] = problems
        stages["fed"] = {"stage": "verify", "problems": problems, "traces": answers}
    else:
        stages["asked"] |= {"problems": {"sums": problems}, "greedy": False}
        stages["fed"] = {"stage": "compare", "scores": {"worked": "./asked/scores"}}
    if num_samples is not None:
        stages["asked"]["num_samples"] = num_samples
    return {"name": "asked", "stages": stages}


@pytest.mark.parametrize(
    ("verb", "default", "grown", "shrunk"),
    [
        ("evaluate", 4, [(2, 4), (2, None), (3, 4), (4, 5), (None, 5)], [(4, 2), (5, 4), (5, 3)]),
        ("sample", 1, [(1, 2), (None, 2), (2, 3)], [(2, 1), (2, None), (3, 2)]),
    ],
)
def test_amounts_are_held_against_their_defaults(verb, default, grown, shrunk, tmp_path):
    for before in {before for before, _ in [*grown, *shrunk]}:
        run = limbeck.run(asked(verb, before), run=tmp_path / str(before))
        assert set(states(asked(verb, before), run.path).values()) == {"done"}
    for before, after in grown:
        found = states(asked(verb, after), tmp_path / str(before))
        assert found == {"collect": "done", "asked": "extend", "fed": "extend"}, (before, after)
    for before, after in shrunk:
        told = rf"asked: is of another recipe: num_samples was {before}, is {after or default}"
        with pytest.raises(UserErrors, match=told):
            limbeck.run(asked(verb, after), run=tmp_path / str(before))
        with pytest.raises(UserErrors, match=rf"fed: .*num_samples was {before}, is"):
            limbeck.run(asked(verb, after), run=tmp_path / str(before), redo=["asked"])


def test_another_recipe_is_refused_with_the_field_and_the_ways_out(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    other = changed(sample__temperature=0.5)
    before = content(run.path)
    with pytest.raises(UserErrors) as caught:
        limbeck.run(other, run=run.path)
    first = str(caught.value).splitlines()[0]
    assert "sample: is of another recipe: temperature was its default, is 0.5" in first
    assert "--redo sample --redo verify --redo curate" in first
    assert content(run.path) == before
    limbeck.run(other, run=run.path, redo=["sample", "verify", "curate"])
    assert set(states(other, run.path).values()) == {"done"}


def test_keep_uses_a_stale_stage_as_it_is(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    other = changed(sample__temperature=0.5)
    before = content(run.path)
    limbeck.run(other, run=run.path, keep=["sample"])
    assert content(run.path) == before


def test_a_changed_verifier_or_filter_makes_its_stage_stale(tmp_path, monkeypatch):
    checks = tmp_path / "my_own_filters.py"
    checks.write_text("def short(trace, verdict):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = changed(curate__keep=["my_own_filters:short"])
    run = limbeck.run(recipe, run=tmp_path / "run")
    checks.write_text("def short(trace, verdict):\n    return 'x' if not trace.text else None\n")
    import linecache

    linecache.clearcache()
    assert states(recipe, run.path)["curate"] == "stale"


def test_a_used_folder_of_another_run_or_of_something_else_is_refused(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    with pytest.raises(UserError, match="holds a run of 'small', not 'other'"):
        limbeck.run({**RECIPE, "name": "other"}, run=run.path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not a run folder"):
        limbeck.run(RECIPE, run=tmp_path / "mine")
    with pytest.raises(UserError, match="is no stage"):
        limbeck.run(RECIPE, run=run.path, redo=["smaple"])


def test_a_recipe_goes_on_with_a_run_of_its_base(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    more = {"more": {**RECIPE["stages"]["sample"], "stage": "sample", "seed": 7}}
    grown = {"base": "base.yaml", "name": "grown", "stages": more}
    (tmp_path / "grown.yaml").write_text(yaml.safe_dump(grown))
    before = (run.path / "sample" / "stage.json").stat().st_mtime_ns
    again = limbeck.run(tmp_path / "grown.yaml", run=run.path)
    assert (run.path / "more" / "stage.json").exists()
    assert (run.path / "sample" / "stage.json").stat().st_mtime_ns == before
    assert again.recipe["name"] == "small"
    limbeck.run(RECIPE, run=run.path)  # whose run it is still
    own = limbeck.run(tmp_path / "grown.yaml", run=tmp_path / "own")
    with pytest.raises(UserError, match="holds a run of 'grown', not 'small'"):
        limbeck.run(RECIPE, run=own.path)


def test_of_what_is_stale_the_first_stage_alone_is_told(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    with pytest.raises(UserErrors) as told:
        limbeck.run(changed(sample__seed=5), run=run.path)
    (error,) = told.value.errors
    assert error.where.endswith("sample") and "--redo sample --redo verify" in error.way_out


def test_an_interrupted_stage_is_resumed_and_equals_an_uninterrupted_one(tmp_path):
    whole = limbeck.run(RECIPE, run=tmp_path / "whole")
    broken = limbeck.run(RECIPE, run=tmp_path / "broken")
    (broken.path / "verify" / "stage.json").unlink()
    next((broken.path / "verify" / "verdicts").glob("part-00000*")).unlink()
    (broken.path / "verify" / "verdicts" / ".part-00000.parquet.tmp").write_bytes(b"torn")
    (broken.path / "curate" / "stage.json").unlink()  # its parts are there, but nobody says so
    assert states(RECIPE, broken.path)["verify"] == "resume"
    limbeck.run(RECIPE, run=broken.path)
    assert content(broken.path) == content(whole.path)


def test_verify_extends_with_its_traces_and_stories_are_told(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    trace = content(run.path)["sample/traces"][0]
    story = run.story(trace["id"][:12])
    assert story["trace"]["text"] == trace["text"]
    assert story["problem"]["id"] == trace["problem_id"]
    assert [verdict["reason"] for verdict in story["verdicts"]] == ["correct"]
    assert story["decisions"] == [{"by": "curate/decisions", "dropped": None}]
    text = run.story_text(trace["id"])
    assert "kept by curate/decisions" in text
    with pytest.raises(UserError, match="no trace of this run begins so"):
        run.story("zzz")
    with pytest.raises(UserError, match="traces begin with it"):
        run.story("")


def test_show_prints_json_and_every_row_of_a_funnel_adds_up(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    command = [sys.executable, "-m", "limbeck", "show", str(run.path), "--json"]
    summary = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert {"results", "tests", "ledger", "published"} <= summary.keys()
    (curated,) = [row["summary"] for row in summary["stages"] if row["stage"] == "curate"]
    assert curated["sampled"] == curated["kept"] + sum(curated["dropped"].values()) == 12
    assert curated["dropped"] == {"duplicate": 6}  # a worked solution is always the same
    assert (run.path / "report.html").read_text().count("<html") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(tmp_path, number, code):
    recipe = tmp_path / "r.py"
    recipe.write_text(f"recipe = {changed(collect__num=40_000)!r}\n")
    command = [sys.executable, "-m", "limbeck", "run", str(recipe), "--run", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    while not (tmp_path / "run" / "collect" / "started.json").exists():
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.3)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert "Go on with: limbeck run" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("collect", "source", {**RECIPE["stages"]["collect"]["source"], "seed": 9}),
        ("collect", "source", {"name": "reasoning_gym", "tasks": {"chain_sum": {"min_terms": 3}}}),
        ("sample", "max_tokens", 7),
        ("sample", "seed", 1),
        ("curate", "keep", ["correct"]),
        ("curate", "keep", ["correct", {"name": "length", "max_tokens": 9}]),
        ("curate", "thinking", "drop"),
    ],
)
def test_every_setting_that_changes_a_row_changes_the_identity(tmp_path, stage, field, value):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    recipe = changed(**{f"{stage}__{field}": value})
    assert states(recipe, run.path)[stage] == "stale"


def test_a_stage_of_another_name_is_another_stage(tmp_path):
    twice = copy.deepcopy(RECIPE)
    twice["stages"]["again"] = {**twice["stages"]["sample"], "stage": "sample"}
    run = limbeck.run(twice, run=tmp_path / "run")
    rows = content(run.path)
    ids = [{row["id"] for row in rows[f"{name}/traces"]} for name in ("sample", "again")]
    assert not ids[0] & ids[1]


def test_what_was_begun_with_more_rows_is_not_finished_with_fewer(tmp_path):
    run = limbeck.run(changed(sample__num_samples=3), run=tmp_path / "run")
    (run.path / "sample" / "stage.json").unlink()
    assert states(changed(sample__num_samples=2), run.path)["sample"] == "stale"


def test_a_smaller_upstream_makes_what_it_fed_stale(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    smaller = changed(collect__num=4)
    with pytest.raises(UserErrors, match="num was 6, is 4"):
        limbeck.run(smaller, run=run.path)
    with pytest.raises(UserErrors, match=r"sample: is of another recipe: problems.num was 6, is 4"):
        limbeck.run(smaller, run=run.path, redo=["collect"])
    assert content(run.path)["collect/problems"], "refused before anything was taken away"
    limbeck.run(smaller, run=run.path, redo=["collect", "sample", "verify", "curate"])
    assert len(content(run.path)["sample/traces"]) == 8


def test_an_input_that_was_made_anew_and_differs_is_noticed(tmp_path, monkeypatch):
    engine = tmp_path / "moody_engine.py"
    engine.write_text(
        "import os\n"
        "from limbeck.types import Trace\n"
        "class Moody:\n"
        "    name, num_parameters, costs_money = 'moody', None, False\n"
        "    def generate(self, requests, sampling):\n"
        "        for r in requests:\n"
        "            mood = os.environ['MOOD']\n"
        "            yield Trace(r.id, r.problem.id, r.index, mood, 'stop', 'moody')\n"
        "def connect():\n"
        "    return Moody()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MOOD", "glad")
    recipe = changed(sample__engine="moody_engine:connect", curate__keep=[])
    run = limbeck.run(recipe, run=tmp_path / "run")
    limbeck.run(recipe, run=run.path, redo=["sample"])  # the same again: nothing to say
    monkeypatch.setenv("MOOD", "sad")
    with pytest.raises(UserErrors, match="traces was made anew and holds something else"):
        limbeck.run(recipe, run=run.path, redo=["sample"])
    limbeck.run(recipe, run=run.path, redo=["verify", "curate"])
    assert set(states(recipe, run.path).values()) == {"done"}


def test_how_a_stage_is_run_is_part_of_no_key():
    from limbeck.config import split_fields
    from limbeck.plugins import Kind

    engine = Kind("engine", "limbeck.engines", "connect")
    plugin = engine.parse({"name": "local", "model": "a/b", "batch_rows": 7})
    assert split_fields(plugin) == ({"name": "local", "model": "a/b"}, {})


def test_what_an_interrupted_stage_took_stays_in_its_book(tmp_path):
    run = limbeck.run(RECIPE, run=tmp_path / "run")
    before = {row["stage"]: row for row in run.ledger()}
    (run.path / "curate" / "stage.json").unlink()  # as if a kill had come before it
    limbeck.run(changed(collect__num=8), run=run.path)  # collect is made anew, larger
    rows = {name: store.read_jsonl(run.path / name / "ledger.jsonl") for name in before}
    for name in ("collect", "curate"):
        assert len(rows[name]) % 2 == 0  # both times
        took = {row["stage"]: row for row in run.ledger()}[name]
        assert took["wall_seconds"] >= before[name]["wall_seconds"]


def test_an_extended_data_set_is_in_the_order_of_a_fresh_one(tmp_path):
    more = changed(sample__num_samples=3, curate__keep=["correct"], curate__thinking="drop")
    fewer = changed(sample__num_samples=1, curate__keep=["correct"], curate__thinking="drop")
    run = limbeck.run(fewer, run=tmp_path / "run")
    limbeck.run(more, run=run.path)
    fresh = limbeck.run(more, run=tmp_path / "fresh")
    name = "curate/dataset"
    assert content(run.path)[name] == content(fresh.path)[name]


@pytest.mark.parametrize(
    ("told", "threads"),
    [("1", 1), ("1,2", 1), ("4096", "cores"), ("", "cores"), ("many", "cores"), ("0", "cores")],
)
def test_auto_takes_no_more_threads_than_the_environment_says(monkeypatch, told, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    cores = len(os.sched_getaffinity(0))
    assert runner._own_cores() == (cores if threads == "cores" else threads)


def test_those_that_torchrun_started_share_the_cores(monkeypatch):
    """It sets OMP_NUM_THREADS to 1 by itself."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(runner.processes, "num_here", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert runner._own_cores() == 4
