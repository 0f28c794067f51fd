"""`limbeck evaluate` as it is typed: killed, gone on with, extended, repeated."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from limbeck import store, tables
from tests.engines.faulty_server import FaultyServer, completion
from tests.faults import killed
from tests.serve import small

DATA = os.environ.get("LIMBECK_TEST_DATA", "")
GSM8K = Path(DATA) / "gsm8k" / "test.jsonl.gz"
NUM_SHOWN = 10  # answers that the server gives before it goes quiet
PATIENCE_S = 60
PRELOAD = ["limbeck.evaluation.again", "limbeck.problems.gsm8k", "limbeck.report.page", "openai"]

pytestmark = pytest.mark.skipif(not GSM8K.is_file(), reason="LIMBECK_TEST_DATA has no GSM8K")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    small.save_model(folder)
    return folder


def started(*arguments: object, kill_at: str = "", told: Path | None = None):
    """The command in a process of its own, which has everything imported; it writes to `told`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*killed.PRELOAD, *PRELOAD])
    words = ["limbeck", "evaluate", *map(str, arguments)]
    process = context.Process(target=_child, args=(words, kill_at, told))
    process.start()
    return process


def _child(arguments: list[str], kill_at: str, told: Path | None) -> None:
    if told:
        sys.stdout = open(told, "w", encoding="utf-8")  # noqa: SIM115, it dies with us
    killed._child(arguments, kill_at)


def evaluate(*arguments: object, kill_at: str = "", told: Path | None = None) -> int:
    """Its exit code; minus 9 where it died at the fail point `kill_at`."""
    process = started(*arguments, kill_at=kill_at, told=told)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def wishes(run: Path, samples: int = 2) -> list[object]:
    """Six problems with short answers, for a folder."""
    on = f"gsm8k={GSM8K}"
    few = ["--samples", samples, "--num", 6, "--max-tokens", 24, "--quiet"]
    return ["--on", on, *few, "--run", run]


def table(run: Path, name: str) -> pa.Table:
    return tables.read_table(run / "gsm8k-tiny" / name)


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert evaluate(model, *wishes(folder), told=folder.parent / "told") == 0
    return folder


def test_what_is_printed(undisturbed):
    told = (undisturbed.parent / "told").read_text()
    assert re.search(r"tiny +\d+\.\d  \(\d+\.\d-\d+\.\d\)", told)
    assert "truncated" in told and "Others ask with 5 or 8 worked examples" in told
    assert (undisturbed / "report.html").exists()
    manifest = undisturbed / "gsm8k-tiny" / "evaluation" / "manifest.json"
    assert manifest.is_file() and f"manifest, for --from: {manifest}\n" in told


@pytest.mark.parametrize(
    "point",
    [
        "gsm8k-tiny.part-00000.renamed",  # all answers are there, no verdict is
        "gsm8k-tiny.finishing",
    ],
)
def test_killed_it_goes_on_to_the_same_bits(point, undisturbed, model, tmp_path):
    run = tmp_path / "run"
    assert evaluate(model, *wishes(run), kill_at=point) == -9
    answers = next((run / "gsm8k-tiny" / "pass_at_1").glob("part-*"))
    written = answers.stat().st_mtime_ns
    assert evaluate(model, *wishes(run)) == 0
    assert answers.stat().st_mtime_ns == written and len([*answers.parent.glob("part-*")]) == 1
    for name in ("pass_at_1", "scores"):
        assert table(run, name).equals(table(undisturbed, name))
    for place in ("gsm8k-tiny/evaluation/manifest.json", "compare-gsm8k/results/results.json"):
        assert store.read_json(run / place) == store.read_json(undisturbed / place)


def test_killed_before_an_answer_was_kept(undisturbed, model, tmp_path):
    run = tmp_path / "run"
    assert evaluate(model, *wishes(run), kill_at="gsm8k-tiny.part-00000") == -9
    assert evaluate(model, *wishes(run)) == 0
    assert table(run, "scores").equals(table(undisturbed, "scores"))


def test_more_samples_are_added_to_those_there(undisturbed, model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    assert evaluate(model, *wishes(run, samples=5)) == 0
    texts = table(run, "pass_at_1")
    assert len(texts) == 6 * 5
    assert texts.slice(0, 12).equals(table(undisturbed, "pass_at_1"))
    assert {row["num_samples"] for row in table(run, "scores").to_pylist()} == {5}


def test_from_its_manifest(undisturbed, tmp_path):
    manifest, told = undisturbed / "gsm8k-tiny" / "evaluation" / "manifest.json", tmp_path / "told"
    again = ["--from", manifest, "--run", tmp_path / "again", "--quiet"]
    assert evaluate(*again, told=told) == 0
    assert "identical: all " in told.read_text()
    changed = tmp_path / "run" / "gsm8k-tiny" / "evaluation" / "manifest.json"
    made = store.read_json(manifest)
    made["results"][0]["tokens_per_answer"] += 1
    store.write_json(changed, made)
    assert evaluate("--from", changed, "--run", tmp_path / "other", "--quiet", told=told) == 1
    assert "gsm8k pass_at_1 tokens_per_answer: was " in told.read_text()


def test_a_table_has_what_its_command_asks_for(undisturbed, model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    assert evaluate(model, *wishes(run), "--prompting", "direct") == 0
    assert table(run, "scores").equals(table(undisturbed, "scores"))
    rows = store.read_json(run / "compare-gsm8k" / "results" / "results.json")["results"]
    assert len({row["name"] for row in rows}) == 1  # what is not asked for is not in the table
    assert evaluate(model, *wishes(run)) == 0
    rows = store.read_json(run / "compare-gsm8k" / "results" / "results.json")["results"]
    assert {row["name"] for row in rows} == {"tiny"}


def test_a_manifest_says_all_itself(undisturbed):
    manifest = undisturbed / "gsm8k-tiny" / "evaluation" / "manifest.json"
    for more in (
        ["--samples", 4],
        ["--redo", "gsm8k-tiny"],
        ["--max-tokens", 9],
        ["--on", "gsm8k"],
    ):
        assert evaluate("--from", manifest, *more) == 2


def test_nobody_is_asked_twice_for_what_was_answered(tmp_path):
    """A server answers ten and goes quiet; the command is killed, and started again."""
    right = completion("<think>?</think>18")
    quiet = completion("<think>?</think>18", delay_s=PATIENCE_S)
    run = tmp_path / "run"
    on = ["--on", f"gsm8k={GSM8K}", "--samples", 4, "--num", 20, "--run", run, "--quiet"]
    with FaultyServer([right] * NUM_SHOWN, quiet) as server:
        process = started(server.url, "--model", "org/tiny", *on)
        until = time.monotonic() + PATIENCE_S
        while len(server.requests) <= NUM_SHOWN + 50 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.0)
        process.kill()
        process.join()
        asked = len(server.requests)
        assert NUM_SHOWN < asked < 80
        server.default = right
        assert evaluate(server.url, "--model", "org/tiny", *on) == 0
        times = Counter(map(_question, server.requests))
        assert len(times) == 80  # each sample has a seed of its own
        assert [times[_question(body)] for body in server.requests[:NUM_SHOWN]] == [1] * NUM_SHOWN
        before = len(server.requests)
        more = [6 if word == 4 else word for word in on]
        assert evaluate(server.url, "--model", "org/tiny", *more) == 0
        assert len(server.requests) == before + 2 * 20


def _question(body: dict) -> str:
    return json.dumps([body["messages"], body["seed"]])
