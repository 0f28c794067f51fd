"""Folders that hold a model as codes: read into layers, without the dense model where it can be.

Where the format rounds what goes into a matrix, too, the codes themselves are multiplied. Where it
does not, products are those of the dense matrix: that is what the format means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from limbeck import packed
from limbeck.engines.decoder.linear import Kind, Linear, Product, Rounded
from limbeck.errors import UserError
from limbeck.packed import Codes

Join = Callable[[Sequence[str], Tensor | None], Product]
"""What makes one linear layer of modules' matrices, one below the other, and of their bias."""


@dataclass
class Stored:
    """What a folder of codes holds: matrices by their module, all else as tensors of one type."""

    matrices: dict[str, Codes]
    weights: dict[str, Tensor]
    activations: Kind | None  # what goes into a matrix is rounded to
    dtype: torch.dtype


def read_config(folder: Path) -> PretrainedConfig:
    """Of the model that a checked folder's codes stand for."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    del config.quantization_config
    return config


def read_folder(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Stored]:
    """(a model's shape, without any weights; what its folder holds), by a checked folder's codes.

    UserError for whatever `packed.read` refuses and for weights of another model.
    """
    matrices = packed.read(folder)
    scheme = packed.read_scheme(folder)
    assert scheme is not None
    weights = {}
    for path in packed.weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                module, _, part = name.rpartition(".")
                if module not in matrices or part not in packed.PARTS:
                    weights[name] = file.get_tensor(name).to(dtype)
    for name in [name for name in matrices if ".layers." not in name]:  # the head, in some folders
        weights[f"{name}.weight"] = matrices.pop(name).dense().to(dtype)
    config = read_config(folder)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if (folder / "generation_config.json").exists():
        shape.generation_config = GenerationConfig.from_pretrained(folder)
    stored = Stored(matrices, weights, scheme.activations, dtype)
    _refuse_others(folder, shape, stored)
    return shape, stored


def _refuse_others(folder: Path, shape: PreTrainedModel, stored: Stored) -> None:
    """UserError where weights are missing, of another shape, or not finite."""
    found: dict[str, list[Tensor]] = {name: [weight] for name, weight in stored.weights.items()}
    found |= {f"{name}.weight": [x.codes, x.scales] for name, x in stored.matrices.items()}
    for name, needed in shape.named_parameters():
        if name not in found:
            raise _cannot_load(folder, f"lacks {name}, which its config needs")
        if (there := found[name][0].shape) != needed.shape:
            told = f"{tuple(there)} where its config needs {tuple(needed.shape)}"
            raise _cannot_load(folder, f"has {name} of shape {told}")
        for value in found[name]:
            if value.is_floating_point() and not bool(value.float().isfinite().all()):
                raise _cannot_load(folder, f"{name} is not finite")


def _cannot_load(folder: Path, what: str) -> UserError:
    return UserError(f"model {folder}", what, "take config and weights of the same model")


def joining(stored: Stored, device: torch.device) -> Join:
    """Codes stay codes where their inputs are rounded, too; else they become what they stand for.

    Each is taken out of `stored`, so that none lies in memory twice.
    """

    def join(modules: Sequence[str], bias: Tensor | None) -> Product:
        if stored.activations and all(module in stored.matrices for module in modules):
            parts = [stored.matrices.pop(module) for module in modules]
            codes, scales = ([getattr(x, field) for x in parts] for field in ("codes", "scales"))
            whole = Codes(torch.cat(codes), torch.cat(scales))
            return Rounded.of(whole, bias, stored.activations, device)
        dense = [
            stored.matrices.pop(module).dense().to(stored.dtype)
            if module in stored.matrices
            else stored.weights[f"{module}.weight"]
            for module in modules
        ]
        return Linear(torch.cat(dense), bias)

    return join
