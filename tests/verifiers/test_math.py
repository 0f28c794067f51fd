"""The math verifier: what is equal, what is not, in what time, and where it finds the answer."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import math, workers

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason="set LIMBECK_TEST_DATA to the test data")

EQUAL = r"""
1/2 @ 0.5
1/2 @ \dfrac12
3/4 @ \frac{-3}{-4}
1200 @ 1,200.00
10080 @ 10,\!080
58,500 @ 58500
1 000 @ 1000
1\frac{4}{5} @ 9/5
1 4/5 @ 1.8
7.8\times 10^2 @ 780
1/3 @ 0.\overline{3}
0.5 @ .50
033 @ 33
-5 @ −5
16 @ 4²
42 @ ４２
2½ @ 5/2
28\% @ 28
28\% @ 28 percent
90^\circ @ 90
90^\circ @ 90 \text{ degrees}
\$32,\!348 @ 32348
5.4 \text{ cents} @ 5.4cents
864 \mbox{ inches}^2 @ 864
5\text{ cm} @ 5 centimeters
18 @ 18 miles
12 @ 12^{\mathrm{th}} \text{ grade}
17\text{ any text} @ 17
3\sqrt{13} @ 3*sqrt(13)
2\sqrt{3} @ \sqrt{12}
\sqrt[3]{\frac{5}{12}} @ (\frac{5}{12})^{\frac{1}{3}}
\sqrt{2+\sqrt3} @ \frac{\sqrt6+\sqrt2}{2}
\sqrt[3]{-2} @ -\sqrt[3]{2}
288\pi @ 288pi
288\pi @ 288π
\left( 3, \frac{\pi}{2} \right) @ (3,pi/2)
\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right] @ [pi^2/8,5pi^2/4]
3 \pm 2 \sqrt{2} @ 3\pm2*sqrt(2)
3 \pm 2 \sqrt{2} @ 3 - 2\sqrt{2}, 3 + 2\sqrt{2}
1,-1,7,-7 @ \pm 1, \pm 7
6 - 5i @ -5i+6
\cot x @ \cotx
\sin 30^\circ @ 1/2
\log_2 8 @ 3
\cos(2x) @ 1-2\sin^2 x
\sin^2 x @ sin(x)^2
p - q @ -q+p
x^2+2x+1 @ (x+1)^2
(r+5)(r+5) @ (r+5)^2
(a+5)(b+2) @ (b+2)(a+5)
\frac{11+9a}{20} @ \frac{9a + 11}{20}
\frac{(n-1)!}{k!} \frac{n}{(n-k)!} @ \frac{n!}{k!(n-k)!}
\frac{q_{0}}{\sqrt{2 L C}} @ \frac{ q_{0} }{ \sqrt{2 C L}  }
k_{\mathrm{B}} T_{\mathrm{s}} @ T_s k_B
0.64N @ \frac{16}{25}N
f(x)=2x @ 2x
2x @ f(x)=2x
x=5 @ 5
k=1 @ 1
|AB|=1 @ 1
(p,q)=(3,2) @ (3,2)
\frac{NO}{BO}=\frac{1}{\sqrt{6}} @ \frac{1}{\sqrt{6}}
S_{MBCN}:S=7:32 @ 7:32
42 @ x = 40 + 2 = 42
4 @ 2+2=4
\frac{\sqrt{3}}{3} @ \frac{\sqrt{3}}{3} \approx 0.577
2x+4y-3=0 @ y=-\frac{1}{2}x+\frac{3}{4}
x^2/4 + y^2/3 = 1 @ x^2/16 + y^2/12 = 1/4
x^2+y^2=1 @ 1-x^2-y^2=0
y = 2x + 3 @ 2x - y = -3
1,-2 @ -2, 1
-2,-2 @ (-2, -2)
-5,7 @ 7 \text{ and } -5
\{1,2\} @ 2,1
\{1,2\} @ \{2,1,1\}
5 @ \{5\}
(11,7)or(7,11) @ (7,11),\ (11,7)
x=\frac12, x = \frac{-1 \pm \sqrt{13}}{4} @ \frac{-1+\sqrt{13}}4, \frac12, -\frac{1+\sqrt{13}}4
k = 45, n = 2 @ 45,2
(5, 8), (8, 5) @ (x, y) = (5, 8) \quad \text{and} \quad (8, 5)
(1,2) @ 1,2
(1,2) @ \begin{pmatrix}1\\2\end{pmatrix}
\begin{pmatrix}0&1\\1/2&0\end{pmatrix} @ \begin{bmatrix} 0 & 1 \\ \frac12 & 0 \end{bmatrix}
x \in [-2,7] @ [-2, 7]
[-2,7] @ -2 \le x \le 7
-2 \le x \le 7 @ 7 \geq x \geq -2
x > 1 @ (1, \infty)
x<1 @ -x>-1
x \leq 5 @ 5 \geq x
0<f(x)<1 @ (0,1)
x \neq 3 @ (-\infty,3)\cup(3,\infty)
x<2 \text{ or } x>3 @ (3,\infty) \cup (-\infty,2)
\{-1\} \cup [0,7) @ [0,7)\cup\{-1\}
\emptyset @ \{\}
4210_{5} @ 4210_5
12:00 @ 12:00
\text{(C)} @ C
\text{east} @ East
\text{Evelyn} @ Evelyn
\text{e} @ e
\text{A, C} @ C,A
\text{1:03 PM} @ 1:03 p.m.
\text{October 30} @ october 30
34\text{ sq. units} @ 34 sq units
\text{The midpoints form a hexagon} @ the midpoints form a hexagon.
(n-2) 2^{n}+1 @ n2^n - 2^{n+1} + 1
\approx 8.24 \text{ mph} @ 8.24
9\text{ min} @ 9
12 @ 12\text{ m}
20 @ 20^\circ \text{C}
20 @ 20^\circ C
9.8 \mathrm{~m} / \mathrm{s}^{2} @ 9.8\text{ m/s}^2
9.8 \mathrm{~kg} \cdot \mathrm{m}^{2} / \mathrm{s} @ 9.8
12\frac12\% @ 12.5\%
1 4/5 \% @ 1.8\%
2.5 \text{ million} @ 2{,}500{,}000
180^\circ-2\alpha @ 180-2\alpha
\mathbb{R} @ (-\infty,\infty)
\mathbb{R}\setminus\{2\} @ x \neq 2
\begin{pmatrix} 1 \\[4pt] 2 \end{pmatrix} @ \begin{pmatrix}1\\2\end{pmatrix}
{n \choose 2} @ \frac{n(n-1)}{2}
6 @ \text{six}
x_1=1, x_2=-3 @ x=1, x=-3
f^{-1}(x)=\frac{x-1}{2} @ \frac{x-1}{2}
\sqrt{ab} @ \sqrt{a}\sqrt{b}
\lceil n/2 \rceil @ \lfloor \frac{n+1}{2} \rfloor
\int_0^1 2x\,dx @ 1
2 @ \sum_{k=0}^{1} 2k
"""

DIFFERENT = r"""
5x @ 5
2x @ 2y
2i @ 2
5x=5 @ 5
42 @ 41=42
2 x @ 2 X
\text{A, C} @ A, D
1:03\text{ am} @ 1:03\text{ pm}
42 @ x=41=42
42 @ 42=43
x=5 @ y=5
x=5 @ x=6
0 @ a+3z=0
0 @ x - y = 0
7 = 11a+c @ 11a+c
5x - 7y + 11z + 4 = 0 @ x + y - z + 2 = 0
x^2+y^2=1 @ x^2-y^2=1
f(n)=n^2 @ f(n)=n
1/2004! @ 1/2006!
2^{-99} @ 2^{-98}
1-1/e @ 1+1/e
10^{100} @ 10^{100}+1
\sqrt2 @ \sqrt2+10^{-60}
1/3 @ 0.333333
1/3 @ 0.3333333333333333333333333333333333
0.5 @ 0.5000001
\pi @ 3.14159265358979323846
\sqrt2 @ 1.41421356
50\% @ 0.5
50\% @ 5000
0.05 @ 5\%
(1,2) @ \{1,2\}
\{1,2\} @ (1,2)
(1,2) @ (2,1)
(1,2) @ [1,2]
(1,2] @ (1,2)
[2,\infty) @ (2,\infty)
x>2 @ x \ge 2
x>2 @ x<2
\{1,2\} @ \{1,2,3\}
1,2 @ 1
1 @ 1,2
(3,3), (1,1) @ (1,1)
\pm 2021 @ 2021
2021 @ \pm 2021
10 @ 10 \text{ or } x
42 @ 42 \text{ or } 43
42 @ 42 \text{ not}
42 @ [41,43]
42 @ x>41
5 @ 5!
5 \text{ cm} @ 5 \text{ m}
12 am @ 12 pm
2 @ 2 million
12:00 @ 1:00
7:32 @ 14:32
52_8 @ 52_9
p=2,q=3 @ p=3,q=2
(x,y)=(1,2) @ (y,x)=(1,2)
\lceil n/2 \rceil @ \lfloor n/2 \rfloor+1
\lceil x \rceil @ \lfloor x \rfloor + 1
\lceil \log_2 n \rceil @ \lfloor \log_2 n \rfloor + 1
\lfloor x \rfloor @ x
\sqrt{a^2b} @ a\sqrt{b}
2 @ 2 \text{ thirds}
2 @ \text{two thirds}
5 @ 5 \text{ below zero}
5 @ (i^2)!
5 @ ½i²!
5 @ 0^{\log_i 2}
\mathbb{R} @ \mathbb{R}\setminus\{2\}
\mathbb{R}\setminus\{2\} @ \mathbb{R}\setminus\{3\}
2 \text{ million} @ 2 \text{ billion}
12\text{ m} @ 12\text{ g}
12 @ 12m
\sin 30^\circ @ \sin 30
1 2 @ 12
1\,2 @ 12
100 200 @ 100200
102 @ 10²
\frac{\pi}{2} @ 90^\circ
x @ |x|
\sqrt{x^2} @ x
\text{even} @ \text{odd}
A @ B
E @ e
\text{Evelyn} @ Evenly
4 @ (lambda: 4)()
4 @ \text{__import__('os').getpid() or } 4
4 @ int(4)
137 \frac{1}{2} @ 1371/2
\frac{11+9a}{20} @ 11+9a/20
\begin{pmatrix}1&2\end{pmatrix} @ \begin{pmatrix}2&1\end{pmatrix}
1 @ \int_0^1 3x\,dx
"""


def pairs(table):
    return [tuple(line.split(" @ ")) for line in table.strip().splitlines()]


def trace(text, finish="stop"):
    return Trace("t", "p", 0, text, finish, "model")


def problem(answer):
    return make_problem("?", answer, verifier="math")


def equal(gold, answer):
    return math.judge(gold, answer, 20.0) == "correct"


@pytest.mark.parametrize(("gold", "answer"), pairs(EQUAL))
def test_equal(gold, answer):
    assert equal(gold, answer)
    assert equal(answer, gold)
    assert math.verify(problem(f"${gold}$"), trace(rf"so \boxed{{{answer}}}.")).correct


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_different(gold, answer):
    assert not equal(gold, answer)
    assert not equal(answer, gold)
    verdict = math.verify(problem(gold), trace(rf"so \boxed{{{answer}}}."))
    assert verdict.correct in (False, None)
    assert verdict.reason in ("wrong", "unparsed", "bad_gold")


def test_the_order_of_the_two_changes_nothing():
    sides = [side for pair in pairs(EQUAL) + pairs(DIFFERENT) for side in pair]
    sides = [side for side in sides if not any(word in side for word in ("int_", "sum_"))]
    for a, b in itertools.combinations(sides[::2], 2):
        assert (math.decide(a, b) == "correct") == (math.decide(b, a) == "correct"), (a, b)


# Rewritten values stay equal, changed ones do not

wholes = st.integers(-10_000, 10_000)
fractions = st.builds(Fraction, wholes, st.integers(1, 400))


@st.composite
def numbers_written(draw, value):
    """A way to write a fraction."""
    factor = draw(st.integers(1, 9)) * draw(st.sampled_from([1, -1]))
    above, below = value.numerator * factor, value.denominator * factor
    ways = [
        f"{above}/{below}" if below > 0 else f"\\frac{{{above}}}{{{below}}}",
        f"\\dfrac{{{above}}}{{{below}}}",
        f"{{{above}}} \\cdot {{{below}}}^{{-1}}",
        f"${value.numerator}/{value.denominator}$",
        f"{value.numerator}/{value.denominator} \\text{{ metres}}",
        f"x = \\frac{{{value.numerator}}}{{{value.denominator}}}",
    ]
    whole, rest = divmod(abs(value), 1)
    if rest and whole:
        sign = "-" if value < 0 else ""
        ways.append(f"{sign}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}")
    if value.denominator == 1:
        ways += [f"{value.numerator:,}", f"{value}.0", f"{value.numerator:,}".replace(",", r",\!")]
    return draw(st.sampled_from(ways))


@given(st.data(), fractions)
@settings(max_examples=150, deadline=None)
def test_a_number_is_itself_in_whatever_dress(data, value):
    one, other = (data.draw(numbers_written(value)) for _ in range(2))
    assert equal(one, other)


@given(st.data(), fractions, fractions)
@settings(max_examples=150, deadline=None)
def test_another_number_is_another_number(data, value, change):
    if change == 0:
        return
    one, other = (data.draw(numbers_written(v)) for v in (value, value + change))
    assert not equal(one, other)


leaves = st.one_of(
    st.integers(1, 30).map(str),
    st.sampled_from(["x", "y", "n", r"\pi", "e", r"\sqrt{2}", r"\sqrt{3}", r"\frac{2}{3}"]),
)
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} + {pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} - {pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"{{{pair[0]}}} \\cdot {{{pair[1]}}}"),
        inner.map(lambda one: f"({one})^2"),
        inner.map(lambda one: f"\\sin{{({one})}}"),
    ),
    max_leaves=5,
)


@given(expressions, expressions, expressions, st.integers(2, 9))
@settings(max_examples=150, deadline=None)
def test_rewritten_expressions_stay_equal_and_changed_ones_do_not(a, b, c, k):
    assert equal(f"({a}) + ({b})", f"({b}) + ({a})")
    assert equal(f"({a})({b})({c})", f"({c})({a})({b})")
    assert equal(f"({a})(({b}) + ({c}))", f"({a})({b}) + ({a})({c})")
    assert equal(a, f"\\frac{{{k} \\cdot ({a})}}{{{k}}}")
    assert equal(a, f"({a}) + ({b}) - ({b})")
    assert not equal(a, f"({a}) + \\frac{{1}}{{{k}}}")
    assert not equal(a, f"({a}) + 10^{{-{k * 9}}}")


@given(st.lists(fractions, min_size=2, max_size=7, unique=True), st.randoms())
@settings(max_examples=60, deadline=None)
def test_lists_and_sets_have_no_order_and_tuples_do(values, random):
    items = [f"\\frac{{{v.numerator}}}{{{v.denominator}}}" for v in values]
    mixed = random.sample(items, len(items))
    listed, tupled = ", ".join(items), f"({', '.join(items)})"
    assert equal(listed, ", ".join(mixed))
    assert equal(listed, rf"\{{{'; '.join(mixed)}\}}")
    assert equal(tupled, f"({', '.join(mixed)})") == (mixed == items)
    assert not equal(tupled, rf"\{{{listed}\}}")
    assert not equal(listed, ", ".join(items[1:]))
    assert not equal(", ".join(items[1:]), listed)


# Time, memory, threads


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "10^{10^{10}}",
        "100000000!",
        "((((5!)!)!)!)!",
        r"\binom{10^9}{5\cdot10^8}",
        "1" + "0" * 2000,
        "(" * 2000 + "1" + ")" * 2000,
        r"\sqrt{" * 300 + "2" + "}" * 300,
        r"\frac{1}{1+" * 200 + "1" + "}" * 200,
        "(a+b+c+d)^{400}",
        "+".join(f"x_{{{n}}}^{{{n}}}" for n in range(300)),
        ",".join(f"\\sqrt{{{n}}}" for n in range(300)),
        "1e1000000000",
        r"\tan(10^{1000})",
        "|" * 500,
        r"\text{" * 500,
        "\\" * 3000,
        "9" * 100_000,
    ],
)
def test_no_answer_costs_much(answer):
    for gold in ("5", r"\sqrt{2}+x"):
        verdict = math.verify(problem(gold), trace(rf"\boxed{{{answer}}}"))
        assert not verdict.correct
        assert verdict.reason in ("wrong", "unparsed")


@pytest.mark.parametrize("gold", ["", " ", "9^{9^{9^9}}", "(10^9)!", r"\frac{1}{", r"\foo{3}"])
def test_a_gold_answer_that_is_none(gold):
    verdict = math.verify(problem(gold), trace(r"\boxed{5}"))
    assert (verdict.correct, verdict.reason) == (None, "bad_gold")


def test_a_gold_answer_that_cannot_be_read_is_still_itself():
    for gold in (r"\frac{1}{", "9^{9^{9^9}}", "f: x ↦ ☃"):
        assert math.judge(gold, f" {gold}") == "correct"


def test_what_is_late_is_a_timeout_and_nothing_remembers_it(monkeypatch):
    replies = iter([workers.Late("late"), workers.Died("died"), "correct", "wrong"])

    def ask(*_):
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(workers, "ask", ask)
    gold = r"\int_0^1 \text{remember} x dx"
    assert [math.judge(gold, "x") for _ in range(4)] == ["timeout", "error", "correct", "correct"]


def test_a_worker_that_is_killed_goes_on_from_any_thread():
    verdicts = []

    def judge():
        slow = r"\boxed{\int_0^1 \frac{\sin(x^x)}{1+x^{17}+e^x} dx}"
        verdicts.append(math.verify(problem("5"), trace(slow), timeout_s=0.05))
        fine = r"\boxed{\int_0^1 2x\,dx}"
        verdicts.append(math.verify(problem("1"), trace(fine), timeout_s=20))

    threads = [threading.Thread(target=judge) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert sorted(str(verdict.correct) for verdict in verdicts) == ["None"] * 3 + ["True"] * 3


# Where the answer stands


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("2", r"<think>\boxed{1}</think>It is \boxed{2}."),
        ("2", r"\boxed{1} no, wait: \boxed{2}"),
        ("1, 2", r"\boxed{1} and \boxed{2}"),
        ("(2, 2), (6, 2)", r"$$\boxed{(2, 2)} \quad \text{and} \quad \boxed{(6, 2)}$$"),
        (r"\frac{639}{40}", r"$\boxed{15\frac{39}{40}},$ or $\boxed{\frac{639}{40}}$ inches"),
        ("5", r"\boxed 5"),
        ("x^2", "**Final Answer:** $x^2$"),
        ("x^2", r"The answer is \(x^2\)."),
        ("x^2", "#### x^2"),
        ("72", "3 + 4 = 7\nA: 72"),
        ("4", "Therefore, it takes 4 beakers of water to fill the tank."),
        (r"\frac{1}{2}", r"Hence the probability is $\frac{1}{2}$."),
        ("3", "x = 3"),
    ],
)
def test_finds_the_answer(gold, text):
    assert math.verify(problem(gold), trace(text)).correct


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("42", r"<think>\boxed{42}</think>I cannot decide."),
        ("42", r"\boxed{42} or \boxed{43}"),
        ("42", r"\boxed{43} or \boxed{42}"),
        ("42", "It is 41 or 42."),
        ("42", "I guess it might be 42."),
        ("42", r"\boxed{42}, no, \boxed{43}"),
        ("9", "We go on.\n\nLet \\(H = 9\\):\n\\[ 10D + E"),
        ("42", "x"),
    ],
)
def test_finds_no_answer_or_another(gold, text):
    assert math.verify(problem(gold), trace(text)).correct is False


def test_says_why_there_is_nothing():
    assert math.verify(problem("x"), trace("<think>x")).reason == "truncated"
    assert math.verify(problem("x"), trace("x", "length")).reason == "truncated"
    assert math.verify(problem("x"), trace("x", "length"), answer_in="anywhere").correct
    assert math.verify(problem("x"), trace("", "error")).correct is None
    assert math.verify(problem("x"), trace(r"\boxed{}")).reason == "unparsed"


# Real answers


@needs_data
def test_math500_solutions_are_right_without_a_worker():
    rows = [json.loads(line) for line in (DATA / "math" / "math500.jsonl").open()]
    for row in rows:
        assert math.verify(problem(row["answer"]), trace(row["solution"])).correct
        assert math.decide(row["answer"], row["answer"]) == "correct"


@needs_data
def test_agrees_with_checked_labels():
    rows = list(map(json.loads, (DATA / "verifier_pairs" / "math500_gpt_answers.jsonl").open()))
    for row in rows:
        if row["equal_checked"] is not None:
            verdict = math.verify(problem(row["gold"]), trace(row["prediction"]))
            assert verdict.correct is row["equal_checked"], row
    folder = DATA / "reasoning_traces"
    with gzip.open(folder / "qwen25_math500.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            verdict = math.verify(problem(row["gold"]), trace(row["response"]))
            assert bool(verdict.correct) is row["correct_checked"], row["id"]


@needs_data
def test_rejects_hardly_any_right_answer():
    rows = list(map(json.loads, (DATA / "verifier_pairs" / "model_answers.jsonl").open()))
    right = [row for row in rows if row["equal"]]
    refused = [
        row
        for row in right
        if not math.verify(problem(row["gold"]), trace(rf"\boxed{{{row['prediction']}}}")).correct
    ]
    assert len(refused) <= 0.005 * len(right), refused
