"""A stage's own place in the run folder, and the machine it runs on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from limbeck import ledger, processes, progress, store
from limbeck.config import StageConfig

Utilisation = Annotated[float, Field(gt=0, le=1)]


class Machine(StageConfig):
    """How to run; never part of a result's identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """CPU threads; `auto` takes every core this process may use, or OMP_NUM_THREADS if set."""
    device_name: str | None = None
    """What `plan` reckons with: H100, A100, RTX 4090 and others that it names."""
    devices: PositiveInt = 1
    """How many of them there are, or of machines without one. All are paid while a stage works."""
    price_per_hour: NonNegativeFloat | None = None
    """What each of them costs an hour, in the currency of one's bill."""
    training_utilisation: Utilisation = 0.3
    """The share of a device's peak that training reaches (Llama 3: 0.38 to 0.43, 2407.21783)."""
    writing_utilisation: Utilisation = 0.05
    """The share that writing reaches, which waits for memory and for the longest text."""
    mean_tokens: PositiveInt = 5355
    """Tokens of an answer, where `max_tokens` is not less (DeepSeek-R1's 800k rows, table 5)."""

    def rent(self) -> ledger.Rent:
        """What is held, and costs, for as long as a stage works."""
        has_gpus = self.device == "cuda"
        num = max(self.devices, processes.num_started() if has_gpus else 1)
        price = None if self.price_per_hour is None else num * self.price_per_hour
        return ledger.Rent(num if has_gpus else 0, price)


@dataclass(frozen=True)
class StageFolder:
    """Where a stage writes. `key` is the identity that its rows' ids carry.

    `recipe` is the recipe's name: what is written is the same in whichever folder it is run. Of
    several processes at one stage only the first `leads`; the others keep no books, and what they
    tell is dropped.
    """

    path: Path
    name: str
    key: str = ""
    machine: Machine = field(default_factory=Machine)
    recipe: str = "run"
    leads: bool = True

    def row_id(self, problem_id: str, index: int, label: str = "") -> str:
        """A row's id is what it is a sample of, never its text: equal texts stay two rows."""
        return store.digest([self.key, label, problem_id, index])[:24]

    def metric(self, **row: Any) -> None:
        """Adds a row to `metrics.jsonl`."""
        if self.leads:
            store.append_json(self.path / "metrics.jsonl", row)

    def metrics(self) -> list[dict[str, Any]]:
        return store.read_jsonl(self.path / "metrics.jsonl")

    def log(self, line: str) -> None:
        """Tells the person who waits, and keeps it in `log.txt`."""
        if not self.leads:
            return
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {progress.visible(line)}\n")
        progress.say(f"  {line}")

    def balance(
        self, inputs: int, ok: int, rejected: int = 0, failed: int = 0, poison: int = 0
    ) -> dict[str, int]:
        """Every input has ended as exactly one of four, or the stage fails.

        `rejected` was judged and not wanted, `failed` could not be done, `poison` could not even
        be read.
        """
        ends = {"ok": ok, "rejected": rejected, "failed": failed, "poison": poison}
        if inputs != sum(ends.values()):
            raise RuntimeError(f"{self.name}: {inputs} inputs ended as {ends}: rows were lost")
        return {"inputs": inputs, **ends}

    def account(self, work: str) -> AbstractContextManager[dict[str, Any]]:
        """Times a piece of work into `ledger.jsonl`."""
        if not self.leads:
            return nullcontext(defaultdict(float))
        return ledger.account(self.path / "ledger.jsonl", work, self.machine.rent())

    @contextmanager
    def progress(self, total: float, unit: str) -> Iterator[Any]:
        """A progress bar with the stage's name; yields `advance(amount, note="")`."""
        if not self.leads:
            yield lambda amount, note="": None
            return
        with progress.progress(self.name, total, unit) as advance:
            yield advance
