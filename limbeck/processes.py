"""The processes that torchrun has started together, and what they tell each other.

The first leads: it alone writes and speaks. The others follow: they wait, take part in what is
computed together, and end as it ends. All messages are JSON; nothing is unpickled. Imports no
torch; started without torchrun, a process is alone and leads.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

from limbeck.errors import UserError, UserErrors

# A process may wait long for one that reads, or judges; who has died is noticed at once.
LONGEST_WAIT = timedelta(days=7)
POLL_S = 0.05
LOST = re.compile(r"Connection (was|closed|reset)|by peer|Broken pipe|ncclRemoteError|NCCL.*abort")

_store: Any = None
_are_together = False
_numbers = count()


def num_started() -> int:
    """How many processes torchrun has started."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def num_here() -> int:
    """How many of them share this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if num_started() > 1 else 1


def leads() -> bool:
    """Whether this is the first of them."""
    return num_started() == 1 or os.environ["RANK"] == "0"


def num() -> int:
    """How many processes are at the present work: all of them, or the leader alone."""
    return num_started() if _are_together else 1


def rank() -> int:
    """Which of those this is."""
    return int(os.environ["RANK"]) if num() > 1 else 0


def join() -> None:
    """Meets the others, once, and takes the GPU of its own number, where there are GPUs."""
    global _store
    if num_started() == 1 or _store is not None:
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus:
        if num_here() > num_gpus:
            what = f"has {num_gpus} GPUs for {num_here()} processes"
            raise UserError("this machine", what, f"give torchrun --nproc-per-node {num_gpus}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    met, _, _ = next(rendezvous("env://"))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if num_gpus else "gloo",
        store=distributed.PrefixStore("group", met),
        rank=int(os.environ["RANK"]),
        world_size=num_started(),
        timeout=LONGEST_WAIT,
    )
    atexit.register(distributed.destroy_process_group)
    _store = distributed.PrefixStore("limbeck", met)


# -- the leader and those who follow ------------------------------------------------------------


@contextmanager
def leading() -> Iterator[None]:
    """Whoever follows is free again behind it: to go on, or to end if this failed."""
    try:
        yield
    except BaseException as error:
        _tell({"failed": 2 if isinstance(error, UserError | UserErrors) else 1})
        raise
    _tell({"done": True})


@contextmanager
def together(**message: Any) -> Iterator[None]:
    """What all do; the leader tells the others what it is."""
    global _are_together
    if leads():
        _tell(message)
    _are_together = True
    try:
        yield
    finally:
        _are_together = False


def _tell(message: dict[str, Any]) -> None:
    if num_started() > 1:
        _store.set(f"said-{next(_numbers)}", json.dumps(message))


def heard() -> Iterator[dict[str, Any]]:
    """What the leader wants done together, for as long as it leads.

    However long that takes: a stage that nobody else takes part in may run for days. SystemExit
    with the leader's code, if it fails.
    """
    while True:
        key = f"said-{next(_numbers)}"
        while not _store.check([key]):
            time.sleep(POLL_S)
        message = json.loads(_store.get(key))
        if "failed" in message:
            raise SystemExit(message["failed"])
        if "done" in message:
            return
        yield message


@cache
def speaks() -> bool:
    """Whether this process is the one to say what went wrong: the first that asks."""
    if _store is None:
        return leads()
    try:
        return bool(_store.add("failures", 1) == 1)
    except RuntimeError:  # torchrun has gone, and its store with it
        return leads()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process has ended, and no more."""
    return num_started() > 1 and isinstance(error, RuntimeError) and bool(LOST.search(str(error)))


# -- among equals: every process calls these, in the same order ---------------------------------


def gather(value: Any) -> list[Any]:
    """What each process gives, by rank. Plain JSON values."""
    if num() == 1:
        return [value]
    import torch
    from torch import distributed

    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.long) for _ in range(num())]
    distributed.all_gather(lengths, torch.tensor([len(content)]))
    longest = int(max(lengths))
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(num())]
    distributed.all_gather(parts, torch.nn.functional.pad(content, (0, longest - len(content))))
    return [
        json.loads(bytes(part[:length].tolist()))
        for part, length in zip(parts, map(int, lengths), strict=True)
    ]


def agreed(value: Any) -> Any:
    """The leader's value, in every process."""
    return gather(value if leads() else None)[0]
