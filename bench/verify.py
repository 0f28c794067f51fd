"""Verifying speed: Limbeck's `math` verifier against math-verify's parse and verify.

Both sides get gold answers and whole traces of 500 to 1500 letters, each once: every answer is
another one, so that nothing remembers. Half of them are wrong. math-verify works in this process
at its quickest setting (boxed LaTeX alone, no time limit); Limbeck's side is what a stage calls,
its worker process included, where a case needs one.

    python bench/verify.py           # 2,000 answers a round, some 10 minutes
    python bench/verify.py --quick   # 300 answers, two rounds
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import measure

measure.one_thread()

from math_verify import LatexExtractionConfig, parse, verify  # noqa: E402

from limbeck.problems import make_problem  # noqa: E402
from limbeck.types import Problem, Trace  # noqa: E402
from limbeck.verifiers import math  # noqa: E402

STEPS = [
    "Let us denote the number that we look for by \\(n\\) and write down what we know about it.",
    "From the first condition we get \\( {a} + {b} = {c} \\), which we will need again below.",
    "Multiplying both sides by ${b}$ gives ${a} \\cdot {b} = {d}$, so that is settled.",
    "Wait, let me check this once more: {a} times {b} is {d}, and that is what we had.",
    "The remaining case can be treated in the same way, and it adds nothing new.",
    "Substituting, \\[ \\frac{{d}}{{b}} = {a}, \\] as expected.",
    "Now there are {c} of them in all, of which {a} have already been counted.",
]
BOXED = [LatexExtractionConfig(boxed_match_priority=0)]


@dataclass(frozen=True)
class Case:
    """A gold answer, a trace, and whether the trace is right."""

    problem: Problem
    trace: Trace
    right: bool


def written(draw: random.Random) -> str:
    """The thinking of a trace, 500 to 1500 letters."""
    length, text = draw.randint(400, 1350), ""
    while len(text) < length:
        a, b = draw.randint(2, 99), draw.randint(2, 99)
        step = draw.choice(STEPS)
        for name, value in {"{a}": a, "{b}": b, "{c}": a + b, "{d}": a * b}.items():
            step = step.replace(name, str(value) if "frac" not in step else f"{{{value}}}")
        text += step + " "
    return f"<think>\n{text}\n</think>\n\n"


def case(draw: random.Random, gold: str, answer: str, right: bool) -> Case:
    text = f"{written(draw)}So the final answer is $\\boxed{{{answer}}}$."
    return Case(
        make_problem("?", gold, verifier="math"),
        Trace("t", "p", 0, text, "stop", "model"),
        right,
    )


def plain_number(draw: random.Random, turn: int) -> tuple[str, str, str]:
    """(gold, the same number, another number)."""
    if turn % 4 == 3:
        value = draw.randint(1, 10**6) * 4 + 1
        return f"{value / 4}", f"{value / 4}0", f"{(value + 4) / 4}"
    value = draw.randint(-(10**6), 10**8) * 10 + turn % 10
    return str(value), str(value), str(value + draw.randint(1, 50))


def fraction(draw: random.Random, turn: int) -> tuple[str, str, str]:
    value = Fraction(draw.randint(1, 10**5), draw.randint(2, 10**4)) + Fraction(turn, 10007)
    factor = draw.randint(2, 5)
    above, below = value.numerator, value.denominator
    gold = f"\\frac{{{above}}}{{{below}}}"
    return (
        gold,
        f"\\dfrac{{{above * factor}}}{{{below * factor}}}",
        f"\\dfrac{{{above + 1}}}{{{below}}}",
    )


def expression(draw: random.Random, turn: int) -> tuple[str, str, str]:
    a, b, c = draw.randint(2, 999), draw.randint(2, 999), turn + 2
    kinds = [
        (f"{a}\\sqrt{{{b}}}+{c}", f"{c}+{a}\\sqrt{{{b}}}", f"{c}+{a}\\sqrt{{{b + 1}}}"),
        (f"(x+{a})(x-{c})", f"x^2+{a}x-{c}x-{a * c}", f"x^2+{a}x-{c}x+{a * c}"),
        (f"\\frac{{{a}\\pi}}{{{c}}}", f"\\frac{{{2 * a}}}{{{2 * c}}}\\pi", f"\\frac{{{a}}}{{{c}}}"),
        (f"({a}, {b}, {c})", f"({a},{b},{c})", f"({a},{c + b},{b})"),
        (f"{a}e^{{{c}}}-{b}", f"-{b}+{a}e^{{{c}}}", f"-{b}+{a}e^{{{c + 1}}}"),
        (f"\\left[-{a}, {c}\\right)", f"[-{a},{c})", f"[-{a},{c}]"),
    ]
    return kinds[turn % len(kinds)]


def integral(draw: random.Random, turn: int) -> tuple[str, str, str]:
    """What Limbeck asks its worker, hence math-verify."""
    power, factor = turn % 7 + 2, draw.randint(2, 10**6)
    value = Fraction(factor, power + 1)
    gold = f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    return (
        gold,
        f"\\int_0^1 {factor}x^{power}\\,dx",
        f"\\int_0^1 {factor + 1}x^{power}\\,dx",
    )


def cases(kinds: Sequence[tuple[Callable, int]], size: int, seed: int) -> list[Case]:
    """`size` cases, of each kind its share in percent, shuffled; every second one is wrong."""
    draw, found = random.Random(seed), []
    for make, share in kinds:
        for turn in range(size * share // 1000):
            gold, same, other = make(draw, turn)
            right = bool(draw.getrandbits(1))
            found.append(case(draw, gold, same if right else other, right))
    draw.shuffle(found)
    return found


PLAIN = [(plain_number, 1000)]
MIX = [(plain_number, 700), (fraction, 200), (expression, 95), (integral, 5)]


def ours(case: Case) -> bool:
    return math.verify(case.problem, case.trace, timeout_s=20.0).correct is True


def theirs(case: Case) -> bool:
    gold = parse(f"${case.problem.answer}$", parsing_timeout=None)
    answer = parse(case.trace.text, extraction_config=BOXED, parsing_timeout=None)
    return verify(gold, answer, timeout_seconds=None)


def check(kinds: Sequence[tuple[Callable, int]], size: int) -> tuple[int, int]:
    """The gate: ours is always right. (cases, how many of math-verify's verdicts are wrong)."""
    found = cases(kinds, size, seed=1)
    misses = 0
    for one in found:
        assert ours(one) is one.right, (one.problem.answer, one.trace.text[-80:])
        misses += theirs(one) is not one.right
    return len(found), misses


def judged_all(judge: Callable[[Case], bool], found: Sequence[Case]) -> float:
    """Verdicts a second, on the clock: a worker process counts as much as this one."""
    begin = time.perf_counter()
    for one in found:
        judge(one)
    return len(found) / (time.perf_counter() - begin)


def interleaved(
    kinds: Sequence[tuple[Callable, int]], size: int, repeats: int
) -> dict[str, list[measure.Rate]]:
    """Rates of both sides over the same fresh cases; the first round warms up."""
    rates: dict[str, list[measure.Rate]] = {"limbeck": [], "math-verify": []}
    for turn in range(repeats + 1):
        found = cases(kinds, size, seed=100 + turn)
        for name, judge in (("math-verify", theirs), ("limbeck", ours)):
            rate = judged_all(judge, found)
            print(f"  {turn or 'warm-up':>8}  {name:<12} {rate:12,.1f} a second", flush=True)
            if turn:
                rates[name].append(measure.Rate(rate, False))
    return rates


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    quick = options.parse_args().quick
    logging.disable(logging.WARNING)  # math-verify's, that it has no time limit
    size, repeats = (300, 2) if quick else (2000, 5)
    lines, rates = [], {}
    for name, kinds, target in (("plain_numbers", PLAIN, 100.0), ("mix", MIX, 4.0)):
        count, misses = check(kinds, size)
        print(f"{name}: {count} verdicts of Limbeck's right, {misses} of math-verify's wrong")
        assert name != "plain_numbers" or not misses, "no full agreement on plain numbers"
        found = interleaved(kinds, size, repeats)
        median, low, high = measure.ratio(found["limbeck"], found["math-verify"])
        more = {"low": round(low, 2), "high": round(high, 2), "math_verify_wrong": misses}
        lines.append(measure.case(name, median, "x math-verify", target, **more))
        rates[name] = {who: round(max(r.per_second for r in many)) for who, many in found.items()}
    to = None if quick else Path(__file__).parent / "results" / "verify.json"
    packages = ["math-verify", "sympy", "limbeck"]
    measure.finish("verify", lines, packages, to, best_per_second=rates, threads=1)


if __name__ == "__main__":
    main()
