"""Judges: what counts as the answer, what is equal, and that no answer can hold a judge up."""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.problems import make_problem
from limbeck.types import Trace, Verdict
from limbeck.verifiers import exact, final_answer, number
from limbeck.verifiers.judging import SLICE, begin, gradable, judge

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
        ("100 200", 200),
        ("100 000", 100_000),
        ("12 345", 12_345),
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
--3|5 squared|10 or x|5 over 2|\boxed{1 2}|\boxed{5^n}|\boxed{10 or twenty}|\boxed{5 = x}
41, not 42|It is 41. Not 42.|it isn't 42
41 or 42|somewhere between 41 and 42|\boxed{100 200}|\boxed{3 dozen}|\boxed{2 3 or 4}"""


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


judged_so_far: list[str] = []


def slow(problem, trace):
    time.sleep(0.03)
    judged_so_far.append(trace.id)
    return Verdict(trace.id, True, "5", "correct")


def test_who_stops_waits_for_no_verdict_but_those_begun():
    def interrupt(_):
        raise KeyboardInterrupt

    asked = make_problem("?", "5", verifier="tests.test_verifiers:slow")
    with pytest.raises(KeyboardInterrupt):
        begin([(asked, trace("5"))] * 500, 1, interrupt)
    assert len(judged_so_far) < 2 * SLICE
