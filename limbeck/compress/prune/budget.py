"""The smaller sizes that leave a wanted share of a decoder's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from limbeck.compress.prune.shapes import Shape, Sizes
from limbeck.errors import UserError

UNLIKE = 0.1
"""What it counts beside a share that is missed if one axis keeps all and another nothing."""


def smaller_sizes(shape: Shape, sparsity: float, steps: Mapping[str, int]) -> Sizes:
    """The sizes at which the share `sparsity` of the blocks' parameters is gone.

    `steps` has the axes that may shrink (`keys`, `neurons`, `channels`) and how many units of each
    go at once. Of the sizes that others load, those that come nearest to the share and shrink the
    axes about alike. UserError where so much cannot go, or nothing would.
    """

    def miss(sizes: Sizes) -> float:
        kept = [getattr(sizes, axis) / getattr(shape.sizes, axis) for axis in steps]
        return abs(shape.share_gone(sizes) - sparsity) + UNLIKE * (max(kept) - min(kept))

    keys, channels, neurons = (_options(shape, steps, a) for a in ("keys", "channels", "neurons"))
    pairs = (replace(shape.sizes, keys=k, channels=c) for k, c in product(keys, channels))
    fitting = [sizes for sizes in pairs if shape.fits(sizes)]
    most = max((shape.share_gone(replace(s, neurons=neurons[0])) for s in fitting), default=0.0)
    if not steps or sparsity > most:
        what = f"of these blocks at most {most:.3f} can go in this way"
        raise UserError("sparsity", what, "take less, or let heads, neurons and channels take part")
    best = min((_with_neurons(shape, sizes, neurons, sparsity) for sizes in fitting), key=miss)
    if best == shape.sizes:
        raise UserError("sparsity", f"{sparsity:g} of these blocks is no whole unit", "take more")
    return best


def _options(shape: Shape, steps: Mapping[str, int], axis: str) -> range:
    """What may be left of an axis: at least one step."""
    whole = getattr(shape.sizes, axis)
    step = steps.get(axis, whole)
    return range(step, whole + 1, step)


def _with_neurons(shape: Shape, sizes: Sizes, options: range, sparsity: float) -> Sizes:
    """These sizes with as many neurons as bring them nearest to the share: it is linear in them."""
    without, per_neuron = (shape.num_parameters(replace(sizes, neurons=n)) for n in (0, 1))
    per_neuron -= without
    wanted = (1 - sparsity) * shape.whole
    place = round(((wanted - without) / per_neuron - options.start) / options.step)
    return replace(sizes, neurons=options[min(max(place, 0), len(options) - 1)])
