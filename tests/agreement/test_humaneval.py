"""CodeGen-16B's completions of HumanEval: others' labels, our pass@k, and our verdicts.

The completions are CodeT's (Chen et al. 2022, arXiv:2207.10397).
"""

from __future__ import annotations

from statistics import fmean

import pytest

import limbeck
from limbeck import metrics, tables
from limbeck.errors import UserError
from limbeck.verifiers import sandbox

from . import recorded

pytestmark = recorded.needs("humaneval")
COMPLETIONS = "humaneval/codegen16b_completions.jsonl.gz"
STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\nassert", "\n@", "\nimport", "\nfrom"]
SAMPLES, STRIDE = 10, 16  # of each of six tasks


@pytest.mark.parametrize(("k", "share"), [(1, 0.246386), (10, 0.537148), (100, 0.734940)])
def test_the_labels_give_the_published_pass_at_k(k, share):
    labels: dict[str, list[bool]] = {}
    for row in recorded.read(COMPLETIONS):
        labels.setdefault(row["task_id"], []).append(row["passed"])
    found = [metrics.pass_at_k(len(passed), sum(passed), k) for passed in labels.values()]
    assert len(found) == 83
    assert round(fmean(found), 6) == share


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """(labels, the run) of some completions of some tasks, evaluated as any model is."""
    try:
        sandbox.backend()
    except UserError as error:
        pytest.skip(f"no sandbox: {error}")
    folder = tmp_path_factory.mktemp("humaneval")
    rows = [row for row in recorded.read(COMPLETIONS) if row["sample"] < SAMPLES]
    chosen = [*dict.fromkeys(row["task_id"] for row in rows)][::STRIDE]
    tasks = {row["task_id"]: row for row in recorded.read("humaneval/HumanEval.jsonl.gz")}
    said = [
        {"prompt": tasks[row["task_id"]]["prompt"], "completion": row["completion"]}
        for row in rows
        if row["task_id"] in chosen
    ]
    stages = {
        "collect": {
            "source": {
                "name": "humaneval",
                "path": recorded.write(folder / "tasks.jsonl", map(tasks.get, chosen)),
            },
            "num": len(chosen),
        },
        "evaluate": {
            "engine": {
                "name": "replay",
                "path": recorded.write(folder / "said.jsonl", said),
                "problem": "prompt",
                "text": "completion",
            },
            "problems": {"humaneval": "./collect/problems"},
            "num_samples": SAMPLES,
            "pass_at": [5],
            "greedy": False,
            "stop": STOP,
        },
        "verify": {"problems": "./collect/problems", "traces": "./evaluate/pass_at_1"},
    }
    labels = {
        (tasks[row["task_id"]]["prompt"], row["sample"]): row["passed"]
        for row in rows
        if row["task_id"] in chosen
    }
    return labels, limbeck.run({"stages": stages}, run=folder / "run")


def test_every_verdict_is_the_label(passed):
    labels, run = passed
    prefixes = {p.id: p.meta["prefix"] for p in tables.read_problems(run.path / "collect/problems")}
    traces = {t.id: t for t in tables.read_traces(run.path / "evaluate" / "pass_at_1")}
    verdicts = tables.read_verdicts(run.path / "verify" / "verdicts")
    found = {
        (prefixes[traces[v.trace_id].problem_id], traces[v.trace_id].index): v.correct
        for v in verdicts
    }
    assert found == labels
    assert 0 < sum(labels.values()) < len(labels)


def test_an_evaluation_counts_them_as_they_are_labelled(passed):
    labels, run = passed
    right: dict[str, int] = {}
    for (prompt, _), label in labels.items():
        right[prompt] = right.get(prompt, 0) + label
    for metric, k in (("pass_at_1", 1), ("pass_at_5", 5)):
        expected = fmean(metrics.pass_at_k(SAMPLES, count, k) for count in right.values())
        assert recorded.results(run)[metric]["value"] == pytest.approx(expected, abs=1e-9)
