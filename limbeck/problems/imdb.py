"""IMDB: is a film review positive or negative?

Maas et al. 2011, https://aclanthology.org/P11-1015.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import PositiveInt

from limbeck.config import FilePath
from limbeck.problems import public, source_name
from limbeck.problems.protocol import Protocol
from limbeck.problems.sst2 import labelled
from limbeck.types import Problem

PROMPT = "Is this film review positive or negative? Answer with one word.\n\n{question}"
PROTOCOL = Protocol(
    num_samples=1,
    num_problems=25_000,
    greedy=True,
    differs=(
        "The set is sorted by label, so that a slice of it has one class; here the order is that"
        " of hashes, and the first n are a fair sample.",
        "Reviews are shown whole; many figures are of the first 256 or 512 tokens.",
        "Of reviews that stand twice in the set, one counts.",
    ),
)


def read(
    *,
    dataset: str = "stanfordnlp/imdb",
    split: str = "test",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = PROMPT,
    last_words: PositiveInt | None = None,
) -> Iterator[Problem]:
    """Columns `text` and `label` (0 negative, 1 positive), in the order of hashes.

    `last_words` shows only so many from a review's end, where critics say what they make of it,
    for models whose context is short.
    """
    rows = public.read_table(path=path, dataset=dataset, split=split, revision=revision)
    if last_words:
        rows = ((where, _cut(row, last_words)) for where, row in rows)
    found = labelled(rows, "text", source_name(path or dataset), prompt)
    return public.in_hash_order(found)


def _cut(row: dict[str, Any], num: int) -> dict[str, Any]:
    """The row with the last `num` words of its text, and what lies between them."""
    text = row.get("text")
    if not isinstance(text, str) or len(words := [*re.finditer(r"\S+", text)]) <= num:
        return row
    return {**row, "text": text[words[-num].start() :]}
