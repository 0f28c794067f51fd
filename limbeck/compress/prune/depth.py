"""Whole layers go: those that change least what comes into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limbeck.compress.prune import smaller
from limbeck.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from limbeck.compress.walk import Block


def prune_model(
    model: PreTrainedModel, blocks: Sequence[Block], sparsity: float, *, contiguous: bool = False
) -> PreTrainedModel:
    """A model without the share `sparsity` of its layers, those of the least block influence
    (ShortGPT, arXiv:2403.03853).

    `contiguous` takes neighbours out, the ones whose influences add up to least: a block of deep
    layers, as a rule (Gromov et al., arXiv:2403.17887, who measure the change across all of it).
    UserError if no layer would go, or none stay.
    """
    num = round(sparsity * len(blocks))
    if not 0 < num < len(blocks):
        what = f"{sparsity:g} of {len(blocks)} layers is {'all of them' if num else 'none'}"
        raise UserError("sparsity", what, f"one layer is {1 / len(blocks):.2g}, and one must stay")
    influences = [block.influence for block in blocks]
    gone = least_run(influences, num) if contiguous else least(influences, num)
    kept = [index for index in range(len(blocks)) if index not in gone]
    return smaller.built(model, _config(model.config, kept), _weights(model, kept))


def least(influences: Sequence[float], num: int) -> set[int]:
    """The places of the `num` smallest."""
    return set(sorted(range(len(influences)), key=lambda index: influences[index])[:num])


def least_run(influences: Sequence[float], num: int) -> set[int]:
    """The `num` neighbouring places whose sum is smallest."""
    starts = range(len(influences) - num + 1)
    start = min(starts, key=lambda at: sum(influences[at : at + num]))
    return set(range(start, start + num))


def _config(config: PretrainedConfig, kept: Sequence[int]) -> PretrainedConfig:
    """The config of the layers that stay; what it says of each layer goes along with it."""
    num = config.num_hidden_layers
    sizes: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, list) and len(value) == num:
            sizes[name] = [value[index] for index in kept]
    if hasattr(config, "max_window_layers"):  # so many of the first see the whole text
        sizes["max_window_layers"] = sum(index < config.max_window_layers for index in kept)
    return smaller.resized(config, **sizes)


def _weights(model: PreTrainedModel, kept: Sequence[int]) -> dict[str, Tensor]:
    """The weights of the layers that stay, under the names of their new places, and the others."""
    from limbeck.compress import anatomy

    names = anatomy.names(model)
    places = {f"{names[old]}.": f"{names[new]}." for new, old in enumerate(kept)}
    gone = tuple(f"{name}." for name in names if f"{name}." not in places)
    weights = {}
    for name, weight in model.state_dict().items():
        if name.startswith(gone):
            continue
        old = next((place for place in places if name.startswith(place)), "")
        weights[places.get(old, "") + name.removeprefix(old)] = weight
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        _keep_scales(weights, [names[new] for new in range(len(kept))], kept)
    return weights


def _keep_scales(weights: dict[str, Tensor], names: Sequence[str], kept: Sequence[int]) -> None:
    """Such a GPT-2 divides layer i's attention scores by i + 1, and i is another now: its queries,
    the first third of c_attn, make up for it."""
    for new, (name, old) in enumerate(zip(names, kept, strict=True)):
        for part in ("weight", "bias"):
            key = f"{name}.attn.c_attn.{part}"
            weight = weights[key].clone()
            weight[..., : weight.shape[-1] // 3] *= (new + 1) / (old + 1)
            weights[key] = weight
