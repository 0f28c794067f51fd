"""Two tokenizers: which tokens both have, and which tokens of a text stand for the same bytes.

A token is its own bytes and its kind (special or not), whatever its id and however its vocabulary
spells it: `Ġthe` of a byte-level BPE and `▁the` of SentencePiece are both " the".
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from limbeck import chat
from limbeck.errors import UserError

BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
REACH = 64  # bytes of which two texts may differ in one place and still be matched behind it
SURE = 8  # equal bytes that say that they are matched again


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that student and teacher share.

    `student_ids`, `teacher_ids` (S,): the same tokens in both, by ascending student id. Rows of the
    models' matrices that no token owns are padding and never shared. `shared` is the share of the
    student's tokens that the teacher has. `is_same`: same ids and as many rows, there is nothing to
    do. `is_prefix`: the shared tokens are the first S rows on both sides. `reads_alike`: both cut
    any text into the same tokens, so that the teacher can read the student's.
    """

    student_ids: Tensor
    teacher_ids: Tensor
    shared: float
    is_same: bool
    is_prefix: bool
    reads_alike: bool


def align_vocabularies(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_rows: int,
    teacher_rows: int,
) -> Vocabulary:
    """What two vocabularies share; `rows` are those of the models' embedding matrices."""
    student = token_identities(student_tokenizer, student_rows)
    teacher = token_identities(teacher_tokenizer, teacher_rows)
    pairs = sorted((id, teacher[token]) for token, id in student.items() if token in teacher)
    ids = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    same_ids = bool((ids[:, 0] == ids[:, 1]).all())
    whole = len(pairs) == len(student) == len(teacher)
    return Vocabulary(
        student_ids=ids[:, 0].contiguous(),
        teacher_ids=ids[:, 1].contiguous(),
        shared=len(pairs) / max(1, len(student)),
        is_same=same_ids and whole and student_rows == teacher_rows,
        is_prefix=same_ids and bool((ids[:, 0] == torch.arange(len(pairs))).all()),
        reads_alike=whole and read_alike(student_tokenizer, teacher_tokenizer),
    )


