"""How much better an output was than its siblings: `(rewards) -> advantages`, (groups, G) each.

A group is the G outputs of one question. Where all of a group are equal, but for rounding, it has
nothing to say: its advantages are exactly 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limbeck.train.signals import are_equal

Table = NDArray[np.float64]  # (groups, G)


def z_score(rewards: Table) -> Table:
    """(r - mean) / std of the group, with G - 1 below: GRPO, arXiv:2402.03300.

    The paper leaves open which std; TRL and verl take this one.
    """
    return _shares(mean_only(rewards), _std(rewards, axis=1))


def mean_only(rewards: Table) -> Table:
    """r - mean of the group: Dr. GRPO, arXiv:2503.20783."""
    is_equal = np.array([are_equal(group) for group in rewards.tolist()], bool)[:, None]
    return np.where(is_equal, 0.0, rewards - rewards.mean(1, keepdims=True))


def leave_one_out(rewards: Table) -> Table:
    """r - mean of the group's others: RLOO, arXiv:2402.14740."""
    num = rewards.shape[1]
    return mean_only(rewards) * (num / max(1, num - 1))


def batch_std(rewards: Table) -> Table:
    """(r - mean of the group) / std of all rewards at once: ScaleRL, arXiv:2510.13786.

    A group in which little differs is not blown up.
    """
    return _shares(mean_only(rewards), _std(rewards, axis=None))


def _std(rewards: Table, axis: int | None) -> Table:
    num = rewards.size if axis is None else rewards.shape[axis]
    return rewards.std(axis, ddof=min(1, num - 1), keepdims=True)


def _shares(centred: Table, std: Table) -> Table:
    return np.divide(centred, std, out=np.zeros_like(centred), where=std > 0)
