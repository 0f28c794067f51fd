"""Low-rank adapters on a frozen base, by peft: put in, added up, saved.

The adapters stand inside the student, whose class and calls stay what they are. They are added to
weights in float32 only: what a 4-bit base has rounded away, a merge onto it would round again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from limbeck import models, processes, sharding, store
from limbeck.config import suggest
from limbeck.errors import UserError
from limbeck.train.config import LoraConfig

QUANTIZED = ("int8", "nf4")


def attach(student: PreTrainedModel, lora: LoraConfig, seed: int) -> None:
    """Puts fresh adapters into a student and freezes all else; the first step begins at its own.

    `seed` alone draws them. UserError where peft is missing, and for layers that are not there.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise _missing("lora", "peft", "lora") from error
    targets = lora.targets
    if targets != "all-linear":
        check_targets(student, targets)
    config = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number, whatever it says
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in student.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, student)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_targets(student: PreTrainedModel, targets: list[str]) -> None:
    """UserError for a target that names no linear layer, or the head, which stays as it is."""
    head = student.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)
    found = (n for n, m in student.named_modules() if isinstance(m, kinds) and m is not head)
    names = sorted({name.rpartition(".")[2] for name in found})
    for target in targets:
        if target not in names:
            what = f"{type(student).__name__} has no linear layer {target!r} that could adapt"
            raise UserError("lora.targets", what, suggest(target, names))


def has_adapters(student: nn.Module) -> bool:
    return any(_is_adapter(name) for name, _ in student.named_parameters())


def is_plain(student: nn.Module) -> bool:
    """Whether its weights are those of its model, whole and on one device."""
    return not sharding.is_sharded(student) and not has_adapters(student)


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def num_parameters(student: nn.Module) -> int:
    """Those of the model itself, without adapters; of a quantized matrix what it stands for."""
    own = (p for name, p in student.named_parameters() if not _is_adapter(name))
    states = ((p, getattr(p, "quant_state", None)) for p in own)
    return sum(p.numel() if state is None else state.shape.numel() for p, state in states)


def deltas(student: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What each adapter adds to its layer: (the weight's name, scale * B A in its layout)."""
    for name, module in student.named_modules():
        if hasattr(module, "lora_A"):
            down = sharding.plain_weights(module.lora_A)["default.weight"]
            up = sharding.plain_weights(module.lora_B)["default.weight"]
            delta = float(module.scaling["default"]) * (up @ down)
            yield f"{name}.weight", delta.T if module.fan_in_fan_out else delta


@torch.no_grad()
def plain_weights(student: PreTrainedModel) -> dict[str, Tensor]:
    """The weights by the names of a model without adapters, these added up.

    Of a base that is not held in float32, the float32 weights are read from disk again.
    """
    if has_adapters(student) and any(p.dtype != torch.float32 for p in student.parameters()):
        return plain_copy(student).state_dict()
    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in sharding.plain_weights(student).items()
        if not _is_adapter(name)
    }
    return weights | {name: weights[name] + delta for name, delta in deltas(student)}


@torch.no_grad()
def plain_copy(student: PreTrainedModel) -> PreTrainedModel:
    """A float32 model of its own on the CPU, adapters added to the weights that they adapt.

    It begins as what the student began as, read from disk again.
    """
    config = student.config
    rope = getattr(config, "rope_parameters", None) or {}
    context, theta = config.max_position_embeddings, rope.get("rope_theta")
    plain = models.load_model(config._name_or_path, "float32", "cpu", context, theta)
    if has_adapters(student):
        for name, delta in deltas(student):
            weight = plain.get_parameter(name)
            weight.add_(delta.to(weight.device))
    else:
        plain.load_state_dict(plain_weights(student))
    return plain


def save_adapter(student: PreTrainedModel, base: str, folder: Path) -> None:
    """Writes the adapters as peft's `PeftModel.from_pretrained` reads them; `base` names theirs.

    A folder's name is told as seen from theirs, so that a run may be moved as a whole.
    """
    weights = {
        f"base_model.model.{name.replace('.default.', '.')}": weight.contiguous()
        for name, weight in sharding.plain_weights(student, "cpu").items()
        if _is_adapter(name)
    }
    models.check_finite(weights, str(folder))
    if not processes.leads():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    name, _, revision = base.partition("@")
    if os.path.isdir(base):
        name, revision = os.path.relpath(base, folder), ""
    config: Any = student.peft_config["default"]
    told = config.to_dict() | {"base_model_name_or_path": name, "revision": revision or None}
    told["inference_mode"] = True
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in told.items()}
    store.write_json(folder / "adapter_config.json", plain)


def quantize(student: PreTrainedModel, kind: str, dtype: torch.dtype, device: str) -> None:
    """Holds a student's linear layers, but the head, in 8 or 4 bits, and moves it to `device`.

    `kind` is int8 (arXiv:2208.07339) or nf4 (arXiv:2305.14314); products are computed in `dtype`.
    """
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels it does without
        import bitsandbytes.nn as bnb
    except ImportError as error:
        raise _missing(f"lora.base: {kind}", "bitsandbytes", "quantized") from error
    head = student.get_output_embeddings()
    layers = [(n, m) for n, m in student.named_modules() if type(m) is nn.Linear and m is not head]
    if not layers:
        what = f"{type(student).__name__} has no linear layers that could be quantized"
        raise UserError(f"lora.base: {kind}", what, "take base: bfloat16")
    for name, layer in layers:
        sizes, data = (layer.in_features, layer.out_features), layer.weight.data
        new: Any
        if kind == "nf4":
            new = bnb.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4", device="meta")
            new.weight = bnb.Params4bit(data, requires_grad=False, quant_type="nf4")
            new.support_avx512bf16_for_cpu = False  # a look would repack the weights in bfloat16
        else:
            new = bnb.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
            new.weight = bnb.Int8Params(data, requires_grad=False, has_fp16_weights=False)
        new.bias = layer.bias
        student.set_submodule(name, new.to(device))
    student.to(device)  # type: ignore[arg-type]
    setattr(student, f"is_loaded_in_{8 if kind == 'int8' else 4}bit", True)  # peft asks for it


def _missing(where: str, package: str, extra: str) -> UserError:
    return UserError(where, f"needs {package}", f"pip install 'limbeck[{extra}]'")
