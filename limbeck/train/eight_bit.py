"""AdamW whose moments are held in 8 bits, by torchao, with a state of plain tensors.

torchao keeps a moment as one object of codes, scales and their table. Between steps these lie apart
here, as a checkpoint writes tensors: what is saved is what was computed, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torchao.optim
from torch import Tensor
from torch.optim import Optimizer
from torchao.optim.subclass_8bit import OptimState8bit, get_qmap_signed, get_qmap_unsigned

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""The moments of AdamW, and whether they have a sign."""


class AdamW8bit(torchao.optim.AdamW8bit):
    """Takes over the groups of an optimizer that has not begun; moments of small tensors stay."""

    def __init__(self, other: Optimizer) -> None:
        kept = ("params", "weight_decay", "betas", "lr")
        groups = [{key: group[key] for key in kept} for group in other.param_groups]
        super().__init__(groups)
        self._set_rates(float)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update, by the `lr` of each group."""
        self._set_rates(torch.tensor)
        for state in self.state.values():
            _join(state)
        # A GPU needs the compiled kernel; a CPU would only wait for a C++ compiler.
        eager = self.param_groups[0]["params"][0].device.type == "cpu"
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            super().step(closure)
        for state in self.state.values():
            _take_apart(state)
        self._set_rates(float)

    def _set_rates(self, kind: Callable[[float], Any]) -> None:
        """torchao wants tensors, everybody else numbers."""
        for group in self.param_groups:
            group["lr"] = kind(float(group["lr"]))


def _join(state: dict[str, Any]) -> None:
    for name, signed in MOMENTS.items():
        codes: Tensor | None = state.pop(f"{name}.codes", None)
        if codes is not None:
            table = get_qmap_signed() if signed else get_qmap_unsigned()
            scale = state.pop(f"{name}.scale")
            levels = torch.tensor(table, device=codes.device)
            state[name] = OptimState8bit(codes, scale, levels, signed, torch.float32)


def _take_apart(state: dict[str, Any]) -> None:
    for name in MOMENTS:
        if isinstance(moment := state[name], OptimState8bit):
            del state[name]
            state[f"{name}.codes"], state[f"{name}.scale"] = moment.codes, moment.scale
