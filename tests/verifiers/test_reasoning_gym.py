"""reasoning_gym's own scorers as judges: every family's answer passes, and hostile ones do not."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import islice

import pytest

from limbeck.errors import UserError
from limbeck.problems import reasoning_gym as source
from limbeck.types import Trace
from limbeck.verifiers import judging, reasoning_gym, workers

pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS

NEEDS_DATA_SETS = ("composite",)  # a mix of others, whose knobs no recipe can say
FAMILIES = sorted({*DATASETS} - {*NEEDS_DATA_SETS, *source.NO_ANSWER, *reasoning_gym.UNSOUND})


def problems(family, num=1, knobs=None, verifier="reasoning_gym"):
    return list(islice(source.read(tasks={family: knobs or {}}, seed=5, verifier=verifier), num))


def judged(problem, answer, finish="stop"):
    return judging.judge(problem, Trace("t", problem.id, 0, answer, finish, "model"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_its_own_answer(family):
    looked_at_closely = family in reasoning_gym.MADE_OF or family in reasoning_gym.EVALUATED_TOO
    for problem in problems(family, 4 if looked_at_closely else 1):
        assert judged(problem, f"<think>hm</think>{problem.answer}").reason == "correct"


def test_families_with_one_answer_stay_with_exact_and_the_others_are_scored():
    chosen = {f: problems(f, verifier=None)[0].verifier for f in ("chain_sum", "countdown")}
    assert chosen == {"chain_sum": "exact", "countdown": "reasoning_gym"}
    assert not {*source.MANY_ANSWERS} & {*reasoning_gym.UNSOUND}
    assert {*source.MANY_ANSWERS} < {*FAMILIES}


def test_another_right_answer_is_right_and_a_nearly_right_one_is_wrong():
    problem = problems("countdown")[0]
    turned = f"0 + {problem.answer}"
    assert judged(problem, f"({problem.answer})").correct is True
    assert judged(problem, turned).reason == "wrong"
    assert judged(problem, str(problem.meta["target"])).correct is False
    hanoi = problems("tower_of_hanoi")[0]
    assert (
        judged(hanoi, hanoi.answer.splitlines()[0] if "\n" in hanoi.answer else "x").correct
        is False
    )


def test_puzzle24_is_about_its_own_numbers():
    problem = problems("puzzle24")[0]
    assert judged(problem, "1 + 2 + 10 + 11").correct is False
    assert judged(problem, "24").correct is False


def test_knobs_of_the_family_reach_its_scorer():
    knobs = {"min_num_decimal_places": 1, "max_num_decimal_places": 1}
    strict = problems("decimal_arithmetic")[0]
    loose = problems("decimal_arithmetic", knobs=knobs)[0]
    assert (strict.meta["knobs"], loose.meta["knobs"]) == ({}, knobs)
    off = str(float(loose.answer) + 0.09)
    assert judged(loose, off).correct is True
    assert judged(strict, str(float(strict.answer) + 0.09)).correct is False


HOSTILE = [
    ("countdown", "__import__('os').system('touch {file}')"),
    ("simple_integration", "__import__('os').system('touch {file}')"),
    ("simple_integration", "(lambda: open('{file}', 'w'))()"),
    ("intermediate_integration", "exec(\"open('{file}', 'w')\")"),
    ("polynomial_multiplication", "().__class__.__base__.__subclasses__()"),
    ("polynomial_multiplication", "open('{file}', 'w')"),
    ("string_insertion", "[open('{file}', 'w')]"),
    ("spiral_matrix", "[open('{file}', 'w')]"),
    ("binary_matrix", "[open('{file}', 'w')]"),
    ("n_queens", "[open('{file}', 'w')]"),
    ("puzzle24", "open('{file}', 'w')"),
]


@pytest.mark.parametrize(("family", "answer"), HOSTILE)
def test_no_answer_is_run(family, answer, tmp_path):
    file = tmp_path / "harm"
    verdict = judged(problems(family)[0], answer.replace("{file}", str(file)))
    assert (verdict.correct, verdict.reason) == (False, "unparsed")
    assert not file.exists()


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("bitwise_arithmetic", {"problem": "open('{file}', 'w')"}),
        ("simple_integration", {"integrand": "open('{file}', 'w')"}),
        ("polynomial_multiplication", "open('{file}', 'w')"),
    ],
)
def test_no_problem_is_run_either(family, change, tmp_path):
    file, problem = tmp_path / "harm", problems(family)[0]
    hostile = json.loads(json.dumps(change).replace("{file}", str(file)))
    if isinstance(hostile, str):
        changed = replace(problem, answer=hostile)
    else:
        changed = replace(problem, meta={**problem.meta, **hostile})
    assert judged(changed, problem.answer).reason == "bad_gold"
    assert not file.exists()


@pytest.mark.parametrize(
    ("formula", "harmless"),
    [
        ("x**3/3 - 2*x + C", True),
        ("-cos(3*x - 10)**3/3 + .5*sqrt(x)", True),
        ("asinh(x) + log(Abs(x)) + pi*E", True),
        ("x.real", False),
        ("(1).real", False),
        ("1..real", False),
        ("eval(x)", False),
        ("e x e c (x)", True),  # four names of a letter each, which call nothing
        ("x['y']", False),
        ("lambda: 1", False),
        ("_", False),
    ],
)
def test_a_formula_has_no_names_and_no_attributes(formula, harmless):
    assert reasoning_gym.is_harmless("simple_integration", formula) is harmless


@pytest.mark.parametrize("family", sorted(reasoning_gym.MADE_OF))
@pytest.mark.parametrize("unit", ["1", "1.", "x", "x ", " ", "1 ", "(", "A is a b, ", "1:1 days, "])
def test_long_answers_cost_no_time(family, unit):
    began = time.process_time()
    assert not reasoning_gym.is_harmless(family, unit * (19_000 // len(unit)) + "!")
    assert time.process_time() - began < 2  # of seconds; backtracking would take years


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("complex_arithmetic", "nan"),
        ("complex_arithmetic", "nan + nani"),
        ("time_intervals", "9" * 5000),
        ("time_intervals", "1 2 3 4 5 days"),
        ("knights_knaves", "not Liam is a sage"),
        ("quantum_lock", "Any button will do"),
        ("prime_factorization", "two and three"),
        ("boxnet", "{}"),
        ("jugs", "[[[[[[[[["),
        ("sudoku", "nan"),
        ("chain_sum", "nan"),
        ("products", ":"),
        ("shortest_path", "{}"),
        ("codeio", "{" * 3000),
    ],
)
def test_nonsense_is_wrong(family, answer):
    if family in source.NO_ANSWER:
        with pytest.raises(UserError, match="gives no answers"):
            problems(family)
        return
    assert judged(problems(family)[0], answer).correct is False


def test_an_answer_that_holds_the_scorer_up_is_given_up(tmp_path):
    verifier = {"name": "reasoning_gym", "timeout_s": 1.0}
    problem = problems("simple_integration", verifier=verifier)[0]
    began = time.monotonic()
    verdict = judged(problem, "9**9**9**9*x")
    assert (verdict.correct, verdict.reason) in ((None, "timeout"), (None, "error"))
    assert time.monotonic() - began < 60
    assert judged(problem, problem.answer).correct is True


@pytest.mark.parametrize("family", sorted(reasoning_gym.UNSOUND))
def test_scorers_that_pass_wrong_answers_are_refused(family):
    with pytest.raises(UserError, match="full marks"):
        judged(problems(family)[0], "1")


def test_a_problem_of_no_family_is_refused():
    problem = problems("chain_sum")[0]
    stranger = type(problem)("p", problem.messages, "1", "reasoning_gym")
    with pytest.raises(UserError, match="no reasoning_gym family"):
        judged(stranger, "1")


def test_unfinished_thinking_and_a_broken_worker(monkeypatch):
    problem = problems("chain_sum")[0]
    assert judged(problem, f"<think>{problem.answer}").reason == "truncated"

    def die(*_):
        raise workers.Died("gone")

    monkeypatch.setattr(workers, "ask", die)
    verdict = judged(problem, problem.answer)
    assert (verdict.correct, verdict.reason) == (None, "error")
