"""Filters of a problem's traces beside each other."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import filters
from limbeck.types import Trace, Verdict

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere")) / "multi_sample"


def group(*rows):
    return [
        Trace(f"{problem}{i}", problem, i, text, "stop", "m", completion_tokens=tokens)
        for i, (problem, text, tokens) in enumerate(rows)
    ]


ROWS = group(("p", "bb", 2), ("p", "a", 1), ("q", "bb", 2), ("p", "bb", 2), ("p", "ccc", 3))


def test_deduplicate_within_a_problem():
    assert filters.deduplicate(ROWS) == [None, None, None, "duplicate", None]
    assert filters.deduplicate([]) == []


def test_shortest():
    assert filters.shortest(ROWS, []) == ["longer", None, None, "longer", "longer"]
    assert filters.shortest(ROWS, [], num=2) == [None, None, None, "longer", "longer"]


def test_at_most():
    assert filters.at_most(ROWS, [], num=2) == [None, None, None, "surplus", "surplus"]
    backwards = filters.at_most(ROWS[::-1], [], num=2)
    assert backwards == filters.at_most(ROWS, [], num=2)[::-1]


def judged(**answers):
    """Traces and verdicts of problems, from {problem: [(correct, extracted), ...]}."""
    traces = group(*((problem, "", 1) for problem, rows in answers.items() for _ in rows))
    verdicts = [
        Verdict(trace.id, correct, extracted, "correct" if correct else "wrong")
        for trace, (correct, extracted) in zip(
            traces, [row for rows in answers.values() for row in rows], strict=True
        )
    ]
    return traces, verdicts


def test_difficulty():
    right, wrong, unjudged = (True, "1"), (False, "2"), (None, None)
    traces, verdicts = judged(
        easy=[right, right, unjudged], hard=[wrong, wrong], fit=[right, wrong],
        single=[right], dark=[unjudged, unjudged],
    )  # fmt: skip
    assert filters.difficulty(traces, verdicts) == (
        ["too_easy"] * 3 + ["too_hard"] * 2 + [None] * 2 + [None] + [None] * 2
    )
    assert set(filters.difficulty(traces, verdicts, max_pass_rate=None)) == {None, "too_hard"}
    assert set(filters.difficulty(traces, verdicts, min_pass_rate=None)) == {None, "too_easy"}
    half = filters.difficulty(traces, verdicts, min_pass_rate=0.5)
    assert half[5:7] == ["too_hard", "too_hard"]
    assert filters.difficulty([], []) == []


@given(st.lists(st.sampled_from([True, False, None]), max_size=8), st.randoms())
def test_difficulty_treats_a_problems_traces_alike_in_any_order(correct, draw):
    traces, verdicts = judged(p=[(value, None) for value in correct])
    words = filters.difficulty(traces, verdicts)
    known = [value for value in correct if value is not None]
    expected = None
    if len(known) > 1:
        expected = "too_easy" if all(known) else None if any(known) else "too_hard"
    assert words == [expected] * len(correct)
    pairs = list(zip(traces, verdicts, strict=True))
    draw.shuffle(pairs)
    assert filters.difficulty([t for t, _ in pairs], [v for _, v in pairs]) == words


def votes(*answers):
    return judged(p=[(None, answer) for answer in answers])


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (["4", "4", "5", None], [None, None, "disagrees", "disagrees"]),
        (["4", "4", "5", "5"], ["no_majority"] * 4),
        (["4", "5", "6"], ["no_majority"] * 3),
        (["4"], ["no_majority"]),
        ([None, None], ["no_majority"] * 2),
        (["1,234", "1234", " $1234.0$ "], [None] * 3),
        ([r"\frac{12}{3}", r"\frac{1}{23}"], ["no_majority"] * 2),
        ([r"\dfrac12", r"\frac12", "x"], [None, None, "disagrees"]),
        (["-3", "−3", "3"], [None, None, "disagrees"]),
        (["4", "4", "5", "6", "7"], ["no_majority"] * 5),
    ],
)
def test_agreement(answers, words):
    assert filters.agreement(*votes(*answers)) == words


def test_agreement_takes_the_share_that_is_asked():
    answers = ["4", "4", "5", "6", "7"]
    assert filters.agreement(*votes(*answers), min_share=0.4)[:3] == [None, None, "disagrees"]
    assert filters.agreement(*votes("4", "4", "5"), min_share=0.7) == ["no_majority"] * 3


def test_agreement_keeps_problems_apart():
    traces, verdicts = judged(p=[(None, "4"), (None, "4")], q=[(None, "4"), (None, "5")])
    assert filters.agreement(traces, verdicts) == [None, None, "no_majority", "no_majority"]


@pytest.mark.skipif(not DATA.exists(), reason="set LIMBECK_TEST_DATA to the test data")
def test_the_majority_of_real_samples_is_mostly_right():
    """46 MATH problems, 8 samples each: what agrees is right far more often than all is."""
    kept, every = [], []
    with gzip.open(DATA / "math_cot_8x.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            pairs = list(zip(row["correct"], map(str, row["preds"]), strict=True))
            words = filters.agreement(*judged(p=pairs))
            every += [bool(right) for right, _ in pairs]
            kept += [bool(p[0]) for p, word in zip(pairs, words, strict=True) if not word]
    assert sum(kept) / len(kept) > 0.95 > sum(every) / len(every)
    assert len(kept) > 0.9 * len(every)
