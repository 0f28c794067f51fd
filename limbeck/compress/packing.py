"""Writes a quantized model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import models, packed
from limbeck.packed import Codes, Scheme


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    codes: Mapping[str, Codes],
    scheme: Scheme,
    folder: str | Path,
) -> None:
    """Writes a model's folder with `codes` in the place of the matrices that they name.

    Everything else (embeddings, head, norms, biases) is kept as the model has it. Whole or not at
    all, as `models.save_model`.
    """
    weights = dict(model.state_dict())
    for name, matrix in codes.items():
        del weights[f"{name}.weight"]
        parts = packed.pack(matrix, scheme)
        weights |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    left = [name for name in linear if name not in codes]
    model.config.quantization_config = packed.describe(scheme, left)
    try:
        models.save_model(model, tokenizer, folder, weights)
    finally:
        del model.config.quantization_config
