"""A reward that was learned from preferences: the number that a reward model gives an answer."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from limbeck.config import HowRun, ModelPath
from limbeck.rewards.reading import encode
from limbeck.types import Problem, Trace, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def reward_model(
    problems: Sequence[Problem],
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict],
    *,
    model: ModelPath,
    batch_tokens: HowRun[PositiveInt] = 16_384,
    device: HowRun[Literal["auto", "cpu", "cuda"]] = "auto",
) -> list[float]:
    """What the model of a stage `reward_model` says of each answer, without bounds.

    It reads the part of an answer that it was trained on; about `batch_tokens` at a time. What is
    there several times is read once: in other batches it would be rounded otherwise.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    scorer, tokenizer = _load(model, _stamp(model), device)
    asked = zip(problems, traces, strict=True)
    pairs = [(problem.messages, trace.text) for problem, trace in asked]
    asked_ids = [tuple(row) for row in encode(tokenizer, pairs, scorer.config.reads)]
    ids, place = list(dict.fromkeys(asked_ids)), scorer.device
    rewards: dict[tuple[int, ...], float] = {}
    with torch.no_grad():
        for rows in _batches([len(row) for row in ids], batch_tokens):
            texts = [torch.tensor(ids[row], device=place) for row in rows]
            padded = pad_sequence(texts, True, scorer.config.pad_token_id)  # (B, L)
            mask = pad_sequence([torch.ones_like(text) for text in texts], True)
            found = scorer(padded, mask, use_cache=False).logits[:, 0]  # (B,)
            for row, reward in zip(rows, found.tolist(), strict=True):
                rewards[ids[row]] = reward
    return [rewards[row] for row in asked_ids]


def _stamp(model: str) -> float:
    """When a folder was written: one that was made anew is read anew."""
    config = os.path.join(model, "config.json")
    return os.path.getmtime(config) if os.path.exists(config) else 0.0


@functools.lru_cache(maxsize=2)
def _load(model: str, stamp: float, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from limbeck import models

    return models.load_reward_model(model, device=device).eval(), models.load_tokenizer(model)


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows of similar length together, the longest first, so that little of a batch is padding."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while rows:
        num = max(1, max_tokens // lengths[rows[0]])
        yield rows[:num]
        rows = rows[num:]
