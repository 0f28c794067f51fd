"""The hostile set: answers that attack a verifier are refused, gold answers beside them are not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import limbeck.audit
from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import math
from limbeck.verifiers.judging import judge

PATH = Path(limbeck.audit.__file__).parent / "hostile" / "answers.jsonl"
ROWS = [json.loads(line) for line in PATH.open(encoding="utf-8")]
FAMILIES = sorted({row["family"] for row in ROWS})
REFUSALS = {"wrong", "unparsed", "truncated", "timeout", "bad_gold", "error"}


def verdict_on(row):
    text = row["text"]
    if "repeat" in row:
        text = text.replace("{repeat}", row["repeat"]["what"] * row["repeat"]["times"])
    more = dict(row.get("problem", {}))
    question = more.pop("question", "?")
    problem = make_problem(question, row["gold"], verifier=row["verifier"], **more)
    return judge(problem, Trace("t", problem.id, 0, text, row.get("finish", "stop"), "model"))


@pytest.mark.parametrize("family", FAMILIES)
def test_refuses_what_is_wrong_and_nothing_else(family):
    mistakes = []
    for row in ROWS:
        if row["family"] == family:
            verdict = verdict_on(row)
            accepted = verdict.correct is True
            if accepted is not (row["expect"] == "accept"):
                mistakes.append((row["id"], row["verifier"], row["gold"], row["text"][-80:]))
            if verdict.reason == "error" and row.get("finish") != "error":
                mistakes.append((row["id"], verdict.extracted))
            assert accepted is (verdict.reason == "correct")
            assert accepted or verdict.reason in REFUSALS
    assert not mistakes
    assert math.judge("1", r"\int_0^1 2x\,dx", 30.0) == "correct"  # the workers are whole


def test_the_set_is_large_and_no_row_is_there_twice():
    expected = Counter(row["expect"] for row in ROWS)
    assert expected["reject"] >= 500
    assert expected["accept"] >= 120
    assert {row["verifier"] for row in ROWS} == {"math", "number", "exact", "choice", "squad"}
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    unlike = {json.dumps({**row, "id": ""}, sort_keys=True) for row in ROWS}
    assert len(unlike) == len(ROWS)
