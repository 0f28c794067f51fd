"""What several answers to one problem come to: pass@k and cons@k, without bias."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that k of a problem's samples, drawn without return, hold a correct one.

    1 - C(n - c, k) / C(n, k), unbiased (Chen et al. 2021, https://arxiv.org/abs/2107.03374), as a
    product that does not overflow. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} correct among {num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    left = np.arange(num_samples - num_correct + 1, num_samples + 1)  # (c,)
    return float(1.0 - np.prod(1.0 - k / left))


def cons_at_k(votes: Sequence[int | None], correct: Sequence[bool], k: int) -> float:
    """The chance that the answer which most of k samples give, drawn without return, is right.

    `votes` (n,) are classes of equal answers, None where a sample has no answer: it has no vote,
    but is drawn like the others. A tie gives each tied answer an equal chance; where nobody votes,
    nothing is right. A class is as right as the share of its samples that are `correct` (n,).

    Exact for every k: all draws are counted by the votes of the winner and the number of those
    tied. Raises ValueError unless 1 <= k <= n and both are of one length.
    """
    if len(votes) != len(correct) or not 1 <= k <= len(votes):
        raise ValueError(f"cons@{k} of {len(votes)} votes and {len(correct)} verdicts")
    sizes = Counter(vote for vote in votes if vote is not None)
    right = Counter(vote for vote, is_right in zip(votes, correct, strict=True) if is_right)
    classes = [(size, right[vote] / size) for vote, size in sizes.items()]
    silent = len(votes) - sizes.total()
    others = np.array([math.comb(silent, k - drawn) for drawn in range(k + 1)], dtype=np.float64)
    most = min(k, max(sizes.values(), default=0))
    wins = sum(float(_won_with(top, classes, k) @ others) for top in range(1, most + 1))
    return min(1.0, wins / math.comb(len(votes), k))  # it may round upwards


def _won_with(top: int, classes: list[tuple[int, float]], k: int) -> NDArray[np.float64]:
    """In how many ways (k + 1,), by how many voters were drawn, a right answer wins with `top`.

    `classes` are (size, share right). The ways of a tie count by the share right of those tied.
    """
    ties = k // top
    ways = np.zeros((2, k + 1, ties + 1))  # all ways and the right among their tied, by ties so far
    ways[0, 0, 0] = 1.0
    for size, share in classes:
        before, ways = ways, np.zeros_like(ways)
        for drawn in range(min(size, top - 1, k) + 1):
            ways[:, drawn:] += math.comb(size, drawn) * before[:, : k + 1 - drawn]
        if size >= top:
            tied = math.comb(size, top) * before[:, : k + 1 - top, :ties]
            tied[1] += share * tied[0]
            ways[:, top:, 1:] += tied
    return ways[1, :, 1:] @ (1.0 / np.arange(1, ties + 1))
