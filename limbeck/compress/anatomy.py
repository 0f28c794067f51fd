"""Which modules of a decoder are what: its blocks, and the matrices in them."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from limbeck.errors import UserError

MATRICES = (nn.Linear, Conv1D)
WAY_OUT = "take a plain decoder, such as Llama, Qwen2, Qwen3, Mistral or GPT-2"


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks, in order.

    UserError for what is no plain decoder: encoder-decoders, mixtures of experts, blocks that
    share weights, matrices that are quantized already.
    """
    if model.config.is_encoder_decoder:
        raise _refused(model, "is an encoder-decoder")
    num = getattr(model.config, "num_hidden_layers", None)
    lists = [part for part in model.base_model.modules() if isinstance(part, nn.ModuleList)]
    found = [part for part in lists if len(part) == num]
    if len(found) != 1:
        raise _refused(model, "has no single list of decoder blocks")
    uses = Counter(id(weight) for block in found[0] for weight in block.parameters())
    if max(uses.values(), default=0) > 1:
        raise _refused(model, "has blocks that share weights")
    for block in found[0]:
        _refuse_strange(model, block)
    return found[0]


def names(model: PreTrainedModel) -> list[str]:
    """What the blocks are called, in order: 'model.layers.0' and so on."""
    found = blocks(model)
    place = next(name for name, module in model.named_modules() if module is found)
    return [f"{place}.{index}" for index in range(len(found))]


def matrices(block: nn.Module) -> dict[str, nn.Module]:
    """A block's matrices by their names within it, 'self_attn.q_proj' for instance."""
    return {name: part for name, part in block.named_modules() if isinstance(part, MATRICES)}


def weight_of(matrix: nn.Module) -> Tensor:
    """A matrix's weight, (out, in), without a gradient; GPT-2 keeps it the other way round."""
    weight = matrix.get_parameter("weight").detach()
    return weight.T if isinstance(matrix, Conv1D) else weight


def set_weight(matrix: nn.Module, weight: Tensor) -> None:
    """Writes a weight, (out, in), in the place of the matrix's own."""
    with torch.no_grad():
        weight_of(matrix).copy_(weight)


def _refuse_strange(model: PreTrainedModel, block: nn.Module) -> None:
    """What is neither a matrix nor a vector would be left as it is, and nobody told."""
    known = {id(matrix.weight) for matrix in matrices(block).values()}
    if any("experts" in name for name, _ in block.named_modules()):
        raise _refused(model, "is a mixture of experts")
    for name, weight in block.named_parameters():
        if not weight.is_floating_point():
            raise _refused(model, f"is quantized already ({name} holds {weight.dtype})")
        if weight.ndim > 1 and id(weight) not in known:
            raise _refused(model, f"has weights of an unknown kind, {name}")


def _refused(model: PreTrainedModel, what: str) -> UserError:
    return UserError(
        f"model {model.name_or_path or 'here'}", f"{type(model).__name__} {what}", WAY_OUT
    )
