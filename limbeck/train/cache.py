"""A teacher's distributions on disk: parts of tensors, an index of rows, and what they are of.

`part-*.safetensors` hold, for R learned tokens of whole rows, `ids` (R, k) int32 and `logprobs`
(R, k) float16 with `tails` (R, T) or `entropies` (R,) float32; `index.parquet` says where each row
lies; `distributions.json`, written last, names teacher, tokenizer, method and the files' hashes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbeck import models, store, tables
from limbeck.errors import UserError
from limbeck.guard import weights
from limbeck.train.batch import Example, TokenBatch
from limbeck.train.examples import Lessons
from limbeck.train.teacher import NOTHING, Distribution, join, num_learned

ABOUT, INDEX = "distributions.json", "index.parquet"
INDEXED = pa.schema(
    [
        ("id", pa.string()),
        ("part", pa.int32()),
        ("begin", pa.int64()),
        ("length", pa.int32()),
        ("digest", pa.string()),
    ]
)
PART = re.compile(r"part-(\d{5,})-([0-9a-f]{16})\.safetensors")
AGAIN = "score the data again"
FIELDS = {"teacher", "teacher_hash", "tokenizer", "method", "k", "temperatures", "longest"}


@dataclass(frozen=True)
class Row:
    """Where a row's tokens lie: `length` of them from `begin` on, in part number `part`.

    `digest` is that of the tokens and the mask that were scored.
    """

    id: str
    part: int
    begin: int
    length: int
    digest: str


def digest_of(example: Example) -> str:
    """What a row's tokens and loss mask are."""
    ids, mask = np.array(example.ids, np.int32), np.array(example.loss_mask, np.int8)
    return hashlib.sha256(ids.tobytes() + mask.tobytes()).hexdigest()[:16]


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the ids of a tokenizer mean."""
    return store.digest(sorted(tokenizer.get_vocab().items()))[:16]


# -- writing ------------------------------------------------------------------------------------


def write_part(folder: Path, number: int, found: Distribution) -> Path:
    """Writes a part; whole or not at all. Its name ends in its hash, as a table's part does."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"part-{number:05d}"
    aside = folder / f".{name}.safetensors.tmp"
    aside.write_bytes(save(found))
    path = folder / f"{name}-{store.hash_file(aside)[:16]}.safetensors"
    store.failpoint(f"{folder.parent.name}.{name}")
    store.commit(aside, path)
    store.failpoint(f"{folder.parent.name}.{name}.renamed")
    return path


def whole_parts(folder: Path, tell: Callable[[str], None]) -> dict[int, Path]:
    """The parts that are there, by number; those that changed on disk are set aside."""
    found = {}
    for path in sorted(folder.glob("part-*")):
        named = PART.fullmatch(path.name)
        if named and store.hash_file(path).startswith(named[2]):
            found[int(named[1])] = path
        else:
            path.rename(path.with_name(f".{path.name}.broken"))
            tell(f"{path} changed on disk since it was written; its rows are scored again")
    return found


def mean_tails(parts: Sequence[Path]) -> list[float]:
    """The mass that is not of the k tokens, at each temperature: the mean over all tokens."""
    sums, num = torch.zeros(()), 0
    for path in parts:
        tails = load_file(path)["tails"]
        sums, num = sums + tails.double().exp().sum(0), num + len(tails)
    return (sums / num).tolist()


def seal(
    folder: Path, files: Sequence[Path], parts: Sequence[Sequence[Example]], about: dict[str, Any]
) -> None:
    """Writes the index of the rows in each part and, last, what all of it is."""
    assert about.keys() == FIELDS
    aside = folder / f".{INDEX}.tmp"
    rows = [asdict(row) for number, part in enumerate(parts) for row in _rows(number, part)]
    table = pa.Table.from_pylist(rows, schema=INDEXED)
    pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
    store.commit(aside, folder / INDEX)
    hashes = {path.name: store.hash_file(path) for path in [*files, folder / INDEX]}
    names = [path.name for path in files]
    store.write_sealed(folder / ABOUT, {**about, "parts": names, "files": hashes})


def _rows(number: int, part: Sequence[Example]) -> Iterator[Row]:
    """Where a part's rows lie in it."""
    begin = 0
    for example in part:
        length = num_learned(example)
        yield Row(example.name, number, begin, length, digest_of(example))
        begin += length


# -- reading ------------------------------------------------------------------------------------


