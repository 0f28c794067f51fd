"""Filters of one trace: what is kept, and the word for what is not."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limbeck import filters
from limbeck.types import Trace, Verdict

RIGHT = Verdict("t", True, "2", "correct")
WRONG = Verdict("t", False, "3", "wrong")
LATE = Verdict("t", None, None, "timeout")
DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere")) / "reasoning_traces"


def trace(text="<think>a</think>2", **fields):
    given = {"id": "t", "problem_id": "p", "index": 0, "finish": "stop", "model": "m", **fields}
    return Trace(text=text, **given)


def test_correct_gives_the_verdicts_reason():
    assert filters.correct(trace(), RIGHT) is None
    assert filters.correct(trace(), WRONG) == "wrong"
    assert filters.correct(trace(), LATE) == "timeout"
    assert filters.correct(trace(), Verdict("t", False, None, None)) == "wrong"  # of a stranger


def test_finished():
    assert filters.finished(trace(), RIGHT) is None
    assert filters.finished(trace(finish="length"), RIGHT) == "truncated"
    assert filters.finished(trace(finish="error"), RIGHT) == "error"
    assert filters.finished(trace(finish="tool_calls"), RIGHT) == "error"


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


def sentences(num, seed=0):
    """Sentences that share words, but hardly three in a row."""
    draw = random.Random(seed)
    return [" ".join(draw.choices([f"w{i}" for i in range(300)], k=12)) + "." for _ in range(num)]


@pytest.mark.parametrize("num_chars", [1, 7, 60, 300, 1000, 3900])
def test_loops_of_any_period_are_found_at_the_end_and_before_it(num_chars):
    piece = " ".join(sentences(80, seed=num_chars))[:num_chars]
    before, after = " ".join(sentences(400, seed=1)), " ".join(sentences(400, seed=2))
    times = 5 + 700 // num_chars
    assert filters.not_repetitive(trace(before + piece * times), RIGHT) == "repetitive"
    inside = before + piece * times + after
    assert filters.not_repetitive(trace(inside), RIGHT, max_share=1) == "repetitive"
    assert filters.not_repetitive(trace(before + piece * 2 + after), RIGHT, max_share=1) is None


def test_a_loop_whose_piece_says_a_sentence_twice():
    echo = " So we come back to the very same point, as we did before, and must begin again."
    piece = " ".join(sentences(9)) + echo + " ".join(sentences(5, seed=3)) + echo
    text = " ".join(sentences(50, seed=4)) + piece * 5
    assert filters.not_repetitive(trace(text), RIGHT, max_share=1) == "repetitive"


def was_repetitive(text, words, max_share, loop_chars):
    """What the filter was before it was quick, word for word."""
    tokens, tail = text.split(), text.rstrip()[-loop_chars:]
    runs = [tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1)]
    share = 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0
    periods = range(1, loop_chars // 4 + 1)
    loops = len(tail) == loop_chars and any(tail[p:] == tail[:-p] for p in periods)
    return share > max_share, loops


@given(
    st.text("ab ", max_size=120),
    st.text("ab ", max_size=12),
    st.integers(0, 30),
    st.integers(1, 9),
    st.sampled_from([4, 10, 40]),
)
@example("", "aab", 20, 3, 40)
def test_quick_verdicts_are_the_slow_ones(before, piece, times, words, loop_chars):
    text = before + piece * times
    share, loops = was_repetitive(text, words, 0.5, loop_chars)
    knobs = {"words": words, "loop_chars": loop_chars}
    found = filters.not_repetitive(trace(text), RIGHT, **knobs)
    if share or loops:
        assert found == "repetitive"
    elif found:  # a longer loop, or one before the end
        assert is_loop_somewhere(text.rstrip(), loop_chars)


def is_loop_somewhere(text, least):
    """By trying every place and period."""
    for end in range(len(text), 0, -1):
        for period in range(1, end // 4 + 1):
            start = end - max(4 * period, least)
            if start >= 0 and text[start : end - period] == text[start + period : end]:
                return True
    return False


def real_traces(name):
    if not (DATA / f"{name}.jsonl.gz").exists():
        pytest.skip("set LIMBECK_TEST_DATA to the test data")
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("name", ["r1_distill_math", "sky_t1_aime24"])
def test_real_traces_that_loop_are_dropped_and_right_ones_kept(name):
    """No right answer is dropped, and nothing is kept that the slow filter dropped."""
    for row in real_traces(name)[::3]:
        found = filters.not_repetitive(trace(row["response"]), RIGHT)
        assert not (found and row["correct_checked"]), row["id"]
        assert found or not any(was_repetitive(row["response"], 8, 0.5, 200)), row["id"]
