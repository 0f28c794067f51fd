"""What every piece of work cost: one row each in `ledger.jsonl`.

work                    what was done
tokens_in, tokens_out   read and written
flops                   by `forward_flops` and `training_flops`
wall_seconds            on the clock, without those of accounts within this one
cpu_seconds             of this process and its finished children, likewise
device_seconds          accelerators that were held x seconds; 0 on a CPU
peak_memory_mib         the most that this process held
peak_device_memory_mib  the most that its tensors held on one GPU; 0 without
joules, joules_of       what the machine's counters say (`energy`), and which; or None
money                   rent and what servers were paid; None where nothing has a price
unpriced                true where a server was paid and nobody told its prices
"""

from limbeck.ledger.accounts import Rent, account, summed, total
from limbeck.ledger.clocks import (
    cpu_seconds,
    forget_peak,
    gemm_gflops,
    held_device_memory_mib,
    held_memory_mib,
    peak_device_memory_mib,
    peak_memory_mib,
)
from limbeck.ledger.flops import flops_of, forward_flops, training_flops

__all__ = [
    "Rent",
    "account",
    "cpu_seconds",
    "flops_of",
    "forget_peak",
    "forward_flops",
    "gemm_gflops",
    "held_device_memory_mib",
    "held_memory_mib",
    "peak_device_memory_mib",
    "peak_memory_mib",
    "summed",
    "total",
    "training_flops",
]
