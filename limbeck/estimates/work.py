"""The nouns of an estimate: how many rows, what effort, and what is known of earlier stages.

Each verb has a function `(config, given) -> Work`, in `writing.py` or `training.py`. Amounts are
upper bounds: a source may run dry, and curation drops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Literal

from limbeck import ledger
from limbeck.estimates.amounts import Amount, of_table
from limbeck.estimates.memory import Memory
from limbeck.estimates.shapes import UNKNOWN, Shape, of_model

PLAIN = ("worked", "readable", "gold", "replay")  # engines that are plain functions
WRITERS = ("sample", "evaluate", "rewrite", "general", "prefer")  # verbs whose engine writes


@dataclass(frozen=True)
class Effort:
    """So many FLOPs of one kind, on all devices of a stage or, unless `spread`, on one of them."""

    kind: Literal["training", "writing"]
    flops: float
    dtype: str = "float32"
    spread: bool = True


def reading(shape: Shape, tokens: float, dtype: str) -> Effort:
    """A forward pass over given tokens."""
    return Effort("training", forward_flops(shape, tokens), dtype)


def forward_flops(shape: Shape, tokens: float) -> float:
    """As the ledger counts them; of a mixture of experts, by those that a token meets."""
    return ledger.forward_flops(1, 1) * shape.num_active * tokens


@dataclass(frozen=True)
class Work:
    """What a stage computes (`shape` is its model's, `tokens` what that reads or writes), holds,
    and pays others for; and what it makes: `model`, and `models` under other names. Where it is
    not `spread` it knows but one device. `rows` are those that it goes through, or texts that it
    writes, `batch_rows` of them at once. `host`: bytes that lie beside the device, of a model that
    comes onto it layer by layer; `written`: bytes of files that are no model of ours."""

    shape: Shape | None = None
    tokens: float = 0.0
    rows: float = 0.0
    batch_rows: float = 1.0
    efforts: tuple[Effort, ...] = ()
    memory: Memory | None = None
    host: float = 0.0
    spread: bool = True
    paid: float = 0.0
    unknown: tuple[str, ...] = ()
    tables: Mapping[str, Amount] = field(default_factory=dict)
    model: Shape | None = None
    models: Mapping[str, Shape] = field(default_factory=dict)
    written: float = 0.0

    @property
    def flops(self) -> float:
        """Of all its efforts."""
        return sum(effort.flops for effort in self.efforts)

    @property
    def units(self) -> float:
        """What its time grows with: tokens, where a model reads or writes them, else rows."""
        return self.tokens or self.rows


@dataclass
class Given:
    """What is known when a stage's turn comes: `stage/output` of those before it. An answer has
    `mean_tokens`, unless the stage's own have been measured: `answer`."""

    mean_tokens: int
    tables: dict[str, Amount] = field(default_factory=dict)
    models: dict[str, Shape] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    answer: float | None = None

    def table(self, path: str) -> Amount:
        """Of `./stage/output`, or of a table that is there already."""
        if path not in self.tables:
            self.tables[path] = Amount() if path.startswith("./") else of_table(path)
        return self.tables[path]

    def model(self, path: str) -> Shape:
        """Of `./stage/model`, a folder or a Hub name."""
        return self.models.get(path, UNKNOWN) if path.startswith("./") else of_model(path)

    def flops_of(self, path: str) -> float:
        """What the stage that writes a table takes, or took elsewhere."""
        if path.startswith("./"):
            return self.flops.get(path, nan)
        told = ledger.flops_of(path)
        return nan if told is None else told

    def length(self, max_tokens: int) -> float:
        """Tokens of an answer: measured, or the assumed mean, where it may be so long."""
        return min(max_tokens, self.mean_tokens if self.answer is None else self.answer)
