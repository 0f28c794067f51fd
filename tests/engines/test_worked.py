"""Worked solutions are right, for every problem."""

from __future__ import annotations

from itertools import islice

import pytest

from limbeck import rewards
from limbeck.chat import split_think
from limbeck.engines import worked
from limbeck.errors import UserError
from limbeck.languages import language_share
from limbeck.problems import make_problem, reasoning_gym
from limbeck.types import Request, Sampling
from limbeck.verifiers import exact

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


def read(family, num, knobs=None):
    return list(islice(reasoning_gym.read(tasks={family: knobs or KNOBS[family]}, seed=1), num))


def write(problems, **knobs):
    requests = [Request(f"r{i}", problem, 0, seed=i) for i, problem in enumerate(problems)]
    return list(worked.connect(**knobs).generate(requests, Sampling()))


def share_right(problems, traces):
    right = [exact.verify(*pair).correct is True for pair in zip(problems, traces, strict=True)]
    return sum(right) / len(right)


DIGITS = {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}


def test_samples_of_a_problem_differ_and_each_seed_writes_its_own_again():
    problem = read("chain_sum", 1, DIGITS)[0]
    texts = [trace.text for trace in write([problem] * 50, slips=0.3, checks=0.3)]
    assert len(set(texts)) > 10
    assert texts == [trace.text for trace in write([problem] * 50, slips=0.3, checks=0.3)]


@pytest.mark.parametrize("family", list(worked.SOLUTIONS))
def test_slips_make_answers_wrong_and_checks_mend_them(family):
    problems = read(family, 400)
    shares = [
        share_right(problems, write(problems, slips=slips, checks=checks))
        for slips, checks in ((0.0, 0.5), (0.2, 0.5), (0.2, 0.0), (1.0, 1.0))
    ]
    assert shares[0] == shares[3] == 1.0
    assert 0.1 < shares[2] < shares[1] - 0.1 < 0.9


def test_each_step_slips_with_the_given_probability():
    question = "Sum: 2 + 3 + 4 + 5 ="  # three steps, of which none makes good another's slip
    problem = make_problem(question, "14", verifier="exact", meta={"family": "chain_sum"})
    right = share_right([problem] * 2000, write([problem] * 2000, slips=0.3))
    assert right == pytest.approx(0.7**3, abs=0.04)


def test_a_slip_carries_on_and_a_check_says_the_step_again():
    problem = make_problem("Sum: 2 + 3 + 4 =", "9", verifier="exact", meta={"family": "chain_sum"})
    texts = {trace.text for trace in write([problem] * 500, slips=0.5, checks=0.7)}
    assert "<think>2+3=4+4=8</think>8" in texts
    assert "<think>2+3=4+4=7</think>7" in texts
    assert "<think>2+3=4 wait 2+3=5+4=8 check 5+4=9</think>9" in texts
    assert "<think>2+3=5 verify 2+3=5+4=9 wait 5+4=9</think>9" in texts


def test_direct_and_malformed_answers_are_as_frequent_as_asked():
    problems = read("leg_counting", 1000)
    direct = write(problems, direct=0.2)
    share = sum(split_think(trace.text).thinking == "" for trace in direct) / len(direct)
    assert share == pytest.approx(0.2, abs=0.04)
    assert share_right(problems, direct) == 1.0
    malformed = write(problems, malformed=0.2, answer_tags=True)
    kept = [rewards.format(p, t, None) for p, t in zip(problems, malformed, strict=True)]
    assert sum(kept) / len(kept) == pytest.approx(0.8, abs=0.04)


def test_answer_tags_are_those_of_r1_zero():
    problem = make_problem("Sum: 2 + 3 =", "5", verifier="exact", meta={"family": "chain_sum"})
    (trace,) = write([problem], answer_tags=True)
    assert trace.text == "<think> 2+3=5 </think> <answer> 5 </answer>"
    assert exact.verify(problem, trace).correct
    assert rewards.format(problem, trace, None, answer_tags=True) == 1


@pytest.mark.parametrize(
    ("family", "question", "english", "chinese"),
    [
        (
            "chain_sum",
            "Sum: 12 + 3 - 24 =",
            "<think>tens 1 plus 0 is 1 minus 2 is -1 ones 2 plus 3 is 5 minus 4 is 1"
            " -10 plus 1 is -9</think>-9",
            "<think>十位 1加0等于1减2等于-1 个位 2加3等于5减4等于1 -10加1等于-9</think>-9",
        ),
        (
            "leg_counting",
            "if you have 2 dogs, 1 snake?",
            "<think>2 times 4 is 8 1 times 0 is 0 8 plus 0 is 8</think>8",
            "<think>2乘4等于8 1乘0等于0 8加0等于8</think>8",
        ),
    ],
)
def test_steps_can_be_in_words_of_two_languages(family, question, english, chinese):
    problem = make_problem(question, "", verifier="exact", meta={"family": family})
    assert write([problem], chinese=0.0)[0].text == english
    assert write([problem], chinese=1.0)[0].text == chinese
    mixed = write([problem] * 50, chinese=0.5, checks=0.5)
    shares = [language_share(split_think(t.text).thinking, "en") for t in mixed]
    assert 0.2 < sum(shares) / len(shares) < 0.8
    assert any(0 < share < 1 for share in shares)


def test_languages_are_told_apart():
    problems = read("chain_sum", 200, DIGITS)
    for chinese, language in ((0.0, "en"), (1.0, "zh")):
        traces = write(problems, chinese=chinese, checks=0.2)
        assert all(language_share(split_think(t.text).thinking, language) == 1.0 for t in traces)
