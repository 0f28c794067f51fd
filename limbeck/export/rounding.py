"""How llama.cpp rounds what goes into a matrix product, done to our own model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from limbeck.export import gguf

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@contextmanager
def inputs_rounded(model: PreTrainedModel, kind: str) -> Iterator[None]:
    """Within it the inputs of the model's matrices are rounded as beside matrices of this type."""
    import torch
    from transformers.pytorch_utils import Conv1D

    products = (torch.nn.Linear, Conv1D)
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], kind),))
        for module in model.modules()
        if isinstance(module, products)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rounded(inputs: Tensor, kind: str) -> Tensor:
    """(…, width) as floats of the type's kind, or for all that begin with q as int8 in blocks of
    32, each with a float16 scale (ggml's Q8_0); rows of no whole blocks are float16 there."""
    import torch

    stored = gguf.stored_as("", (1, inputs.shape[-1]), kind).name
    floats: dict[str, Any] = {
        "F32": inputs.dtype,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    if stored in floats:
        return inputs.to(floats[stored]).to(inputs.dtype)
    blocks = inputs.unflatten(-1, (-1, gguf.BLOCK))
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    codes = (blocks / scales.clamp_min(1e-30)).round()
    return (codes * scales.half().to(inputs.dtype)).flatten(-2)
