"""Training state on disk: written aside, hashed, renamed; the newest one that verifies is loaded.

No pickle: weights and moments are safetensors, everything else JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck import store
from limbeck.errors import UserError
from limbeck.models import check_finite

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
NUM_KEPT = 2
logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]
) -> Path:
    """Writes folder/step-000100 with all that `load_newest` needs, and keeps the newest two.

    `state` is the loop's own, plain JSON values. The random states of torch, numpy and Python are
    saved with it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:06d}"
    aside = folder / f".{name}.writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    weights, (moments, numbers) = _weights(model), _optimizer_state(model, optimizer)
    check_finite({**weights, **moments}, f"step {step}")
    point = f"{folder.parent.name}.checkpoint-{step}"
    save_file(weights, aside / "model.safetensors")
    store.failpoint(f"{point}.weights")
    save_file(moments, aside / "optimizer.safetensors")
    store.failpoint(f"{point}.optimizer")
    rest = {"step": step, "state": state, "optimizer": numbers, "random": _random_states()}
    (aside / "state.json").write_text(json.dumps(rest))
    hashes = {name: _hash(aside / name) for name in FILES}
    _sync(aside.iterdir())
    store.failpoint(f"{point}.manifest")
    (aside / "manifest.json").write_text(json.dumps(hashes, indent=1))
    _sync([aside / "manifest.json", aside])
    store.failpoint(f"{point}.aside")
    final = folder / name
    if final.exists():  # it did not verify, or we would not be at this step again
        shutil.rmtree(final)
    aside.rename(final)
    _sync([folder])
    store.failpoint(f"{point}.renamed")
    for old in _checkpoints(folder)[NUM_KEPT:]:
        shutil.rmtree(old)
    return final


def load_newest(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
    """Puts the newest intact checkpoint into model, optimizer and random states; gives its `state`.

    None when there is none. Broken ones are passed over with a warning. UserError when an intact
    one belongs to another model.
    """
    for path in _checkpoints(Path(folder)):
        problem = _problem(path)
        if problem:
            logger.warning("%s: %s; taking an older one", path, problem)
            continue
        rest = json.loads((path / "state.json").read_text())
        _load_weights(path, model)
        _load_optimizer(path, model, optimizer, rest["optimizer"])
        _set_random_states(rest["random"])
        return rest["state"]
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    paths = folder.glob("step-*") if folder.is_dir() else []
    steps = {path: re.fullmatch(r"step-(\d+)", path.name) for path in paths}
    return sorted((p for p, m in steps.items() if m), key=lambda p: -int(p.name[5:]))


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        hashes = json.loads((path / "manifest.json").read_text())
        broken = [name for name in FILES if _hash(path / name) != hashes[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unfinished ({error})"
    return f"{', '.join(broken)} changed on disk" if broken else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(paths: Iterable[Path]) -> None:
    """Through to the disk, folders too: a rename must not arrive before what it names."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (tied ones once) and the buffers that belong to the state."""
    kept = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    tensors = {**dict(model.named_parameters()), **buffers}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _load_weights(path: Path, model: nn.Module) -> None:
    saved = load_file(path / "model.safetensors")
    own = _weights(model)
    shapes = {name: tensor.shape for name, tensor in own.items()}
    if {name: tensor.shape for name, tensor in saved.items()} != shapes:
        raise UserError(
            str(path), "its weights are another model's", "give this run another folder"
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _optimizer_state(
    model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `parameter|key`; the groups' hyperparameters as plain numbers."""
    moments = {
        f"{name}|{key}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return moments, {"groups": groups}


def _load_optimizer(
    path: Path, model: nn.Module, optimizer: Optimizer, numbers: dict[str, Any]
) -> None:
    saved = load_file(path / "optimizer.safetensors")
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, value in saved.items():
        name, key = full_name.rsplit("|", 1)
        parameter = parameters[name]
        # Moments live beside their parameter; the step counter too, as fused kernels want it.
        optimizer.state[parameter][key] = value.to(parameter.device)
    for group, kept in zip(optimizer.param_groups, numbers["groups"], strict=True):
        group.update({key: _like(group.get(key), value) for key, value in kept.items()})


def _like(old: Any, new: Any) -> Any:
    """JSON has no tuples; betas are one."""
    return tuple(new) if isinstance(old, tuple) else new


def _random_states() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        states["cuda"] = [s.numpy().tobytes().hex() for s in torch.cuda.get_rng_state_all()]
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(_from_hex(states["torch"]))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_from_hex(text) for text in states["cuda"]])


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