def token_identities(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[Hashable, int]:
    """What each token is, and its id; those without a row in the model's matrix are left out.

    What a vocabulary has twice is told apart by order; so is the byte `<0x41>` from a letter A.
    """
    bytes_of = token_bytes(tokenizer)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = tokenizer.convert_ids_to_tokens(list(bytes_of))
    fallback = {id for id, name in zip(bytes_of, names, strict=True) if FALLBACK.fullmatch(name)}
    found: dict[Hashable, int] = {}
    twins: Counter[Hashable] = Counter()
    for id in sorted(bytes_of, key=lambda id: (id in fallback, id)):
        if id < rows:
            token = (bytes_of[id], id in special)
            found[token, twins[token]] = id
            twins[token] += 1
    return found


def read_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers cut every text into the same tokens, whatever their ids."""
    return _way_of_reading(one) == _way_of_reading(other)


def _way_of_reading(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All of a tokenizer.json that has a say in it, without ids."""
    whole = _tokenizer_json(tokenizer)
    model = dict(whole["model"])
    vocabulary = model.pop("vocab")
    pieces = set(vocabulary) if isinstance(vocabulary, dict) else {tuple(p) for p in vocabulary}
    model.pop("unk_id", None)
    added = {tuple(sorted(t.items() - {("id", t["id"])})) for t in whole["added_tokens"]}
    stages = [_without(whole[stage], "trim_offsets") for stage in ("normalizer", "pre_tokenizer")]
    return {"model": model, "pieces": pieces, "added": added, "stages": stages}


def _without(config: Any, key: str) -> Any:
    if isinstance(config, dict):
        return {name: _without(value, key) for name, value in config.items() if name != key}
    return [_without(value, key) for value in config] if isinstance(config, list) else config


def _tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    if not tokenizer.is_fast:
        what = "it has no tokenizer.json, so the bytes of its tokens are not known"
        raise _unknown(tokenizer, what)
    whole: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return whole


def _unknown(tokenizer: PreTrainedTokenizerBase, what: str) -> UserError:
    way_out = "take a teacher and a student that have the same tokenizer, or learn by `sft`"
    return UserError(f"tokenizer {tokenizer.name_or_path}", what, way_out)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes that each token adds to a text, by ascending id.

    A token that opens a word has the space before it, also where it opens a text. UserError for a
    tokenizer without a tokenizer.json, or with a decoder that is not known here.
    """
    spell = _spelling(tokenizer)
    names = {id: name for name, id in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    return {
        id: added[id].content.encode() if id in added else spell(names[id]) for id in sorted(names)
    }


def _spelling(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """How the names in a vocabulary become bytes, by the tokenizer's own decoder."""
    decoder = _tokenizer_json(tokenizer)["decoder"] or {"type": "WordPiece", "prefix": ""}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" in steps:
        return _from_letters
    if "WordPiece" in steps:
        prefix = steps["WordPiece"]["prefix"]
        return lambda name: _from_word_piece(name, prefix)
    if "BPEDecoder" in steps:
        suffix = steps["BPEDecoder"]["suffix"]
        return lambda name: name.replace(suffix, " ").encode()
    if "Metaspace" in steps or "ByteFallback" in steps:
        space = steps.get("Metaspace", {}).get("replacement", "\u2581")
        return lambda name: _fallback_byte(name) or name.replace(space, " ").encode()
    raise _unknown(tokenizer, f"its decoder {', '.join(steps)} is not known here")


def _from_letters(name: str) -> bytes:
    """A byte-level token, each letter a byte; what holds another letter was added as it is."""
    known = all(letter in BYTES for letter in name)
    return bytes(BYTES[letter] for letter in name) if known else name.encode()


def _from_word_piece(name: str, prefix: str) -> bytes:
    goes_on = prefix and name.startswith(prefix)
    return (name.removeprefix(prefix) if goes_on else f" {name}").encode()


def _fallback_byte(name: str) -> bytes | None:
    """SentencePiece's `<0xE2>` for bytes that no piece holds."""
    match = FALLBACK.fullmatch(name)
    return bytes.fromhex(match[1]) if match else None


@dataclass(frozen=True)
class Spans:
    """Smallest groups of tokens that stand for the same part of a text; they tile both.

    `student`, `teacher` (S, 2): first token and the one behind the last; never empty. `same` (S,):
    whether the bytes are equal, but for one space that opens a word; where they are not, the two
    texts differ and nothing can be learned. `num_bytes` (S,): the student's.
    """

    student: np.ndarray
    teacher: np.ndarray
    same: np.ndarray
    num_bytes: np.ndarray

    @property
    def one_to_one(self) -> np.ndarray:
        """(S,): a token each, of the same text."""
        sizes = np.diff(self.student)[:, 0] + np.diff(self.teacher)[:, 0]
        return self.same & (sizes == 2)


class Aligner:
    """`align_texts` for many texts of the same two tokenizers."""

    def __init__(
        self,
        student_tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.student_bytes = token_bytes(student_tokenizer)
        self.teacher_bytes = token_bytes(teacher_tokenizer)
        self.ends = chat.end_of_turn(student_tokenizer), chat.end_of_turn(teacher_tokenizer)

    def __call__(self, student_ids: Sequence[int], teacher_ids: Sequence[int]) -> Spans:
        """Spans of two completions of one text; their end-of-turn tokens are one span."""
        ended = bool(student_ids and teacher_ids)
        ended = ended and (student_ids[-1], teacher_ids[-1]) == self.ends
        student = [self.student_bytes.get(id, b"") for id in student_ids[: -1 if ended else None]]
        teacher = [self.teacher_bytes.get(id, b"") for id in teacher_ids[: -1 if ended else None]]
        cuts = _cuts(student, teacher)
        same = [_same(student, teacher, *pair) for pair in pairwise(cuts)]
        if ended:
            cuts.append((len(student_ids), len(teacher_ids)))
            same.append(True)
        pairs = np.array(list(pairwise(cuts)), dtype=np.int64).reshape(-1, 2, 2)
        offsets = np.array([0, *accumulate(map(len, student)), sum(map(len, student))])
        return Spans(
            student=pairs[:, :, 0],
            teacher=pairs[:, :, 1],
            same=np.array(same, dtype=bool),
            num_bytes=np.diff(offsets[pairs[:, :, 0]])[:, 0],
        )


def align_texts(
    student_ids: Sequence[int],
    teacher_ids: Sequence[int],
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
) -> Spans:
    """Smallest groups of tokens that cover the same bytes of a completion in both tokenizers."""
    return Aligner(student_tokenizer, teacher_tokenizer)(student_ids, teacher_ids)


def _cuts(student: list[bytes], teacher: list[bytes]) -> list[tuple[int, int]]:
    """Where both texts are cut between two tokens: (tokens before it, tokens before it)."""
    runs = _equal_runs(b"".join(student), b"".join(teacher))
    begins = [run[0] for run in runs]
    places: dict[int, int] = {}
    for token, end in enumerate(accumulate(map(len, teacher)), 1):
        places.setdefault(end, token)
    cuts = [(0, 0)]
    for token, end in enumerate(accumulate(map(len, student)), 1):
        at = bisect_right(begins, end) - 1
        for begin, other, length in runs[max(0, at - 1) : at + 1]:
            place = places.get(other + end - begin, 0) if end <= begin + length else 0
            if place > cuts[-1][1] and token > cuts[-1][0]:
                cuts.append((token, place))
    whole = len(student), len(teacher)
    if cuts[-1] != whole:
        rest_is_empty = whole[0] == cuts[-1][0] or whole[1] == cuts[-1][1]
        cuts = [*cuts[: -1 if rest_is_empty and len(cuts) > 1 else None], whole]
    return cuts


def _equal_runs(one: bytes, other: bytes) -> list[tuple[int, int, int]]:
    """(begin, begin in the other, length) of parts that are equal, one behind the other.

    Texts differ where a tokenizer adds a space before the first word, changes letters or does not
    know them. Without an end of that within REACH, there are no more runs.
    """
    a, b = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    runs, i, j = [], 0, 0
    while True:
        shorter = min(len(a) - i, len(b) - j)
        differ = (a[i : i + shorter] != b[j : j + shorter]).nonzero()[0]
        length = int(differ[0]) if len(differ) else shorter
        runs.append((i, j, length))
        i, j = i + length, j + length
        skip = _skip(one[i : i + REACH + SURE], other[j : j + REACH + SURE])
        if skip is None:
            return runs
        i, j = i + skip[0], j + skip[1]


def _skip(one: bytes, other: bytes) -> tuple[int, int] | None:
    """The fewest bytes to leave out of both until they are equal again; None where there is no way.

    They are taken for equal when SURE bytes are, or all there are.
    """
    for total in range(1, REACH):
        for left_out in range(total + 1):
            a, b = one[left_out:][:SURE], other[total - left_out :][:SURE]
            if a and a == b:
                return left_out, total - left_out
    return None


def _same(
    student: list[bytes], teacher: list[bytes], begin: tuple[int, int], end: tuple[int, int]
) -> bool:
    one, other = b"".join(student[begin[0] : end[0]]), b"".join(teacher[begin[1] : end[1]])
    return one == other or one == b" " + other or other == b" " + one
