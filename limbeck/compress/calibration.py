"""The texts that a model is made smaller by: what it lives on, its own verified traces at best."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import chat, outside, tables
from limbeck.errors import UserError
from limbeck.types import Message

UNKNOWN_SHARE = 0.01
"""Of all tokens: of more the model never learned what they are."""


@dataclass(frozen=True)
class Calibration:
    """Token ids of texts, where they are from, and how many of them each author wrote."""

    texts: list[list[int]]
    source: str
    authors: Counter[str]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.texts))

    @property
    def told(self) -> str:
        """'128 texts of 40,212 tokens from curate/dataset, written by sft/model'."""
        source = "/".join(self.source.rstrip("/").split("/")[-2:])
        told = f"{len(self.texts):,} texts of {self.num_tokens:,} tokens from {source}"
        authors = ", ".join(author for author, _ in self.authors.most_common())
        return f"{told}, written by {authors}" if authors else told


def read_calibration(
    path: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_texts: int,
    max_length: int,
    seed: int,
) -> Calibration:
    """The first `num_texts` rows of a data set, in an order that `seed` gives: prompt and answer by
    the chat template, cut to `max_length` tokens and to the model's context.

    UserError where there are none, for a row that does not end with an assistant's message, and for
    a tokenizer that does not know what these texts say.
    """
    rows = _rows(path, num_texts, seed)
    pairs = [_pair(row, path) for row in rows]
    longest = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
    texts = [ids[:longest] for ids, _ in chat.encode_examples(tokenizer, pairs)]
    if not texts:
        raise UserError(path, "holds no text of any weight", "give a data set that has some")
    _refuse_unknown(path, texts, tokenizer)
    authors = Counter(str(row["teacher"]) for row in rows if row.get("teacher"))
    return Calibration(texts, path, authors)


def _rows(path: str, num: int, seed: int) -> list[dict[str, Any]]:
    """The first rows, in a random order, that have any weight."""
    table = tables.read_table(path)
    order = np.random.default_rng(seed).permutation(len(table))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(order), num):
        some = table.take(order[start : start + num]).to_pylist()
        rows += [row for row in some if row.get("weight") is None or row["weight"] > 0]
        if len(rows) >= num:
            break
    return rows[:num]


def _pair(row: dict[str, Any], where: str) -> tuple[list[Message], str]:
    if not outside.is_lesson(row.get("messages")):
        what = f"row {row.get('id')} does not end with an assistant's message"
        raise UserError(where, what, "give rows of `messages`: user, then assistant")
    *prompt, answer = (Message(m["role"], m["content"]) for m in row["messages"])
    return prompt, answer.content


def _refuse_unknown(path: str, texts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError for texts of which one token in many stands for anything."""
    unknown = tokenizer.unk_token_id
    share = sum(ids.count(unknown) for ids in texts) / sum(map(len, texts))
    if unknown is not None and share > UNKNOWN_SHARE:
        what = f"{share:.0%} of its tokens are unknown to the model's tokenizer"
        raise UserError(path, what, "calibrate on texts that the model can read, best its own")
