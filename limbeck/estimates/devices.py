"""What accelerators do and hold, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from limbeck.errors import UserError
from limbeck.folder import Machine


@dataclass(frozen=True)
class Device:
    """Dense FLOP/s in bfloat16 and in float32, without sparsity, and bytes of memory."""

    name: str
    bfloat16: float
    float32: float
    memory: float

    def peak(self, dtype: str) -> float:
        """FLOP/s at most."""
        return self.float32 if dtype == "float32" else self.bfloat16


TABLE = {  # TFLOP/s in bfloat16, in float32; GB
    "A100": (312, 19.5, 80),
    "A100-40GB": (312, 19.5, 40),
    "A10G": (70, 35, 24),
    "B200": (2250, 75, 180),
    "H100": (989, 67, 80),
    "H200": (989, 67, 141),
    "H800": (989, 67, 80),
    "L4": (121, 30.3, 24),
    "L40S": (362, 91.6, 48),
    "MI300X": (1307, 163.4, 192),
    "RTX 3090": (71, 35.6, 24),
    "RTX 4090": (165, 82.6, 24),
}


def device_of(machine: Machine) -> Device | None:
    """The accelerator that `machine.device_name` names; UserError for one that is not known."""
    name = machine.device_name
    if name is None:
        return None
    if name not in TABLE:
        meant = get_close_matches(name, TABLE, n=1)
        way_out = f"did you mean {meant[0]!r}?" if meant else f"there is {', '.join(TABLE)}"
        raise UserError("machine.device_name", f"no device {name!r} is known", way_out)
    bfloat16, float32, memory = TABLE[name]
    return Device(name, bfloat16 * 1e12, float32 * 1e12, memory * 1e9)
