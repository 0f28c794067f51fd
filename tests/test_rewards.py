"""Rewards against values worked out by hand, spoofs among them, and how they add up."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from limbeck import rewards
from limbeck.config import StageConfig, split_fields
from limbeck.errors import UserError
from limbeck.plugins import Kind
from limbeck.problems import make_problem
from limbeck.rewards.weighted import WeightedReward, check_domains, score
from limbeck.train.signals import REFLECTION, Answered, signals
from limbeck.types import Problem, Trace, Verdict

PROBLEM = make_problem("What is the sum of two and three?", "5", verifier="number", domain="sums")
THINKING = "We have to add the two numbers, and that is what we do."
CHINESE = "我们来看一下这个数是多少"


def trace(text: str, tokens: int = 10, finish: str = "stop", name: str = "t") -> Trace:
    return Trace(name, PROBLEM.id, 0, text, finish, "m", completion_tokens=tokens)


def verdict(correct: bool | None) -> Verdict:
    reason = {True: "correct", False: "wrong", None: "error"}[correct]
    return Verdict("t", correct, None, reason)


RIGHT, WRONG, UNJUDGED = map(verdict, (True, False, None))


@pytest.mark.parametrize(("judged", "value"), [(RIGHT, 1.0), (WRONG, 0.0), (UNJUDGED, 0.0)])
def test_correct(judged, value):
    assert rewards.correct(PROBLEM, trace("5"), judged) == value


WELL_FORMED = [
    "<think>2 + 3 = 5</think>5",
    "<think>\n2 + 3 = 5\n</think>\n\nThe sum is \\boxed{5}.",
    " <think> so 5 </think> <answer> 5 </answer>\n",
    "<think>In `code`, 2 < 3.\n```\nx = 1\n```\n</think>5",
    "<think>我们</think>五",
]
SPOOFS = [
    "5",
    "<think>2 + 3 = 5",  # never closed
    "2 + 3 = 5</think>5",  # never opened
    "<think>2 + 3 = 5</think>",  # no answer
    "<think>2 + 3 = 5</think> .\n",
    "<think></think>5",  # no thinking
    "<think> \n... </think>5",
    "<think><think>2 + 3 = 5</think>5",  # the template had opened it already
    "<think>2<think> + 3</think> = 5</think>5",  # nested
    "<think>2 + 3</think>5<think>again</think>5",  # twice
    "<think>2 + 3</think>5</think>",
    "<think>2 + 3</think>5<think>",
    "Sure! <think>2 + 3</think>5",
    "```\n<think>2 + 3</think>\n```\n5",  # in code
    "<think>First I write `</think>` and then 5",
    "<think>```\nprint('</think>')\n```\n5",
    "<THINK>2 + 3</THINK>5",
    "<think>2 + 3</THINK></think>5",
    "<think>2 + 3 </ think></think>5",
    "<thinking>2 + 3</thinking>5",
    "<think>2 + 3</think>5\nUser: and 3 + 3?\nAssistant: 6",  # further turns
    "<think>2 + 3</think>5. Assistant: 6",
    "<think>2 + 3</think>5<|im_start|>user",
    "<think>2 + 3</think>5<｜User｜>and now?",
    "<think> reasoning process here </think><answer> answer here </answer>",  # the prompt's words
    "<think>2 + 3</think><answer> answer here </answer>",
    "<think>2 + 3</think><answer>5",  # answer tags out of order
    "<think>2 + 3</think>5</answer>",
    "<think>2 + 3</think><answer>5</answer><answer>6</answer>",
    "<think>2 + 3</think><answer><answer>5</answer></answer>",
    "<think>2 + 3<answer>4</answer></think>5",
    "<think>2 + 3<answer></think>5</answer>",
    "<think>2 + 3</think>so <answer>5</answer>",
    "<think>2 + 3</think><answer> </answer>",
]


@pytest.mark.parametrize("text", WELL_FORMED)
def test_what_is_well_formed(text):
    assert rewards.format(PROBLEM, trace(text), WRONG) == 1.0


@pytest.mark.parametrize("text", SPOOFS)
def test_what_only_looks_well_formed(text):
    assert rewards.format(PROBLEM, trace(text), RIGHT) == 0.0
    assert rewards.format(PROBLEM, trace(text), RIGHT, answer_tags=True) == 0.0


def test_a_tag_of_blanks_is_read_once():
    blanks = " " * 100_000
    assert rewards.format(PROBLEM, trace(f"<think>2 <{blanks}3</think>5"), RIGHT) == 1.0
    assert rewards.format(PROBLEM, trace(f"<think>2 <{blanks}/ think></think>5"), RIGHT) == 0.0


def test_answer_tags_may_be_asked_for():
    plain, tagged = "<think>2 + 3</think>5", "<think>2 + 3</think>\n<answer>5</answer>"
    assert rewards.format(PROBLEM, trace(plain), RIGHT, answer_tags=True) == 0.0
    assert rewards.format(PROBLEM, trace(tagged), RIGHT, answer_tags=True) == 1.0


@pytest.mark.parametrize("finish", ["length", "error"])
def test_what_never_ended_has_no_form(finish):
    assert rewards.format(PROBLEM, trace(WELL_FORMED[0], finish=finish), WRONG) == 0.0


@pytest.mark.parametrize(
    ("text", "knobs", "value"),
    [
        (f"<think>{THINKING}</think>{CHINESE}", {}, 1.0),  # the answer does not count
        (f"<think>{THINKING} {CHINESE}</think>5", {}, 13 / 20),  # 12 characters say 7 words
        (f"<think>{THINKING} {CHINESE}</think>5", {"language": "zh"}, 7 / 20),
        (f"<think>{CHINESE}</think>5", {}, 0.0),
        (f"<think>{CHINESE}", {}, 0.0),  # unfinished thinking is thinking, too
        ("<think>2 + 3 = 5</think>5", {}, 1.0),  # no words are in no wrong language
        ("<think> </think>5", {}, 0.0),
        ("The sum is five.", {}, 0.0),
    ],
)
def test_language(text, knobs, value):
    assert rewards.language(PROBLEM, trace(text), RIGHT, **knobs) == pytest.approx(value)


def test_the_target_is_the_questions_language():
    chinese = make_problem(f"{CHINESE}？", "5", verifier="number")
    signs = make_problem("2 + 3 = ?", "5", verifier="number")
    mixed = trace(f"<think>{THINKING} {CHINESE}</think>5")
    assert rewards.language(chinese, mixed, RIGHT) == pytest.approx(7 / 20)
    assert rewards.language(signs, mixed, RIGHT) == pytest.approx(13 / 20)  # then the commonest


@pytest.mark.parametrize(
    ("tokens", "judged", "value"),
    [
        (0, RIGHT, 2.0), (25, RIGHT, 1.5 + 0.5 * math.sqrt(0.5)), (50, RIGHT, 1.5), (99, RIGHT, 1),
        (0, WRONG, -10.0), (50, WRONG, -5.0), (75, WRONG, -5 + 5 * math.sqrt(0.5)),
        (100, RIGHT, -10.0), (130, WRONG, -10.0), (0, UNJUDGED, -10.0),
    ],
)  # fmt: skip
def test_length(tokens, judged, value):
    found = rewards.length(PROBLEM, trace("5", tokens), judged, max_tokens=100)
    assert found == pytest.approx(value, abs=1e-3)  # at 99 of 100 the cosine is nearly through


@pytest.mark.parametrize(
    ("tokens", "value"), [(1, 0), (60, 0), (61, -1 / 40), (80, -0.5), (100, -1), (101, -1)]
)
def test_overlong(tokens, value):
    knobs = {"max_tokens": 100, "margin_tokens": 40}
    assert rewards.overlong(PROBLEM, trace("5", tokens), RIGHT, **knobs) == value


@pytest.mark.parametrize(
    ("text", "words", "value"),
    [
        ("a b c d", 2, 0.0),
        ("a b a b a", 2, -0.5),  # ab ba ab ba
        ("a a a a a", 1, -0.8),
        ("a b", 2, 0.0),
        ("", 2, 0.0),
        ("一二一二一", 2, -0.5),
    ],
)
def test_repetition(text, words, value):
    assert rewards.repetition(PROBLEM, trace(text), RIGHT, words=words) == pytest.approx(value)


# -- several as one -----------------------------------------------------------------------------


class Recipe(StageConfig):
    rewards: list[WeightedReward]


def chosen(*told: object) -> list[WeightedReward]:
    return Recipe.model_validate({"rewards": list(told)}).rewards


def always(problem: Problem, trace: Trace, verdict: Verdict, *, value: float = 1.0) -> float:
    return {99.0: math.nan, 98.0: "much"}.get(value, value)  # type: ignore[return-value]


def place(problems: list[Problem], traces: list[Trace], verdicts: list[Verdict]) -> list[float]:
    return [float(i) for i, _ in enumerate(traces)]


def too_few(problems: list[Problem], traces: list[Trace], verdicts: list[Verdict]) -> list[float]:
    return [1.0]


def nothing(problems: list[Problem], traces: list[Trace], verdicts: list[Verdict]) -> list[float]:
    return None  # type: ignore[return-value]


def of_nobody() -> float:
    return 1.0


def overlong(problem: Problem, trace: Trace, verdict: Verdict) -> float:
    """Somebody's own, which is called as one of Limbeck's."""
    return 5.0


def test_names_are_the_functions_of_the_package():
    known = {"correct", "format", "language", "length", "overlong", "repetition"}
    assert known <= {*Kind("reward", "limbeck.rewards").names()}
    assert "score" not in Kind("reward", "limbeck.rewards").names()


def test_rewards_add_up_by_weight_and_domain():
    other = make_problem("?", "1", verifier="number", domain="other")
    told = chosen(
        "correct",
        {"reward": "format", "weight": 0.5},
        {"reward": {"name": f"{__name__}:place"}, "weight": 10.0, "domains": ["other"]},
    )
    problems = [PROBLEM, other, PROBLEM, other]
    traces = [trace("<think>1</think>5"), trace("5"), trace("5"), trace("<think>1</think>5")]
    total, parts = score(told, problems, traces, [RIGHT, RIGHT, UNJUDGED, WRONG])
    assert parts == {
        "correct": [1, 1, 0, 0],
        "format": [1, 0, 0, 1],
        "place": [None, 0, None, 1],  # the first and second of those that it was asked of
    }
    assert total == [1.5, 1.0, 0.0, 10.5]


def test_two_of_one_name_are_told_apart():
    a, b = ({"name": "overlong", "max_tokens": n, "margin_tokens": 4} for n in (8, 12))
    total, parts = score(chosen(a, b), [PROBLEM], [trace("5", 9)], [RIGHT])
    assert parts == {"overlong": [-1.0], "overlong_2": [-0.25]} and total == [-1.25]


def test_ones_own_of_the_same_name_is_told_apart():
    limbecks = {"name": "overlong", "max_tokens": 8, "margin_tokens": 4}
    told = chosen(f"{__name__}:overlong", limbecks)
    total, parts = score(told, [PROBLEM], [trace("5", 9)], [RIGHT])
    assert parts == {"overlong": [5.0], "overlong_2": [-1.0]} and total == [4.0]


def test_a_reward_for_nobody_is_not_asked():
    told = chosen({"reward": {"name": f"{__name__}:too_few"}, "domains": ["none"]})
    assert score(told, [PROBLEM] * 2, [trace("5")] * 2, [RIGHT] * 2) == (
        [0.0, 0.0],
        {"too_few": [None, None]},
    )


@pytest.mark.parametrize("value", [math.inf, 99.0, 98.0])
def test_what_is_no_finite_number_is_never_averaged_in(value):
    told = WeightedReward.model_construct(
        reward=chosen({"name": f"{__name__}:always"})[0].reward, weight=1.0, domains=None
    )
    told.reward.knobs["value"] = value
    with pytest.raises(UserError, match=r"reward 'always': gave .* for trace bad"):
        score([told], [PROBLEM], [trace("5", name="bad")], [RIGHT])


def test_as_many_rewards_as_answers():
    with pytest.raises(UserError, match="gave 1 numbers for 2 answers"):
        score(chosen(f"{__name__}:too_few"), [PROBLEM] * 2, [trace("5")] * 2, [RIGHT] * 2)


def test_no_rewards_at_all_are_told():
    with pytest.raises(UserError, match="reward 'nothing': gave None for 2 answers"):
        score(chosen(f"{__name__}:nothing"), [PROBLEM] * 2, [trace("5")] * 2, [RIGHT] * 2)


def test_a_sum_that_is_no_finite_number_is_told():
    told = chosen(*[{"reward": "correct", "weight": 1e308}] * 2)
    with pytest.raises(UserError, match="rewards: add up to inf for trace t; weigh them less"):
        score(told, [PROBLEM], [trace("5")], [RIGHT])


def test_domains_that_no_problem_has_are_told():
    told = chosen("correct", {"reward": "format", "domains": ["smus", "code"]})
    with pytest.raises(UserError) as refused:
        check_domains(told, [PROBLEM], "grpo.rewards")
    assert "no problem is of the domains 'code', 'smus'; name some of these: 'sums'" in str(
        refused.value
    )
    some = chosen("correct", {"reward": "format", "domains": ["sums", "code"]})
    check_domains(some, [PROBLEM], "grpo.rewards")  # a part of the problems may lack a domain


def test_a_reward_that_cannot_be_asked_is_refused():
    with pytest.raises(ValidationError, match=r"of_nobody' cannot be asked of an answer"):
        chosen(f"{__name__}:of_nobody")


def test_a_name_is_a_reward_of_weight_one():
    short, long = chosen("format"), chosen({"reward": {"name": "format"}, "weight": 1.0})
    assert short == long
    assert split_fields(Recipe(rewards=short)) == (
        {"rewards": [{"reward": {"name": "format"}}]},
        {},
    )
    schema = Recipe.model_json_schema()["$defs"]["WeightedReward"]
    assert {"type": "string"} in schema["anyOf"][0]["anyOf"]


@pytest.mark.parametrize(
    "told", ["correkt", {"name": "overlong"}, {"reward": "correct", "weigth": 2}, 3]
)
def test_mistakes_are_found_before_anything_runs(told):
    with pytest.raises(ValidationError):
        chosen(told)


# -- what a round says of itself ----------------------------------------------------------------


def answered(texts: list[str], right: list[bool | None], tokens: list[int]) -> Answered:
    traces = [trace(text, num) for text, num in zip(texts, tokens, strict=True)]
    verdicts = [verdict(correct) for correct in right]
    total, parts = score(chosen("correct", "format"), [PROBLEM] * len(traces), traces, verdicts)
    return Answered(PROBLEM, traces, verdicts, total, parts)


def test_signals_by_hand():
    thinking = f"<think>{THINKING} Wait, check that. But no mistakes, so I checked.</think>5"
    told = signals(
        [
            answered([thinking, "5"], [True, False], [30, 2]),
            answered(["5", "5"], [True, True], [2, 4]),
            answered(["6", "<think>6</think>6"], [False, None], [2, 12]),
        ]
    )
    assert told.pop("reflection") == {
        **dict.fromkeys(REFLECTION, 0.0),
        **{"wait": 1000 / 6, "check": 2000 / 6, "but": 1000 / 6, "mistake": 1000 / 6},
    }
    assert told.pop("reasons") == {"correct": 3 / 6, "wrong": 2 / 6, "error": 1 / 6}
    assert told.pop("rewards") == {"correct": 3 / 6, "format": 2 / 6}
    assert told == pytest.approx(
        {
            "reward": 5 / 6,
            "correct": 3 / 6,
            "no_signal": 1 / 3,  # in the third group, the format differs
            "all_right": 1 / 3,
            "all_wrong": 1 / 3,
            "identical": 1 / 3,
            "denied": 1 / 6,
            "truncated": 0.0,
            "mean_length": 52 / 6,
            "mean_length_right": 36 / 3,
            "mean_length_wrong": 16 / 3,
            "direct": 4 / 6,
            "self_checks": 1 / 6,
            "language": 1.0,
        }
    )


def test_signals_of_wrong_answers_alone_leave_out_what_has_no_value():
    told = signals([answered(["6"], [False], [2])])
    assert "mean_length_right" not in told and "language" not in told
    assert told["no_signal"] == told["all_wrong"] == 1.0 and told["identical"] == 0.0
    assert signals([]) == {}


def test_rewards_that_differ_by_rounding_are_no_signal():
    traces, verdicts = [trace("5"), trace("6")], [RIGHT, WRONG]
    noise = Answered(PROBLEM, traces, verdicts, [0.1 + 0.2, 0.3], {})
    assert signals([noise])["no_signal"] == 1.0
    assert signals([noise._replace(rewards=[0.3, 0.30001])])["no_signal"] == 0.0
