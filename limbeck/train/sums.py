"""Means over a step's tokens, of which each process may have seen a part."""

from __future__ import annotations

from limbeck import processes

Sums = dict[str, tuple[float, float]]
"""By name: a weighted sum, and the weight."""


def means(sums: Sums) -> dict[str, float]:
    """What this process saw; nothing is said of what had no weight."""
    return {name: total / weight for name, (total, weight) in sums.items() if weight}


def means_of_all(sums: Sums) -> dict[str, float]:
    """What all processes saw, each token of it counted by its weight. All of them call this."""
    whole: Sums = {}
    for found in processes.gather(sums):
        for name, (total, weight) in found.items():
            before = whole.get(name, (0.0, 0.0))
            whole[name] = before[0] + total, before[1] + weight
    return means(whole)
