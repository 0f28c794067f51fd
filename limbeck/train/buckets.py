"""One list of buckets for two vocabularies: each token of either falls into at most one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbeck import chat
from limbeck.train.alignment import align_vocabularies, token_bytes

Unshared = Literal["first_piece", "sorted"]
"""Tokens of only one vocabulary: with the shared token that they begin with, or by their rank."""


@dataclass(frozen=True)
class Buckets:
    """`student` (V,), `teacher` (W,): the bucket of each row of the heads, `num` for the rest.

    There is a bucket for each of the `num` shared tokens. The rest is one bucket more, or else
    `ranks` more: its likeliest token, its second likeliest and so on, as ULD compares them
    (arXiv:2402.12030). `is_shared` (W,) is 1 where a teacher's token is itself shared; `shared` is
    the share of the student's tokens that are.
    """

    student: Tensor
    teacher: Tensor
    num: int
    ranks: int
    is_shared: Tensor
    shared: float

    def to(self, device: torch.device) -> Buckets:
        """The same on a device."""
        tensors = (x.to(device) for x in (self.student, self.teacher, self.is_shared))
        student, teacher, is_shared = tensors
        return replace(self, student=student, teacher=teacher, is_shared=is_shared)

    def masses(self, probs: Tensor, bucket: Tensor) -> Tensor:
        """Probabilities (N, V) of tokens -> (N, B) of the buckets they are in."""
        place = bucket.expand(len(probs), -1)
        sums = probs.new_zeros(len(probs), self.num + 1).scatter_add(1, place, probs)
        if not self.ranks:
            return sums
        unshared = probs[:, bucket == self.num].sort(-1, descending=True).values
        unshared = F.pad(unshared, (0, self.ranks - unshared.shape[1]))
        return torch.cat([sums[:, : self.num], unshared], 1)


def make_buckets(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_rows: int,
    teacher_rows: int,
    unshared: Unshared = "first_piece",
) -> Buckets:
    """Buckets of two models' vocabularies; their end-of-turn tokens count as the same."""
    tokenizers = student_tokenizer, teacher_tokenizer
    vocabulary = align_vocabularies(*tokenizers, student_rows, teacher_rows)
    ends = chat.end_of_turn(student_tokenizer), chat.end_of_turn(teacher_tokenizer)
    same = zip(vocabulary.student_ids.tolist(), vocabulary.teacher_ids.tolist(), strict=True)
    pairs = [pair for pair in same if pair[0] != ends[0] and pair[1] != ends[1]] + [ends]
    found = tuple({pair[side]: i for i, pair in enumerate(pairs)} for side in (0, 1))
    if unshared == "first_piece":
        _add_first_pieces(tokenizers, found)
    shared = torch.zeros(teacher_rows)
    shared[[teacher for _, teacher in pairs]] = 1
    students, teachers = (
        _table(of, rows, len(pairs))
        for of, rows in zip(found, (student_rows, teacher_rows), strict=True)
    )
    num_left = (students == len(pairs)).sum(), (teachers == len(pairs)).sum()
    ranks = int(max(num_left)) if unshared == "sorted" else 0
    return Buckets(students, teachers, len(pairs), ranks, shared, vocabulary.shared)


def _table(bucket_of: Mapping[int, int], rows: int, rest: int) -> Tensor:
    table = torch.full((rows,), rest)
    table[list(bucket_of)] = torch.tensor(list(bucket_of.values()))
    return table


def _add_first_pieces(
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    found: tuple[dict[int, int], ...],
) -> None:
    """Puts each token that only one side has into the bucket of the token it begins with.

    That is the first token of what the other side makes of its bytes, and if this is not shared
    either, the first that is then found for it, and so on: each is shorter than the one before.
    """
    bytes_of = tuple(_plain_bytes(tokenizer) for tokenizer in tokenizers)
    prefixes = {bytes_of[0][id]: place for id, place in found[0].items() if id in bytes_of[0]}
    pieces = []
    for side, other in ((0, 1), (1, 0)):
        left = [id for id in bytes_of[side] if id not in found[side]]
        texts = [bytes_of[side][id] for id in left]
        first = first_pieces(tokenizers[other], bytes_of[other], texts)
        pieces += [(len(t), side, id, p) for t, id, p in zip(texts, left, first, strict=True)]
    for _, side, id, piece in sorted(pieces, key=lambda one: one[:3]):
        place = found[1 - side].get(-1 if piece is None else piece)
        if place is None:
            place = _longest(bytes_of[side][id], prefixes)
        if place is not None:
            found[side][id] = place


def _plain_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    every = token_bytes(tokenizer)
    return {id: text for id, text in every.items() if text and id not in special}


def _longest(text: bytes, prefixes: Mapping[bytes, int]) -> int | None:
    lengths = range(len(text), 0, -1)
    return next((prefixes[text[:n]] for n in lengths if text[:n] in prefixes), None)


def first_pieces(
    tokenizer: PreTrainedTokenizerBase, bytes_of: Mapping[int, bytes], texts: Sequence[bytes]
) -> list[int | None]:
    """The token that each text begins with, wherever it stands in a longer one.

    None where that cannot be told: a part of a character, or a text that the tokenizer changes.
    Behind a new line no tokenizer puts a space of its own.
    """
    found: list[int | None] = [None] * len(texts)
    whole = [(i, text.decode()) for i, text in enumerate(texts) if _is_text(text)]
    for lead in ("", "\n"):
        left = [(i, lead + text) for i, text in whole if found[i] is None]
        if left:
            encoded = tokenizer([text for _, text in left], add_special_tokens=False)["input_ids"]
            for (i, _), ids in zip(left, encoded, strict=True):
                found[i] = _begin(ids, bytes_of.get, texts[i])
    return found


def _begin(ids: Sequence[int], bytes_of: Callable[[int], bytes | None], text: bytes) -> int | None:
    """The token at which the last `text` of a sequence begins, if one does."""
    tail = b""
    for id in reversed(ids):
        tail = (bytes_of(id) or b"\xff") + tail
        if len(tail) >= len(text):
            return id if tail == text else None
    return None


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
