"""Judges: what counts as the answer, what is equal, and that no answer can hold a judge up."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import exact, final_answer, last_boxed, math, number
from limbeck.verifiers.judging import gradable, judge

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


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
    [
        ("sun", " sun\n", True),
        ("a b", "a  b", True),
        ("\uff12", "2", True),
        ("Sun", "sun", False),
        ("102", "10²", False),
        ("102", "10₂", False),
        ("21/2", "2½", False),
        ("1/2", "½", True),
        ("1/2", "1\u20442", True),
    ],
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10²", 100),
        ("10⁻²", "1/100"),
        ("10^2", 100),
        ("10^{2}", 100),
        ("2**3", 8),
        ("1.5×10³", 1500),
        (r"1.5 \times 10^{-3}", "0.0015"),
        ("½", "1/2"),
        ("-2½", "-5/2"),
        ("2 1\u20442", "5/2"),
        ("2 1/2 cups", "5/2"),
        ("2 and 1/2", "5/2"),
        (r"\boxed{2\frac{1}{2}}", "5/2"),
        (r"\frac{-1}{2}", "-1/2"),
        (r"\boxed{\frac{-1}{2}}", "-1/2"),
        (r"\boxed{-\frac{1}{-2}}", "1/2"),
        ("2 million", 2_000_000),
        ("$2.5 million dollars", 2_500_000),
        ("5 hundredths", "1/20"),
        ("2万元", 20_000),
        ("1 000 000", 1_000_000),
        ("1\u202f000\u00a0000", 1_000_000),
        (r"\boxed{12\,000}", 12_000),
        ("3\n100", 100),
        ("5 m²", 5),
        ("The area is 5 cm^2.", 5),
        (r"\boxed{5\,\mathrm{m}^2}", 5),
        ("18 km/h", 18),
        ("answer: –3", -3),
        ("The answer is –3.", -3),
        ("-$5", -5),
        ("\u22123", -3),
        ("The answer - 3", 3),
        ("range 1 - 3", 3),
        ("range 1 –3", 3),
        ("20%-30", 30),
        ("Items:\n- 3 apples\n- 5 pears", 5),
        ("4\n-5", -5),
        ("答案是5个", 5),
        (r"x \approx 5", 5),
        (r"5 \\ \end{align}", 5),
        ("is *5*", 5),
    ],
)
def test_number_reads(text, value):
    found = number.answer_number(text)
    assert found and found.value == Fraction(value)


HALF_NUMBERS = r"""
5x|5 x|\boxed{5x}|\boxed{5 x}|5\pi|5\sqrt{2}|\sqrt{2}|√2|m²|5m^2|x⁵|5ⁿ|x_2|x2|H2O|log₂8|10①
2\frac{3}{2}|2-1/2|1/2/3|3/4x|\frac{1}{2}3|\frac{1}{2}^2|(\frac12)^2|2*9|2 * 9|2 × 9|2·3|2 x 9
2x9|5 + 3|x - 3|f(2)|(2)(3)|2^3^2|0^{-1}|2^99999|99^400|3:45|1000,99|1,2|1.2.3|1,000,00|5k|$2M
--3|5 squared|10 or x|5 over 2|\boxed{1 2}|\boxed{5^n}|\boxed{10 or twenty}|\boxed{5 = x}"""


@pytest.mark.parametrize("text", HALF_NUMBERS.strip().replace("\n", "|").split("|"))
def test_number_reads_no_part_of_an_expression(text):
    assert number.answer_number(text) is None


@pytest.mark.parametrize("answer", ["1e999999999", "9" * 5000, "1/0", "many", r"\boxed{3x+5}"])
def test_number_unparsed(answer):
    assert number.verify(problem("5"), trace(answer)).reason == "unparsed"


@pytest.mark.parametrize("gold", ["many", "1e999999999", ""])
def test_number_bad_gold(gold):
    verdict = number.verify(problem(gold), trace("5"))
    assert (verdict.correct, verdict.reason) == (None, "bad_gold")


NONSENSE = r" |5 |a|1,111|5 a|- |\text{|{|5 / |111 |5|5^|5 *|\|$|² |½| m^|5 and |e5|kg |a |a=|"


@pytest.mark.parametrize("piece", [*NONSENSE.split("|"), "\n", "5 x 10^"])
def test_number_is_quick_on_long_nonsense(piece):
    began = time.process_time()
    number.verify(problem("5"), trace(piece * 20_000 + "!"))
    assert time.process_time() - began < 2


@pytest.mark.skipif(not DATA.exists(), reason="set LIMBECK_TEST_DATA to the test data")
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


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5x", "5"),
        ("5", "5x"),
        ("2x", "2y"),
        ("3a", "3b"),
        ("2i", "2"),
        ("4n", "4"),
        ("5x=5", "5"),
        ("x=5", "y=5"),
        ("12 am", "12 pm"),
        ("5 cm", "5 m"),
        ("10 or x", "10"),
        ("10", "10 or x"),
        ("1 2", "12"),
        (r"1\,2", "12"),
        ("1\n2", "12"),
        ("2", "2 million"),
        ("102", "10²"),
        ("0.333...", "0.333"),
        ("5", "5!"),
    ],
)
def test_math_refuses(gold, answer):
    assert math.judge_quickly(gold, answer) is not True
    assert math.verify(problem(gold), trace(rf"\boxed{{{answer}}}")).correct is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("18", "18 miles"), ("5", "x = 5"), ("1 000", "1000"), ("100", "10²"), ("a b", "ab")],
)
def test_math_forgives(gold, answer):
    assert math.verify(problem(gold), trace(rf"\boxed{{{answer}}}")).correct is True


@pytest.mark.parametrize("interrupted", ["_start", "_read"])
def test_math_worker_that_was_interrupted_answers_no_old_question(monkeypatch, interrupted):
    def interrupt(*_):
        whole(*_)  # the reply, if it is there, stays in the pipe
        raise KeyboardInterrupt

    worker = math.Worker()
    ask = {"gold": "x^2", "answer": "x^2"}
    if interrupted == "_start":
        whole = worker._start
    else:
        assert worker.ask(ask, 10) == "correct"
        whole = lambda seconds: time.sleep(0.2)  # noqa: E731
    monkeypatch.setattr(worker, interrupted, interrupt)
    with pytest.raises(KeyboardInterrupt):
        worker.ask(ask, 10)
    monkeypatch.undo()
    assert worker.process is None
    assert worker.ask({"gold": "x^2", "answer": "x^3"}, 10) == "wrong"
    worker.stop()


@pytest.mark.parametrize("unlucky", ["timeout", "error"])
def test_math_remembers_judgements_and_no_bad_luck(monkeypatch, unlucky):
    replies = iter([unlucky, "correct", "wrong"])
    monkeypatch.setattr(math._worker, "ask", lambda *_: next(replies))
    asked = [math.judge_slowly(f"remember {unlucky}", "x", 1.0) for _ in range(3)]
    assert asked == [unlucky, "correct", "correct"]


@pytest.mark.parametrize(
    ("verifier", "says"),
    [
        ("nubmer", "did you mean 'number'?"),
        ({"name": "math", "timeout": 3}, "timeout: unknown key; did you mean 'timeout_s'?"),
        ({"nam": "math"}, "write one like"),
        ("os:nope", "cannot import"),
    ],
)
@pytest.mark.parametrize("ask", [gradable, lambda problem: judge(problem, trace("5"))])
def test_a_problem_that_names_no_verifier_is_the_users_mistake(ask, verifier, says):
    asked = make_problem("?", "5", verifier=verifier)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        ask(asked)
    assert asked.id in caught.value.where
    assert repr(verifier) in caught.value.what


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


@pytest.mark.skipif(not DATA.exists(), reason="set LIMBECK_TEST_DATA to the test data")
def test_math500_solutions_are_right_and_quick():
    rows = [json.loads(line) for line in (DATA / "math" / "math500.jsonl").open()]
    assert all(math.verify(problem(r["answer"]), trace(r["solution"])).correct for r in rows)
    known = [math.judge_quickly(r["answer"], last_boxed(r["solution"])) for r in rows]
    assert sum(k is True for k in known) > 480
