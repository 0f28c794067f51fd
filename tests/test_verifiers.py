"""Judges: what counts as the answer, what is equal, and that no answer can hold a judge up."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path

import pytest

from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import exact, final_answer, last_boxed, math, number

DATA = Path(__file__).parents[2] / "shared" / "data"


def trace(text, finish="stop"):
    return Trace("t", "p", 0, text, finish, "model")


def problem(answer):
    return make_problem("?", answer, verifier="exact")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1 + 1 = 3</think>2", "2"),
        ("<think>a</think>so <think>b</think>2", "2"),
        ("no thinking, 2", "no thinking, 2"),
        (r"<think>\boxed{1}</think>It is \boxed{2}.", "2"),
        (r"<think>x</think>\boxed{1} or rather \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"<think>\boxed{1}</think>It is 2", "It is 2"),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(trace(text)) == (answer, None)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("<think>2 is", "length", "truncated"),
        ("<think>x</think>2", "length", "truncated"),
        ("<think>the answer is 2", "stop", "truncated"),
        ("<think>x</think>y <think>2", "stop", "truncated"),
        ("<think>x</think>  ", "stop", "unparsed"),
        (r"<think>x</think>\boxed{}", "stop", "unparsed"),
        ("", "error", "error"),
    ],
)
def test_no_final_answer(text, finish, reason):
    assert final_answer(trace(text, finish)) == (None, reason)
    verdict = exact.verify(problem("2"), trace(text, finish))
    assert verdict.reason == reason
    assert verdict.correct is (None if reason == "error" else False)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\fbox{3} then \boxed {4}", "4"),
        ("none", None),
    ],
)
def test_last_boxed(text, inside):
    assert last_boxed(text) == inside


def test_boxes_that_never_close_cost_no_time():
    began = time.process_time()
    assert last_boxed(r"\boxed{" * 20_000) is None
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [("sun", " sun\n", True), ("a b", "a  b", True), ("\uff12", "2", True), ("Sun", "sun", False)],
)
def test_exact(gold, answer, same):
    assert exact.verify(problem(gold), trace(f"<think>x</think>{answer}")).correct is same


def test_exact_can_forgive_capitals_and_refuses_an_empty_gold_answer():
    assert exact.verify(problem("Sun"), trace("SUN"), ignore_case=True).correct
    assert exact.verify(problem(" "), trace("2")).reason == "bad_gold"


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("18", "18", True),
        ("18", "#### 18", True),
        ("1,200", "The total is $1200.00.", True),
        ("1200", r"\boxed{1{,}200}", True),
        ("1200", r"\boxed{\$1,\!200 \text{ dollars}}", True),
        ("0.75", "3/4", True),
        ("3/4", r"\boxed{\frac{3}{4}}", True),
        ("-3/4", r"\boxed{-\dfrac34}", True),
        ("-5", "\u22125", True),
        ("50", "50%", True),
        ("0.5", "50%", True),
        ("50%", r"\boxed{50\%}", True),
        ("50%", "0.5%", False),
        ("0.1", "0.10000000000000001", False),
        ("1e3", "1000", True),
        ("5", "from 3-5", True),
        ("5", "x = -5", False),
        ("7", "He has 3 apples and 4 pears, 7 in all.", True),
        ("12", r"\boxed{x = 12}", True),
        ("5", r"\boxed{2\sqrt{5}}", False),
        ("29", "2*9", False),
        ("18", "\\boxed{18\\text{ miles}}", True),
        ("70", "first 70 #### 71\nor 70", False),
        ("2.5", ".5", False),
        ("2", "**2**", True),
    ],
)
def test_number(gold, answer, same):
    verdict = number.verify(problem(gold), trace(f"<think>99</think>{answer}"))
    assert verdict.correct is same, verdict


@pytest.mark.parametrize("answer", ["1e999999999", "9" * 5000, "1/0", "many", r"\boxed{3x+5}"])
def test_number_unparsed(answer):
    assert number.verify(problem("5"), trace(answer)).reason == "unparsed"


@pytest.mark.parametrize("gold", ["many", "1e999999999", ""])
def test_number_bad_gold(gold):
    verdict = number.verify(problem(gold), trace("5"))
    assert (verdict.correct, verdict.reason) == (None, "bad_gold")


@pytest.mark.parametrize("piece", [" ", "5 ", "a", "1,111", "5 a", "- ", r"\text{", "{", "5 / "])
def test_number_is_quick_on_long_nonsense(piece):
    began = time.process_time()
    number.verify(problem("5"), trace(piece * 20_000 + "!"))
    assert time.process_time() - began < 2


@pytest.mark.skipif(not DATA.exists(), reason="needs shared/data")
def test_number_agrees_with_gsm8k_labels():
    with gzip.open(DATA / "gsm8k" / "model_solutions.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            gold = row["ground_truth"].rpartition("A: ")[2]
            verdict = number.verify(problem(gold), trace(row["solution"]))
            assert verdict.correct is row["is_correct"]


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("1/2", r"\boxed{0.5}", True),
        (r"\frac{\pi}{6}", r"\boxed{\dfrac{\pi}{6}}", True),
        (r"\left(3, \frac{\pi}{2}\right)", r"\boxed{(3,\frac{\pi}{2})}", True),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", True),
        (r"x^2+2x+1", r"\boxed{(x+1)^2}", True),
        (r"2\sqrt{3}", r"\boxed{2\sqrt{5}}", False),
        (r"288\pi", r"\boxed{288pi}", True),
        ("p - q", r"<think>\boxed{q - p}</think>\boxed{-q+p}", True),
    ],
)
def test_math(gold, answer, same):
    verdict = math.verify(problem(gold), trace(answer))
    assert (verdict.correct, verdict.reason) == (same, "correct" if same else "wrong")


def test_math_kills_what_takes_too_long_and_goes_on_from_any_thread():
    verdicts = []

    def judge():
        began = time.monotonic()
        verdicts.append(math.verify(problem("x^2"), trace(r"\boxed{9^{9^{9^{9}}}}"), timeout_s=0.5))
        verdicts.append(math.verify(problem(r"y\sqrt{3}"), trace(r"\boxed{\sqrt{3}y}")))
        verdicts.append(time.monotonic() - began)

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join(60)
    late, fine, seconds = verdicts
    assert (late.correct, late.reason) == (None, "timeout")
    assert fine.correct is True
    assert seconds < 30


def test_math_without_anything_to_compare():
    assert math.verify(problem(" "), trace("x")).reason == "bad_gold"
    assert math.verify(problem("x"), trace("<think>x")).reason == "truncated"
    assert math.verify(problem("x^2"), trace(r"\boxed{\text{?}}")).correct is False


@pytest.mark.skipif(not DATA.exists(), reason="needs shared/data")
def test_math500_solutions_are_right_and_quick():
    rows = [json.loads(line) for line in (DATA / "math" / "math500.jsonl").open()]
    assert all(math.verify(problem(r["answer"]), trace(r["solution"])).correct for r in rows)
    known = [math.judge_quickly(r["answer"], last_boxed(r["solution"])) for r in rows]
    assert sum(k is True for k in known) > 480
