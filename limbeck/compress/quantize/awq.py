"""AWQ (arXiv:2306.00978): inputs that matter get more of the grid, and what feeds them gives less.

A column of weights times s, its input divided by s: nothing changes but what rounding does to it.
The input is divided where it is made, in a norm's weight or in the rows of the matrix before. For
all matrices that read the same, s = magnitude^alpha, with the alpha whose outputs err least. Then
each scale of the grid is drawn in as far as lets its part of the outputs err least: what reaches
furthest is clipped, all else comes nearer.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from limbeck.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from limbeck.compress.quantize.grid import Grid
    from limbeck.compress.walk import Block, Stats
    from limbeck.packed import Codes

NEEDS_TEXTS = True
NEEDS_GRAM = True
ALPHAS = [step / 20 for step in range(20)]  # as in the paper
SHARES = [1 - step / 20 for step in range(10)]  # of the way to what reaches furthest
READERS = {  # who reads whose outputs in Llama, Mistral, Qwen2, Qwen3
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.v_proj": ("self_attn.o_proj",),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}


def rescale(block: Block, grid: Grid) -> dict[str, float]:
    """Moves scales from inputs into weights all over a block, and in its stats; gives the alphas.

    Values, and the matrix that reads them, stay as they are where several heads share a value.
    """
    import torch

    from limbeck.compress.anatomy import set_weight, weight_of

    parts = dict(block.module.named_modules())
    if missing := [name for name in (*READERS, *sum(READERS.values(), ())) if name not in parts]:
        raise _refused(f"has no {missing[0]} in its blocks")
    alphas = {}
    for source, names in READERS.items():
        readers, stats = [parts[name] for name in names], block.stats[names[0]]
        if len(parts[source].get_parameter("weight")) != len(stats.squares):
            continue
        whole = torch.cat([weight_of(reader).float() for reader in readers])
        alphas[source], scales = best_scales(whole, stats, grid)
        divide_outputs(parts[source], scales)
        divide_stats(stats, scales)
        for reader in readers:
            set_weight(reader, weight_of(reader) * scales)
    return alphas


def quantize_weight(weight: Tensor, stats: Stats, grid: Grid) -> Codes:
    """Codes of a weight (out, in), with the ends that err least; `rescale` was at its block."""
    import torch

    assert stats.gram is not None
    width = grid.width(weight.shape[1])
    starts = range(0, weight.shape[1], width)
    grams = torch.stack([stats.gram[i : i + width, i : i + width] for i in starts])
    whole, zeros = grid.fit(weight)
    best, least = whole, torch.full_like(whole, torch.inf)
    for share in SHARES:
        scales = grid.kept(whole * share)
        lost = weight - grid.round(weight, scales, zeros).dense()
        parts = lost.unflatten(1, (-1, width)).transpose(0, 1)  # (groups, out, width)
        errors = (parts @ grams * parts).sum(dim=-1).T
        best, least = torch.where(errors < least, scales, best), errors.minimum(least)
    return grid.round(weight, best, zeros)


def best_scales(weight: Tensor, stats: Stats, grid: Grid) -> tuple[float, Tensor]:
    """(alpha, scales (in,)) with which a weight (out, in) errs least: tr(D H Dᵀ), D what is lost.

    Alpha 0 is plain rounding, so that is never better on these inputs.
    """
    assert stats.gram is not None
    magnitudes = stats.magnitudes / stats.num_tokens
    found = []
    for alpha in ALPHAS:
        scales = magnitudes.pow(alpha).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        wide = weight * scales
        lost = weight - grid.round(wide, *grid.fit(wide)).dense() / scales
        found.append((float((lost @ stats.gram * lost).sum()), alpha, scales))
    _, alpha, scales = min(found, key=lambda row: row[:2])
    return alpha, scales


def divide_outputs(source: nn.Module, scales: Tensor) -> None:
    """Divides what a norm or a matrix gives by `scales`, in its own parameters."""
    import torch

    with torch.no_grad():
        if not isinstance(source, torch.nn.Linear) and not _is_linear(source):
            raise _refused(f"has norms ({type(source).__name__}) that add to their weight")
        for parameter in source.parameters():
            parameter.div_(scales.view(-1, *[1] * (parameter.ndim - 1)))


def _is_linear(norm: nn.Module) -> bool:
    """Whether twice the parameters make twice the output; in Gemma's norms, 1 + weight, not."""
    import torch

    twin = deepcopy(norm).float()  # in float16 the smallest numbers do not double
    weight = twin.get_parameter("weight")
    inputs = torch.linspace(-1, 1, weight.shape[-1], device=weight.device)
    once = twin(inputs)
    for parameter in twin.parameters():
        parameter.mul_(2)
    return torch.equal(twin(inputs), once * 2)


def divide_stats(stats: Stats, scales: Tensor) -> None:
    """What is known of inputs, once they are divided by `scales`."""
    assert stats.gram is not None
    stats.squares /= scales.square()
    stats.magnitudes /= scales
    stats.gram /= scales[:, None] * scales
    stats.factors.clear()


def _refused(what: str) -> UserError:
    way_out = "take gptq, or a model such as Llama, Mistral, Qwen2 or Qwen3"
    return UserError("method awq", f"the model {what}", way_out)
