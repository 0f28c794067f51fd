"""A data set's rows as examples, and which of them each step learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbeck import chat, outside, tables
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.train.batch import Example, TokenBatch, collate, pack
from limbeck.train.config import LessonsConfig
from limbeck.types import Message

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Lessons:
    """What there is to learn: `rows` of the data set and their `examples`, in the same order.

    `refused` counts the rows that were left out, by reason.
    """

    rows: list[dict[str, Any]]
    examples: list[Example]
    refused: Counter[str]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example.ids) for example in self.examples]

    @property
    def left_out(self) -> str:
        """' (3 too long, left out)', or nothing."""
        return "".join(f" ({num:,} {why}, left out)" for why, num in self.refused.items())

    def account(self, out: StageFolder) -> dict[str, Any]:
        """How the data set's rows ended, for a stage's summary."""
        num, num_refused = len(self.examples), self.refused.total()
        return {
            "accounts": out.balance(num + num_refused, num, rejected=num_refused),
            "refused": dict(self.refused),
        }


def read_lessons(path: str, tokenizer: PreTrainedTokenizerBase, longest: int) -> Lessons:
    """The rows of a data set that are to be learned, as tokens and loss masks.

    Rows of more than `longest` tokens, and those of no weight, are left out and counted. UserError
    for a row that does not end with an assistant's message or has no finite weight, and where
    nothing is left.
    """
    rows = tables.read_table(path).to_pylist()
    encoded = chat.encode_examples(tokenizer, [_pair(row, i, path) for i, row in enumerate(rows)])
    kept, examples, refused = [], [], Counter[str]()
    for number, (row, (ids, mask)) in enumerate(zip(rows, encoded, strict=True)):
        weight = _weight(row, number, path)
        if len(ids) > longest:
            refused["too long"] += 1
        elif weight <= 0:
            refused["of no weight"] += 1
        else:
            name = str(number if row.get("id") is None else row["id"])
            kept.append(row)
            examples.append(Example(ids, mask, weight, name))
    if not examples:
        told = ", ".join(f"{num:,} {why}" for why, num in refused.items()) or "it is empty"
        what = f"holds no example of at most {longest} tokens to learn from ({told})"
        raise UserError(path, what, "raise max_length and context, or give other rows")
    return Lessons(kept, examples, refused)


def _pair(row: dict[str, Any], number: int, where: str) -> tuple[list[Message], str]:
    if not outside.is_lesson(row.get("messages")):
        what = f"row {number} does not end with an assistant's message"
        raise UserError(where, what, "give rows of `messages`: user, then assistant")
    *prompt, answer = (Message(m["role"], m["content"]) for m in row["messages"])
    return prompt, answer.content


def _weight(row: dict[str, Any], number: int, where: str) -> float:
    """As float32 holds it, in which losses are computed; 1 where a row has none."""
    weight = 1.0 if row.get("weight") is None else row["weight"]
    if not isinstance(weight, int | float) or not abs(weight) <= LARGEST:
        what = f"row {number} has the weight {weight!r}"
        raise UserError(where, what, "give it a finite number, or none")
    return float(np.float32(weight))


def plan_steps(
    lengths: Sequence[int], config: LessonsConfig, seed: int, num_parameters: int
) -> list[list[int]]:
    """Which examples each step learns: shuffled epochs, one behind the other, cut into batches.

    A budget of FLOPs is one of tokens, at what a token costs in training, once what others wrote
    for it is paid.
    """
    steps: list[list[int]] = []
    batch: list[int] = []
    num_examples = round((config.num_epochs or 0) * len(lengths))
    budget = config.num_tokens
    if config.num_flops is not None:
        left = config.num_flops - config.charged_flops()
        budget = round(left / config.training_flops(num_parameters, 1))
    tokens = 0
    for seen, index in enumerate(endless(len(lengths), seed), 1):
        batch.append(index)
        tokens += lengths[index]
        enough = seen >= num_examples if budget is None else tokens >= budget
        if len(batch) == config.batch_size or enough:
            steps.append(batch)
            batch = []
        if enough:
            return steps
    raise AssertionError("an endless stream ended")


def endless(num: int, seed: int) -> Iterator[int]:
    """The numbers below `num` in random order, each time in another one."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(num).tolist()


def pack_batches(examples: Sequence[Example], max_tokens: int, device: str) -> list[TokenBatch]:
    """A step's examples in flat rows of at most `max_tokens` tokens."""
    bins = pack([len(example.ids) for example in examples], max_tokens)
    return [collate([examples[i] for i in chosen], device) for chosen in bins]
