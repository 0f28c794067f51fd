"""What accelerators do and hold, by their makers' data sheets."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from difflib import get_close_matches

from limbeck.errors import UserError
from limbeck.folder import Machine

HERE = "this machine"


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

    @property
    def one(self) -> str:
        """As it is called in a sentence."""
        return self.name if self.name == HERE else f"one {self.name}"


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


def named(machine: Machine, name: str) -> Machine:
    """The machine with `8xH100` in the place of its devices, or, by `local`, with none named; the
    price is that of the device it was given for."""
    if name == "local":
        return _with(machine, None, 1)
    found = re.fullmatch(r"(?:(\d{1,6})\s*x\s*)?(\S.*)", name)
    num = int(found[1] or 1) if found else 0
    if not found or not num:
        raise UserError("--machine", f"{name!r} is no machine", "write 8xH100, or local")
    return _with(machine, found[2], num)


def _with(machine: Machine, name: str | None, num: int) -> Machine:
    price = machine.price_per_hour if name == machine.device_name else None
    update = {"device_name": name, "devices": num, "price_per_hour": price}
    return machine.model_copy(update=update)


def of_gpus(machine: Machine, gpu: str, num: int) -> Machine:
    """The machine with the GPUs that were found, by the maker's name: NVIDIA H100 80GB HBM3."""
    known = [name for name in TABLE if name in gpu]
    update = {"device_name": max(known, key=len, default=None), "devices": num}
    return machine.model_copy(update=update) if known else machine


def of_this_machine(gflops: float) -> Device:
    """This machine's processor, by what its matrix product was measured to reach."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(HERE, gflops * 1e9, gflops * 1e9, float(memory))


def that_hold(num_bytes: float) -> list[str]:
    """The smallest device that holds as much, as `--machine` names it; none where none does."""
    fitting = [(memory, name) for name, (*_, memory) in TABLE.items() if memory * 1e9 >= num_bytes]
    return [f"--machine {shlex.quote(f'1x{min(fitting)[1]}')}"] if fitting else []
