"""mix: one data set out of several, by domain, with caps and weights, in an order without meaning.

DeepSeek-R1 learns from 804,745 rows of mathematics, code, STEM, logic and general questions
(2501.12948v2, table 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt, model_validator

from limbeck import card, store, tables
from limbeck.config import DatasetPath, StageConfig, suggest
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.problems import source_name

WRITES = {"dataset": "dataset"}
SCRATCH = ("shuffled",)
SCHEMA = tables.SCHEMAS["dataset"]
SHUFFLED = SCHEMA.append(pa.field("place", pa.uint64()))
ROWS_READ = 1024
ROWS_PER_PART = 4096
MAX_PILES = 256  # files that are open at once

Array = np.ndarray[Any, Any]


class Config(StageConfig):
    parts: dict[str, DatasetPath]
    """The data sets by domain: what each is called here becomes the domain of its rows. A row that
    is in several belongs to the first: by its id, in a table that Limbeck did not write by what it
    says."""
    num: dict[str, PositiveInt] = {}
    """How many rows of a part at most, drawn by a hash of seed and row id, so that a larger cap has
    the rows of a smaller one; all of a part that is not named."""
    weight: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = {}
    """What the weights of a part's rows are multiplied by; 1 if it is not named."""
    seed: int = 0
    """Another one draws other rows and gives another order."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.parts:
            raise ValueError("parts is empty; name data sets")
        for name in {**self.num, **self.weight}:
            if name not in self.parts:
                raise ValueError(f"no part is called {name!r}; {suggest(name, [*self.parts])}")
        return self


@dataclass
class Part:
    """One data set and what is taken of it."""

    name: str
    path: Path
    wanted: int | None
    weight: float
    keys: Array  # (rows,) uint64, a hash of seed and id
    taken: Array  # (rows,) bool
    num_seen_before: int
    num_characters: int = 0  # of the messages of what is taken

    @property
    def num_taken(self) -> int:
        return int(self.taken.sum())


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `dataset` with its card.

    In memory are some twenty bytes for each row and one pile of rows; the rows themselves go
    through the disk once.
    """
    with out.account("draw"):
        parts = draw(config)
    if not any(part.num_taken for part in parts):
        raise UserError(f"{out.name}.parts", "hold no rows", "name data sets that have some")
    total = sum(len(part.keys) for part in parts)
    with out.account("shuffle"), out.progress(total, "rows") as advance:
        for table in shuffled(parts, out.path / "shuffled", advance):
            tables.write_part(out.path / "dataset", table)
    rows = _told(parts)
    for row in rows:
        short = "" if not row["wanted"] else f" of {row['wanted']:,} wanted"
        share = f"{row['share_of_rows']:.1%} of the rows, {row['share_of_text']:.1%} of the text"
        out.log(f"{row['part']}: {row['taken']:,}{short}; {share}")
    num = sum(part.num_taken for part in parts)
    seen = sum(part.num_seen_before for part in parts)
    dropped = {"over the cap": total - num - seen, "in an earlier part, or twice": seen}
    card.write(
        out.path / "dataset",
        name=f"{out.recipe} {out.name}",
        sampled=total,
        dropped={why: number for why, number in dropped.items() if number},
        licences=_licences(parts),
        lineage=_lineage(parts, config.seed, out),
    )
    accounts = out.balance(total, num, rejected=total - num)
    return {"accounts": accounts, "parts": rows, "dropped": dropped}


def draw(config: Config) -> list[Part]:
    """Of each part the rows with the smallest keys that no earlier part has."""
    parts: list[Part] = []
    seen = np.empty(0, np.uint64)
    for name, path in config.parts.items():
        ids = (id for batch in _ids(Path(path)) for id in batch["id"].to_pylist())
        keys = np.fromiter((store.seed_of(config.seed, id) for id in ids), np.uint64)
        taken = np.zeros(len(keys), bool)
        taken[np.unique(keys, return_index=True)[1]] = True
        taken &= ~np.isin(keys, seen)
        num_seen_before, wanted = int((~taken).sum()), config.num.get(name)
        if wanted is not None and wanted < taken.sum():
            taken &= keys <= np.partition(keys[taken], wanted - 1)[wanted - 1]
        seen = np.concatenate([seen, keys[taken]])
        weight = config.weight.get(name, 1.0)
        parts.append(Part(name, Path(path), wanted, weight, keys, taken, num_seen_before))
    return parts