def open_cache(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> Cache:
    """The distributions in a folder, its files compared with their hashes.

    UserError where one is missing or changed, and where they are of another tokenizer.
    """
    folder = Path(path)
    if not (folder / ABOUT).exists():
        what = f"holds no distributions (it has no {ABOUT})"
        raise UserError(str(folder), what, "give what a score stage wrote, or finish that stage")
    store.verify(folder / ABOUT)
    about = store.read_sealed(folder / ABOUT)
    if missing := sorted({*FIELDS, "parts", "files"} - about.keys()):
        raise UserError(str(folder / ABOUT), f"does not tell {', '.join(missing)}", AGAIN)
    for name, promised in about["files"].items():
        _refuse_changed(folder / name, promised)
    if about["tokenizer"] != hash_tokenizer(tokenizer):
        what = "is of another tokenizer than the student's"
        way_out = f"score with a teacher that has {tokenizer.name_or_path}'s, or use it live"
        raise UserError(str(folder), what, way_out)
    rows = [Row(**row) for row in tables.read_table(folder / INDEX).to_pylist()]
    return Cache(folder, about, {row.id: row for row in rows}, about["temperatures"][0])


def _refuse_changed(file: Path, promised: str) -> None:
    if not file.exists():
        raise UserError(str(file), "is missing", store.REMAKE)
    if store.hash_file(file) != promised:
        raise UserError(str(file), "changed on disk since it was written", store.REMAKE)


@dataclass
class Cache:
    """Opened distributions; parts are mapped into memory when they are first asked for."""

    folder: Path
    about: dict[str, Any]
    rows: dict[str, Row]
    temperature: float
    opened: dict[int, Distribution] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """`top_k` or `sample`."""
        return str(self.about["method"])

    @property
    def temperatures(self) -> list[float]:
        """Those that were kept."""
        return list(self.about["temperatures"])

    @property
    def longest(self) -> int:
        """Rows of more tokens were not scored."""
        return int(self.about["longest"])

    def check(self, lessons: Lessons, temperature: float, teacher: str | None = None) -> None:
        """Raises UserError unless all that is to be learned is here, at this temperature.

        That is the temperature of the `columns` from then on. Where a `teacher` is named, it must
        be the one that was scored with.
        """
        where = str(self.folder)
        if teacher is not None and models.hash_model(teacher) != self.about["teacher_hash"]:
            what = f"is of another teacher ({self.about['teacher']}) than {teacher}"
            raise UserError(where, what, f"{AGAIN} with {teacher}, or leave teacher out")
        if temperature not in self.temperatures:
            kept = ", ".join(f"{t:g}" for t in self.temperatures)
            way_out = f"take one of these, or {AGAIN} with it in temperatures"
            raise UserError(where, f"has no temperature {temperature:g}, but {kept}", way_out)
        for example in lessons.examples:
            self._check_row(example)
        self.temperature = temperature

    def _check_row(self, example: Example) -> None:
        where, row = str(self.folder), self.rows.get(example.name)
        if row is None:
            what = f"lacks row {example.name}, of {len(example.ids):,} tokens"
            if len(example.ids) > self.longest:
                what += f": what was scored is {self.longest:,} tokens at most"
                raise UserError(where, what, f"set max_length to {self.longest}, or {AGAIN}")
            raise UserError(where, what, f"name the data that was scored, or {AGAIN}")
        if row.digest != digest_of(example):
            what = f"row {example.name} was scored as other tokens"
            way_out = f"{AGAIN}: its text or the chat template changed"
            raise UserError(where, what, way_out)

    def columns(self, batch: TokenBatch) -> dict[str, Tensor]:
        """What a loss needs at the learned tokens of a batch, zeros elsewhere.

        `top_ids` (N, k) int64, `top_logprobs` (N, k) float32, and `tails` (N,), the log of the
        others' mass at the temperature in use, or `entropies` (N,).
        """
        tensors = join(self._tensors(row) for row in self._rows_of(batch))
        self._refuse_not_finite(tensors, batch.document_names)
        told = {"top_ids": tensors["ids"].long(), "top_logprobs": self._logprobs(tensors)}
        if "tails" in tensors:
            place = self.temperatures.index(self.temperature)
            told["tails"] = tensors["tails"][:, place]
        else:
            told["entropies"] = tensors["entropies"]
        return {name: _spread(values, batch) for name, values in told.items()}

    def _rows_of(self, batch: TokenBatch) -> list[Row]:
        """Where the batch's documents lie; UserError for one that is not here as it is."""
        lengths = torch.tensor(batch.document_lengths)
        document = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        learned = document[batch.loss_positions.cpu()].bincount(minlength=len(lengths)).tolist()
        rows = []
        for name, num in zip(batch.document_names, learned, strict=True):
            row = self.rows.get(name)
            if row is None or row.length != num:
                what = f"has not the {num:,} tokens that row {name} learns"
                raise UserError(str(self.folder), what, AGAIN)
            rows.append(row)
        return rows

    def _tensors(self, row: Row) -> Distribution:
        """A row's own stretch of its part."""
        if row.part not in self.opened:
            path = self.folder / self.about["parts"][row.part]
            weights.read_header(path)
            self.opened[row.part] = load_file(path)
        part = self.opened[row.part]
        return {key: tensor[row.begin : row.begin + row.length] for key, tensor in part.items()}

    def _logprobs(self, tensors: Distribution) -> Tensor:
        """In float32. Shares of draws are whole numbers of them: float16's rounding is undone."""
        logprobs = tensors["logprobs"].float()
        if self.method != "sample":
            return logprobs
        num_draws = self.about["k"]
        counts = (logprobs.exp() * num_draws).round()
        return (counts / num_draws).log().clamp_min(NOTHING)

    def _refuse_not_finite(self, tensors: Distribution, names: Sequence[str]) -> None:
        for key, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                what = f"{key} are not finite in rows {', '.join(names[:8])}"
                raise UserError(str(self.folder), what, AGAIN)


def _spread(values: Tensor, batch: TokenBatch) -> Tensor:
    """(M, ...) at the learned tokens, (N, ...) over all."""
    device = batch.ids.device
    spread = torch.zeros(batch.num_tokens, *values.shape[1:], dtype=values.dtype, device=device)
    spread[batch.loss_positions] = values.to(device)
    return spread
