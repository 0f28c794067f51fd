"""Training state on disk: written aside, hashed, renamed; the newest one that verifies is loaded.

No pickle: weights and moments are safetensors, everything else JSON. Several processes write one
file each by torch.distributed.checkpoint; a process that is alone writes its two by itself, which
takes a tenth of the time. Any number of processes reads either.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck import processes, store
from limbeck.errors import UserError
from limbeck.models import check_finite

NUM_KEPT = 2
logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    is_best: bool = False,
) -> Path:
    """Writes folder/step-000100 with all that `load_newest` needs.

    The newest two are kept, and the newest that `is_best`. `state` is the loop's own, plain JSON
    values. The random states of torch, numpy and Python are saved with it, those of every process.
    Frozen weights are not saved. All processes that train the model call this together.
    """
    folder = Path(folder)
    aside, final = folder / f".step-{step:06d}.writing", folder / f"step-{step:06d}"
    weights, moments = _weights(model), _moments(model, optimizer)
    check_finite({**weights, **moments}, f"step {step}")
    if processes.leads():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    randoms = processes.gather(_random_states())  # now the folder is there
    point = f"{folder.parent.name}.checkpoint-{step}"
    _write(weights, moments, aside, point)
    if processes.leads():
        rest = {"step": step, "is_best": is_best, "state": state, "random": randoms}
        rest["optimizer"] = {"groups": _groups(optimizer)}
        (aside / "state.json").write_text(json.dumps(rest))
    hashes = _hash(aside)
    if processes.leads():
        _finish(aside, final, hashes, point)
        _sweep(folder)
    processes.gather(None)  # nobody goes on before it is there
    return final


def load_newest(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
    """Puts the newest intact checkpoint into model, optimizer and random states; gives its `state`.

    None when there is none. Broken ones are passed over with a warning. UserError when an intact
    one belongs to another model.
    """
    for path in _intact(_checkpoints(Path(folder))):
        rest = _rest(path)
        _read(path, model, optimizer)
        groups = zip(optimizer.param_groups, rest["optimizer"]["groups"], strict=True)
        for group, kept in groups:
            group.update({key: _like(group.get(key), value) for key, value in kept.items()})
        _set_random_states(rest["random"][processes.rank() % len(rest["random"])])
        return rest["state"]
    return None


def load_best(folder: Path, model: nn.Module) -> dict[str, Any] | None:
    """Puts the weights of the best intact checkpoint into the model; gives its `state`, or None."""
    for path in _intact([path for path in _checkpoints(Path(folder)) if _is_best(path)]):
        _read(path, model)
        return _rest(path)["state"]
    return None


# -- files ---------------------------------------------------------------------------------------


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    paths = folder.glob("step-*") if folder.is_dir() else []
    steps = {path: re.fullmatch(r"step-(\d+)", path.name) for path in paths}
    return sorted((p for p, m in steps.items() if m), key=lambda p: -int(p.name[5:]))


def _intact(paths: list[Path]) -> Iterator[Path]:
    """Those whose files are as they were written."""
    for path in processes.agreed([str(path) for path in paths]):
        problem = _problem(Path(path))
        if problem is None:
            yield Path(path)
        elif processes.leads():
            logger.warning("%s: %s; taking an older one", path, problem)


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None; the same in every process."""
    problem = None
    try:
        hashes = json.loads((path / "manifest.json").read_text())
        own = sorted({"state.json", *hashes})[processes.rank() :: processes.num()]
        broken = [name for name in own if store.hash_file(path / name) != hashes[name]]
        problem = f"{', '.join(broken)} changed on disk" if broken else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"unfinished ({error})"
    return next((found for found in processes.gather(problem) if found), None)


def _rest(path: Path) -> dict[str, Any]:
    """What is neither weights nor moments."""
    rest: dict[str, Any] = json.loads((path / "state.json").read_text())
    return rest


def _sweep(folder: Path) -> None:
    """Removes what is neither among the newest nor the best."""
    paths = _checkpoints(folder)
    best = [path for path in paths if _is_best(path)][:1]
    for path in paths[NUM_KEPT:]:
        if path not in best:
            shutil.rmtree(path)


def _is_best(path: Path) -> bool:
    try:
        return bool(_rest(path)["is_best"])
    except (OSError, ValueError, KeyError):
        return False  # broken, and passed over when it is read


def _finish(aside: Path, final: Path, hashes: dict[str, str], point: str) -> None:
    """The manifest last, and then the name."""
    store.failpoint(f"{point}.manifest")
    (aside / "manifest.json").write_text(json.dumps(hashes, indent=1))
    _sync([aside / "manifest.json", aside])
    store.failpoint(f"{point}.aside")
    if final.exists():  # it did not verify, or we would not be at this step again
        shutil.rmtree(final)
    aside.rename(final)
    _sync([final.parent])
    store.failpoint(f"{point}.renamed")


def _hash(folder: Path) -> dict[str, str]:
    """sha256 of every file, each on disk by then; the processes share the work."""
    processes.gather(None)  # until all have written
    names = processes.agreed(sorted(path.name for path in folder.iterdir()))
    own = names[processes.rank() :: processes.num()]
    _sync(folder / name for name in own)
    hashes = {name: store.hash_file(folder / name) for name in own}
    return {name: value for part in processes.gather(hashes) for name, value in part.items()}


def _sync(paths: Iterable[Path]) -> None:
    """Through to the disk, folders too: a rename must not arrive before what it names."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _write(
    weights: dict[str, Tensor], moments: dict[str, Tensor], folder: Path, point: str
) -> None:
    if processes.num() == 1:
        save_file(_in_order(weights), folder / "model.safetensors")
        store.failpoint(f"{point}.weights")
        save_file(_in_order(moments), folder / "optimizer.safetensors")
    else:
        from torch.distributed import checkpoint

        # How to share the work, torch agrees upon by pickles between these processes; none is kept.
        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        checkpoint.save({**weights, **moments}, storage_writer=writer)
    store.failpoint(f"{point}.optimizer")


def _in_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _read(path: Path, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Into the weights, and the moments if there is an optimizer."""
    from torch.distributed import checkpoint

    reader = checkpoint.HuggingFaceStorageReader(str(path))
    saved: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
    weights = _weights(model)
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if {name: tensor.size for name, tensor in saved.items() if "|" not in name} != shapes:
        what = "its weights are another model's"
        raise UserError(str(path), what, "give this run another folder")
    moments = {}
    if optimizer is not None:
        _begin(optimizer)
        moments = {k: v for k, v in _moments(model, optimizer).items() if k in saved}
    with warnings.catch_warnings():  # it says that it is alone
        warnings.simplefilter("ignore", UserWarning)
        is_alone = processes.num() == 1
        checkpoint.load({**weights, **moments}, storage_reader=reader, no_dist=is_alone)
    if optimizer is not None:
        begun = {name.rpartition("|")[0] for name in moments}
        for name, parameter in model.named_parameters():
            if name not in begun:  # it had no gradient yet
                optimizer.state.pop(parameter, None)


# -- tensors -------------------------------------------------------------------------------------


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that learn (tied ones once) and the buffers that belong to the state."""
    kept = model.state_dict().keys()  # asking for it also scatters what a look had gathered
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: tensor.detach() for name, tensor in {**learning, **buffers}.items()}


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by `parameter|key`."""
    return {
        f"{name}|{key}": value.detach()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _begin(optimizer: Optimizer) -> None:
    """A step that moves nothing, so that there are moments of the right kind to read into."""
    optimizer.state.clear()
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups' hyperparameters, plain numbers."""
    groups = optimizer.param_groups
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


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
