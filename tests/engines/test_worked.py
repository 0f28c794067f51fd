"""Worked solutions are right, for every problem."""

from __future__ import annotations

from itertools import islice

import pytest

from limbeck.chat import split_think
from limbeck.engines import worked
from limbeck.errors import UserError
from limbeck.problems import make_problem, reasoning_gym
from limbeck.types import Request, Sampling

KNOBS = {
    "chain_sum": {
        "min_terms": 2,
        "max_terms": 6,
        "min_digits": 1,
        "max_digits": 4,
        "allow_negation": True,
    },
    "leg_counting": {"min_animals": 2, "max_animals": 7},
    "spell_backward": {},
}


@pytest.mark.parametrize("family", list(worked.SOLUTIONS))
def test_answers_are_the_problems_own(family):
    problems = list(islice(reasoning_gym.read(tasks={family: KNOBS[family]}, seed=1), 500))
    for problem in problems:
        text = worked.worked_solution(problem)
        thought = split_think(text)
        assert text.startswith("<think>")
        assert thought.thinking
        assert thought.answer == problem.answer


def test_the_engine_answers_every_request_in_its_own_name():
    problem = next(reasoning_gym.read(tasks={"chain_sum": {}}))
    requests = [Request(f"r{i}", problem, i, seed=i) for i in range(3)]
    traces = list(worked.connect().generate(requests, Sampling()))
    assert [(t.id, t.index, t.finish) for t in traces] == [(f"r{i}", i, "stop") for i in range(3)]


def test_a_family_without_a_function_is_the_users_mistake():
    problem = make_problem("?", "1", verifier="exact", meta={"family": "sudoku"})
    with pytest.raises(UserError, match=r"sudoku.*chain_sum"):
        list(worked.connect().generate([Request("r", problem, 0, 0)], Sampling()))


@pytest.mark.parametrize(
    ("family", "question", "text"),
    [
        ("chain_sum", "Sum: 2 + 3 - 0 =", "<think>2+3=5-0=5</think>5"),
        (
            "chain_sum",
            "Sum: 12 + 3 - 4 =",
            "<think>tens 1+0=1-0=1 ones 2+3=5-4=1 10+1=11</think>11",
        ),
        ("chain_sum", "Sum: 3 + -4 - -5 =", "<think>3-4=-1+5=4</think>4"),
        ("leg_counting", "if you have 2 dogs, 1 snake?", "<think>2x4=8 1x0=0 8+0=8</think>8"),
        ("spell_backward", "backward: sun", "<think>1s2u3n 3n2u1s</think>nus"),
    ],
)
def test_steps_read_well(family, question, text):
    problem = make_problem(question, "", verifier="exact", meta={"family": family})
    assert worked.worked_solution(problem) == text
