"""Where a model computes: its device, its shares of several, and what it keeps of a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from limbeck import processes
from limbeck.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first accelerator, or the CPU. UserError for one that is not there."""
    has_cuda = torch.cuda.is_available()
    device = torch.device(("cuda" if has_cuda else "cpu") if name == "auto" else name)
    is_there = {
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not is_there.get(device.type, True):
        raise UserError(f"device {name}", "this machine or this torch has none", "take auto or cpu")
    return device


def shard(model: nn.Module) -> None:
    """Spreads a model over the processes that torchrun has started (FSDP2, arXiv:2304.11277).

    Each decoder layer gathers its weights when its turn comes, the rest when `model` is called:
    give the module whose `forward` uses every weight. Frozen weights are spread as well. Where a
    process is alone nothing happens.
    """
    if processes.num() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(pick_device().type, (processes.num(),))
    for layer in _decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def plain_weights(model: nn.Module, device: str | None = None) -> dict[str, Tensor]:
    """Its whole weights by name, tied ones the same tensor; of a sharded model, in every process.

    All processes call this together. `device` is where they come to lie; None leaves them where
    they are.
    """
    whole: dict[int, Tensor] = {}
    weights = model.state_dict(keep_vars=True)
    for tensor in weights.values():
        if id(tensor) not in whole:
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            whole[id(tensor)] = full.detach().to(device)
    return {name: whole[id(tensor)] for name, tensor in weights.items()}


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing (arXiv:1604.06174): each layer keeps its input alone.

    The backward pass computes the rest again: a third more work, and the same numbers.
    """
    # transformers 5 renames it on its way
    name = "activation_checkpointing_enable"
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """What transformers never splits over devices."""
    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    names = {name for module in inside for name in module._no_split_modules or ()}
    return [module for module in model.modules() if type(module).__name__ in names]
