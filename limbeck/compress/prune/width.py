"""Attention heads, neurons and hidden channels go: those that the texts move least.

Minitron, arXiv:2407.14679. Heads go by group, a key head with the query heads that share it; every
block loses as many, since an ordinary config states one number for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd, sqrt
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from limbeck.compress.prune import smaller
from limbeck.compress.prune.budget import smaller_sizes
from limbeck.compress.prune.shapes import Axes, Shape, Sizes, shape_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from limbeck.compress.walk import Block, Stats


def prune_model(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    sparsity: float,
    *,
    heads: bool = True,
    neurons: bool = True,
    channels: bool = False,
    multiple: PositiveInt = 32,
) -> PreTrainedModel:
    """A narrower model, without the share `sparsity` of its blocks' parameters.

    Of heads, neurons and hidden channels those that take part shrink about alike, as nearly as
    whole units and the architecture's loaders allow: GPT-2 and Qwen2 lose heads only together with
    channels, and how many heads a Llama has must divide its channels. Neurons and channels go by
    `multiple`, as far as it divides their number: kernels and quantized formats take so many at
    once. UserError for an architecture that is not known, and for a share that cannot be met.
    """
    shape = shape_of(model)
    steps = {"keys": 1} if heads else {}
    for axis, takes_part in (("neurons", neurons), ("channels", channels)):
        if takes_part:
            steps[axis] = gcd(getattr(shape.sizes, axis), multiple)
    small = smaller_sizes(shape, sparsity, steps)
    config = smaller.resized(model.config, **_settings(model.config, shape, small))
    weights = _cut(model, shape, small, [block.stats for block in blocks])
    return smaller.built(model, config, weights)


def head_scores(stats: Mapping[str, Stats], shape: Shape) -> Tensor:
    """(key heads,) how large what the heads of a group say is: its norm over all tokens."""
    return stats[shape.family.heads].squares.view(shape.sizes.keys, -1).sum(1).sqrt()


def neuron_scores(stats: Mapping[str, Stats], shape: Shape) -> Tensor:
    """(neurons,) the norm of what each says over all tokens."""
    return stats[shape.family.neurons].squares.sqrt()


def channel_scores(stats: Sequence[Mapping[str, Stats]], shape: Shape) -> Tensor:
    """(channels,) the norm of each over all tokens, behind every norm of every block, added up."""
    import torch

    read = [of_block[name].squares.cpu() for of_block in stats for name in shape.family.channels]
    return torch.stack(read).sqrt().sum(0)


def largest(scores: Tensor, num: int) -> Tensor:
    """The places of the `num` largest, in order."""
    return scores.sort(descending=True, stable=True).indices[:num].sort().values.cpu()


def _kept(stats: Mapping[str, Stats], shape: Shape, small: Sizes) -> dict[str, Tensor]:
    """By axis the places within a block's weights that stay."""
    import torch

    whole, groups = shape.sizes, largest(head_scores(stats, shape), small.keys)
    queries = _spread(groups, whole.sharing * whole.width)
    joint = [queries + part * whole.along("queries") for part in range(3)]
    return {
        "queries": queries,
        "keys": _spread(groups, whole.width),
        "joint": torch.cat(joint),
        "neurons": largest(neuron_scores(stats, shape), small.neurons),
    }


def _spread(groups: Tensor, width: int) -> Tensor:
    """The places of all members of these groups, which have `width` each."""
    import torch

    return (groups[:, None] * width + torch.arange(width)).flatten()


def _cut(
    model: PreTrainedModel, shape: Shape, small: Sizes, stats: Sequence[Mapping[str, Stats]]
) -> dict[str, Tensor]:
    """All weights, along what stays."""
    from limbeck.compress import anatomy

    around = {"channels": largest(channel_scores(stats, shape), small.channels)}
    within = (around | _kept(of_block, shape, small) for of_block in stats)
    kept = dict(zip(anatomy.names(model), within, strict=True))
    weights = {}
    for name, weight in model.named_parameters():
        axes = shape.axes[name]
        block = next((block for block in kept if name.startswith(f"{block}.")), "")
        cut = _along(weight.detach(), axes, kept.get(block, around))
        is_norm = axes == ("channels",) and name.endswith(".weight")
        weights[name] = cut * _widening(shape, small) if is_norm else cut
    return weights


def _along(weight: Tensor, axes: Axes, kept: Mapping[str, Tensor]) -> Tensor:
    """A weight without the places that go; a weight that loses none as it is."""
    for dim, axis in enumerate(axes):
        if axis is not None and len(kept[axis]) < weight.shape[dim]:
            weight = weight.index_select(dim, kept[axis].to(weight.device))
    return weight


def _widening(shape: Shape, small: Sizes) -> float:
    """What the weights of norms are multiplied by when channels go.

    A norm divides by a root of a mean over C channels. Of C' that are left the mean of the same
    squares is C / C' times as large; the weights make up for that, and with an epsilon that grows
    as much the result is that of the whole model with the other channels masked out: zero before
    an RMSNorm, at the mean of those that stay before GPT-2's LayerNorm.
    """
    return sqrt(shape.sizes.channels / small.channels)


def _settings(config: PretrainedConfig, shape: Shape, small: Sizes) -> dict[str, float]:
    """The config's fields for these sizes."""
    family = shape.family
    found: dict[str, float] = {
        "hidden_size": small.channels,
        "num_attention_heads": small.queries,
        family.num_neurons: small.neurons,
    }
    if shape.kind != "gpt2":  # it has neither key heads nor a width of heads
        found |= {"num_key_value_heads": small.keys, "head_dim": small.width}
    if "self_attn.q_norm.weight" not in shape.block:  # Qwen3's heads are normed by it as well
        found[family.epsilon] = getattr(config, family.epsilon) * _widening(shape, small) ** 2
    return found
