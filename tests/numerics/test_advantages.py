"""Advantages against loops and TRL's own; groups that have nothing to say."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest

from limbeck import plugins
from limbeck.train import advantages
from limbeck.train.advantages import Table, batch_std, leave_one_out, mean_only, z_score
from tests.numerics.test_policy import make_trainer

EPSILON = 1e-4  # what TRL adds to a standard deviation, and Limbeck does not
ALL = [z_score, mean_only, leave_one_out, batch_std]


def make_rewards(groups: int = 5, size: int = 4) -> Table:
    rewards = np.random.default_rng(3).choice([0.0, 0.5, 1.0, 2.5], (groups, size))
    rewards[1] = 0.1  # three times 0.1 is not 0.3, and their mean not 0.1
    rewards[2] = [1.0, *[0.0] * (size - 1)]
    return rewards


def naive(name: str, rewards: list[list[float]]) -> list[list[float]]:
    """The definitions, a reward at a time."""
    everything = [reward for group in rewards for reward in group]
    table = []
    for group in rewards:
        mean = statistics.fmean(group)
        scale = {"z_score": statistics.stdev(group) or 1, "batch_std": statistics.stdev(everything)}
        row = [(reward - mean) / scale.get(name, 1) for reward in group]
        if name == "leave_one_out":
            row = [r - statistics.fmean(group[:i] + group[i + 1 :]) for i, r in enumerate(group)]
        table.append(row)
    return table


@pytest.mark.parametrize("function", ALL)
def test_equals_the_definition(function: Any) -> None:
    rewards = make_rewards()
    found = function(rewards)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, naive(function.__name__, rewards.tolist()), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)


@pytest.mark.parametrize("function", ALL)
def test_equal_rewards_say_exactly_nothing(function: Any) -> None:
    for value in (0.1, 1 / 3, 1e9):
        assert not function(np.full((3, 7), value)).any()
    assert not function(make_rewards())[1].any()
    assert not function(np.array([[0.3], [0.7]])).any()  # groups of one


@pytest.mark.parametrize("function", ALL)
def test_what_differs_by_rounding_says_exactly_nothing(function: Any) -> None:
    sums = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]
    read_in_batches = [-0.42, -0.42 + 3e-8, -0.42, -0.42 - 6e-8]
    large = [4e5, 4e5 + 0.03, 4e5, 4e5]
    rewards = np.array([sums, read_in_batches, large, [0.0, 0.0, 1.0, 1.0]])
    assert [*function(rewards).any(1)] == [False, False, False, True]


def test_a_small_difference_is_blown_up_by_z_scores_alone() -> None:
    rewards = np.array([[0.0, 0.0, 0.0, 1e-5], [0.0, 1.0, 0.0, 1.0]])
    assert z_score(rewards)[0, 3] == pytest.approx(1.5)
    assert batch_std(rewards)[0, 3] == pytest.approx(0.75e-5 / rewards.std(ddof=1))


def trls(rewards: Table, method: str, **options: Any) -> Table:
    """What TRL's trainer makes of these rewards on its way to a loss."""
    trainer = make_trainer(method, num_generations=rewards.shape[1], **options)
    num = rewards.size
    ids = [[5, 6, 1]] * num
    parts = [[[3, 4]] * num, ids, None, [""] * num, None, {}, None, None]
    if method == "rloo":
        parts = [[[3, 4]] * num, ids, [""] * num]
    trainer._generate = lambda prompts: tuple(parts)
    trainer.reward_funcs = [lambda completions, **_: rewards.ravel().tolist()]
    found = trainer._generate_and_score_completions([{"prompt": "1+1="}] * num)
    return found["advantages"].double().numpy().reshape(rewards.shape)


@pytest.mark.parametrize(
    ("function", "scale_rewards"), [(z_score, "group"), (batch_std, "batch"), (mean_only, "none")]
)
def test_equals_grpo_trainer(function: Any, scale_rewards: str) -> None:
    """TRL divides by std + 1e-4, which makes its advantages smaller by the share 1e-4 / std: 2e-4
    for a group of right and wrong answers, and 0.5 for one whose rewards differ by 1e-4. Limbeck's
    are the paper's; what is left is float32, in which TRL computes."""
    rewards = make_rewards()
    std = {
        "group": rewards.std(1, ddof=1, keepdims=True),
        "batch": rewards.std(ddof=1),
        "none": np.inf,
    }[scale_rewards]
    theirs = trls(rewards, "grpo", scale_rewards=scale_rewards)
    theirs *= 1 + EPSILON / np.where(std == 0, np.inf, std)
    differs = rewards.min(1) != rewards.max(1)
    np.testing.assert_allclose(function(rewards)[differs], theirs[differs], rtol=1e-5, atol=1e-6)
    # Of three times 0.1 TRL's mean is off by a rounding, which it divides by 1e-4.
    np.testing.assert_allclose(theirs[~differs], 0, atol=1e-3)


def test_equals_rloo_trainer() -> None:
    rewards = make_rewards()
    theirs = trls(rewards, "rloo", normalize_advantages=False)
    np.testing.assert_allclose(leave_one_out(rewards), theirs, rtol=1e-6, atol=1e-6)  # float32


def test_their_names_are_those_of_a_recipe() -> None:
    assert plugins.Kind("advantage", advantages.__name__).names() == sorted(
        function.__name__ for function in ALL
    )
