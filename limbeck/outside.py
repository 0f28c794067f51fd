"""What a recipe names outside its run: looked at before anything runs. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck import guard, store, tables
from limbeck.config import suggest
from limbeck.errors import UserError
from limbeck.guard import weights

NUM_LOOKED_AT = 1000  # rows
MAX_JSON = 64 << 20
NEEDED = {  # columns that a foreign table must have
    **{kind: schema.names for kind, schema in tables.SCHEMAS.items()},
    "traces": [n for n in tables.SCHEMAS["traces"].names if n not in ("token_ids", "logprobs")],
    "dataset": ["messages"],
    "pairs": ["messages", "chosen", "rejected"],
}


def mistake(kind: str, path: Path, speaks: bool = True) -> str | None:
    """'what; way out' where a path that exists is not of this kind; of a model, where nobody can
    speak to it, unless it is about to be taught (not `speaks`)."""
    try:
        if kind == "file":
            return None if path.is_file() else f"{str(path)!r} is a folder; name the file in it"
        if kind == "model":
            return _of_model(path, speaks)
        if kind == "distributions":
            return _of_distributions(path)
        return _of_table(kind, path) if kind in NEEDED else None
    except UserError as error:
        return f"{error.where}: {error.what}; {error.way_out}"
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        return f"{str(path)!r} cannot be read ({reason}); make it again"


def _of_model(folder: Path, speaks: bool) -> str | None:
    if not (folder / "config.json").is_file():
        return f"{str(folder)!r} is no model (it has no config.json); give a Hugging Face folder"
    config, settings = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    places = ("chat_template.jinja", "chat_template.json", "chat_templates")
    has_own = settings.get("chat_template") or any((folder / name).exists() for name in places)
    if speaks and not has_own:
        way_out = "take an instruction-tuned model, or give it one by a stage `adopt`"
        return f"{str(folder)!r} has no chat template; {way_out}"
    tokens, rows = _num_tokens(_json(folder / "tokenizer.json")), config.get("vocab_size")
    if isinstance(rows, int) and tokens > rows:
        what = f"has a tokenizer of {tokens:,} tokens, but an embedding of {rows:,}"
        return f"{str(folder)!r} {what}; take the model's own tokenizer"
    return None


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none, or one that is not worth the wait."""
    if not path.is_file() or path.stat().st_size > MAX_JSON:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no object")
    return value


def _num_tokens(tokenizer: dict[str, Any]) -> int:
    """One more than the largest id of a tokenizer.json; 0 where it does not say."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else [len(vocabulary or ()) - 1]
    added = tokenizer.get("added_tokens") or []
    ids += [token.get("id") for token in added if isinstance(token, dict)]
    return max((i for i in ids if isinstance(i, int)), default=-1) + 1


def _of_distributions(folder: Path) -> str | None:
    about = folder / "distributions.json"
    if not about.is_file():
        way_out = "give what a score stage wrote, RUN/score/distributions for instance"
        return f"{str(folder)!r} holds no distributions (it has no {about.name}); {way_out}"
    for name in store.read_sealed(about).get("files", ()):
        if not (folder / name).is_file():
            return f"{str(folder / name)!r} is missing; {store.REMAKE}"
        if name.endswith(".safetensors"):
            weights.read_header(folder / name)
    return None


def _of_table(kind: str, path: Path) -> str | None:
    files = tables.parts(path) if path.is_dir() else [path]
    if not files:
        return f"{str(path)!r} holds no table; give a folder of parts, a .parquet or .jsonl file"
    rows = list(islice(_rows(files[0]), NUM_LOOKED_AT))
    if not rows:
        return f"{files[0].name!r} has no rows; give a table that has some"
    for number, row in enumerate(rows):
        for column in NEEDED[kind]:
            if column not in row:
                return f"{path.name!r} has no {column!r} in row {number}; {suggest(column, [*row])}"
        if kind == "dataset" and not is_lesson(row["messages"]):
            what = f"row {number} does not end with an assistant's message"
            return f"{path.name!r}: {what}; give rows of `messages`: user, then assistant"
    return None


def _rows(file: Path) -> Iterator[Any]:
    if ".jsonl" in file.name:
        yield from (row for _, row in guard.parse_rows(file))
    else:
        guard.check_parquet(file)
        for batch in pq.ParquetFile(file).iter_batches(batch_size=NUM_LOOKED_AT):
            yield from batch.to_pylist()


def is_lesson(messages: Any) -> bool:
    """Whether there is something to learn: an assistant's message, after another."""
    if not isinstance(messages, list) or len(messages) < 2:
        return False
    good = all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    return good and messages[-1]["role"] == "assistant"
