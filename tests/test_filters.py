"""Filters: what is kept, and the word for what is not."""

from __future__ import annotations

import random

import pytest

from limbeck import filters
from limbeck.types import Trace, Verdict

RIGHT = Verdict("t", True, "2", "correct")
WRONG = Verdict("t", False, "3", "wrong")
LATE = Verdict("t", None, None, "timeout")


def trace(text="<think>a</think>2", **fields):
    given = {"id": "t", "problem_id": "p", "index": 0, "finish": "stop", "model": "m", **fields}
    return Trace(text=text, **given)


def test_correct_gives_the_verdicts_reason():
    assert filters.correct(trace(), RIGHT) is None
    assert filters.correct(trace(), WRONG) == "wrong"
    assert filters.correct(trace(), LATE) == "timeout"


def test_finished():
    assert filters.finished(trace(), RIGHT) is None
    assert filters.finished(trace(finish="length"), RIGHT) == "truncated"
    assert filters.finished(trace(finish="error"), RIGHT) == "error"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<think>a</think>2", None),
        ("<think>\na\n</think>\n\n2\n", None),
        ("a</think>2", "malformed"),
        ("<think>a 2", "malformed"),
        ("<think>a</think> ", "malformed"),
        ("<think>a</think>2</think>3", "malformed"),
        ("so <think>a</think>2", "malformed"),
        ("<think>a<think>b</think>2", "malformed"),
        ("2", "malformed"),
    ],
)
def test_well_formed(text, word):
    assert filters.well_formed(trace(text), RIGHT) == word


def test_not_repetitive():
    words = random.Random(0).choices(list("abcdefg"), k=400)
    fine = " ".join(words)
    assert filters.not_repetitive(trace(fine), RIGHT) is None
    assert (
        filters.not_repetitive(trace("Wait, let me check that again. " * 40), RIGHT) == "repetitive"
    )
    assert filters.not_repetitive(trace(fine + "\u55ef\u7b49\u7b49" * 100), RIGHT) == "repetitive"
    assert filters.not_repetitive(trace("12+3=15 15+4=19"), RIGHT) is None
    assert filters.not_repetitive(trace(""), RIGHT) is None
    assert filters.not_repetitive(trace(fine + " " + "-" * 40), RIGHT) is None


def test_length():
    assert filters.length(trace(completion_tokens=5), RIGHT) is None
    assert filters.length(trace(completion_tokens=5), RIGHT, min_tokens=6) == "too_short"
    assert filters.length(trace(completion_tokens=5), RIGHT, max_tokens=4) == "too_long"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Let us see: 2 + 2 = 4", None),
        ("Let \u03b1 be the angle, so the area is \u03c0 and that is what we wanted", None),
        ("\u6211\u4eec\u6765\u770b 2 + 2 = 4", None),
        ("\u3053\u308c\u306f\u6f22\u5b57\u3068\u30ab\u30ca", None),
        ("Let us see \u6211\u4eec\u6765\u770b\u4e00\u4e0b", "mixed_language"),
        ("1 + 1 = 2", None),
    ],
)
def test_one_language(text, word):
    assert filters.one_language(trace(text), RIGHT) == word


def group(*rows):
    return [
        trace(text, id=f"{problem}{i}", problem_id=problem, index=i, completion_tokens=tokens)
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