def shuffled(
    parts: Sequence[Part], folder: Path, advance: Callable[[int], None]
) -> Iterator[pa.Table]:
    """Everything that is taken, in the order of its places, in tables of `ROWS_PER_PART` rows.

    Rows are thrown on piles by their place, and each pile is sorted in memory.
    """
    total = sum(part.num_taken for part in parts)
    num_piles = min(MAX_PILES, -(-total // ROWS_PER_PART))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"pile-{number:03d}.arrow" for number in range(num_piles)]
    with ExitStack() as stack:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        piles = [
            stack.enter_context(pa.ipc.new_stream(str(file), SHUFFLED, options=options))
            for file in files
        ]
        for part in parts:
            for batch, places in _taken(part, advance):
                _throw(batch.append_column("place", pa.array(places)), places, piles)
    left = SHUFFLED.empty_table()
    for file in files:
        with pa.ipc.open_stream(str(file)) as pile:
            left = pa.concat_tables([left, pile.read_all().sort_by("place")])
        file.unlink()
        while left.num_rows >= ROWS_PER_PART or (file is files[-1] and left.num_rows):
            yield left.slice(0, ROWS_PER_PART).drop_columns("place")
            left = left.slice(ROWS_PER_PART)


def _taken(part: Part, advance: Callable[[int], None]) -> Iterator[tuple[pa.RecordBatch, Array]]:
    """(rows, their places), batch by batch, with the part's domain and weight."""
    start = 0
    for batch in _rows(part.path):
        here = slice(start, start + batch.num_rows)
        start += batch.num_rows
        advance(batch.num_rows)
        taken = part.taken[here]
        batch = batch.filter(pa.array(taken))
        if not batch.num_rows:
            continue
        texts = batch["messages"].flatten().field("content")
        part.num_characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
        columns = dict(zip(SCHEMA.names, batch.columns, strict=True))
        columns["domain"] = pa.array([part.name] * batch.num_rows)
        columns["weight"] = pc.multiply(columns["weight"], pa.scalar(part.weight, pa.float32()))
        yield (
            pa.RecordBatch.from_pydict(columns, schema=SCHEMA),
            scattered(part.keys[here][taken]),
        )


def _throw(batch: pa.RecordBatch, places: Array, piles: Sequence[Any]) -> None:
    """Each row on the pile of its place; the places of a pile are above those of the one before."""
    pile_of = ((places >> np.uint64(32)) * np.uint64(len(piles))) >> np.uint64(32)
    order = np.argsort(pile_of, kind="stable")
    batch, pile_of = batch.take(pa.array(order)), pile_of[order]
    numbers, starts = np.unique(pile_of, return_index=True)
    ends = [*starts[1:], len(places)]
    for number, start, end in zip(numbers, starts, ends, strict=True):
        piles[int(number)].write_batch(batch.slice(start, end - start))


def scattered(keys: Array) -> Array:
    """A place in [0, 2^64) for each key, by the finalizer of SplitMix64 (Steele et al. 2014).

    Not the key itself: drawn rows have small ones, and a part that is capped would come first.
    """
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _ids(path: Path) -> Iterator[pa.RecordBatch]:
    return tables.iter_batches(path, ["id"], rows=65_536) if _is_ours(path) else _rows(path)


def _rows(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows in our schema; a table that somebody else made may have `messages` alone."""
    if _is_ours(path):
        yield from tables.iter_batches(path, SCHEMA.names, rows=ROWS_READ, again=True)
        return
    number = 0
    for batch in tables.iter_batches(path, rows=ROWS_READ):
        rows = [_completed(row, path, number + i) for i, row in enumerate(batch.to_pylist())]
        number += len(rows)
        yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _is_ours(path: Path) -> bool:
    single = [path] if path.suffix == ".parquet" else []
    files = tables.parts(path) if path.is_dir() else single
    return bool(files) and all(pq.read_schema(file).equals(SCHEMA) for file in files)


def _completed(row: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    """A row of somebody's in our schema.

    It is named by what it says: another table may use the same ids. UserError if it is no lesson.
    """
    try:
        messages = [{"role": str(m["role"]), "content": m["content"]} for m in row["messages"]]
        is_lesson = len(messages) > 1 and messages[-1]["role"] == "assistant"
        if not is_lesson or not all(isinstance(m["content"], str) for m in messages):
            raise ValueError("it does not end with an assistant's message, or one is no text")
        weight = float(1.0 if row.get("weight") is None else row["weight"])
        if not 0 < weight < 1e6:
            raise ValueError(f"its weight is {weight:g}")
        id, problem_id = store.digest(messages)[:24], store.digest(messages[:-1])[:16]
    except (TypeError, ValueError, KeyError) as error:
        what = f"row {number} is no row of a data set ({error})"
        raise UserError(str(path), what, "mend it, or drop it") from error
    return {
        "id": id,
        "problem_id": problem_id,
        "messages": messages,
        "source": str(row.get("source") or source_name(str(path))),
        "teacher": str(row.get("teacher") or ""),
        "weight": weight,
    }


def _told(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """A row per part. Its share of the text is in characters: no tokenizer is known here."""
    num, characters = (
        sum(part.num_taken for part in parts),
        sum(part.num_characters for part in parts),
    )
    return [
        {
            "part": part.name,
            "wanted": part.wanted,
            "found": len(part.keys) - part.num_seen_before,
            "taken": part.num_taken,
            "weight": part.weight,
            "characters": part.num_characters,
            "share_of_rows": round(part.num_taken / num, 4),
            "share_of_text": round(part.num_characters / characters, 4) if characters else 0.0,
        }
        for part in parts
    ]


def _licences(parts: Sequence[Part]) -> dict[str, str]:
    """What the cards of the parts say of their sources; all of it, where they differ."""
    licences: dict[str, str] = {}
    for part in parts:
        card.add_licences(licences, card.read_licences(part.path).items())
    return licences


def _lineage(parts: Sequence[Part], seed: int, out: StageFolder) -> list[str]:
    run = out.path.parent
    lines = [f"Recipe {out.recipe}, stage {out.name} (mix), identity {out.key}, seed {seed}"]
    for part in parts:
        inside = part.path.is_relative_to(run)
        place = f"./{part.path.relative_to(run)}" if inside else source_name(str(part.path))
        cap = "" if part.wanted is None else f", at most {part.wanted:,}"
        weight = "" if part.weight == 1 else f", weight {part.weight:g}"
        lines.append(f"{part.name}: {part.num_taken:,} rows of {place}{cap}{weight}")
    return lines
