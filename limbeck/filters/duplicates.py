"""Filters of everything: what an earlier text already says, word for word or nearly so.

`keep_corpus(batches, *, knobs)`; the first of a cluster stays. What they remember of a row is a few
hundred bytes, whatever its length.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from limbeck.errors import UserError
from limbeck.filters.words import mixed, polynomial, runs, slices, words

Share = Annotated[float, Field(gt=0, le=1)]
Column = Literal["text", "question"]
RECALL = 0.98  # of pairs that are just as alike as the threshold
ROWS = 4096  # taken at once: their bands fit the cache


def exact_duplicates(
    batches: Iterable[pa.RecordBatch], *, of: Column = "text"
) -> Iterator[list[str | None]]:
    """Drops what an earlier row has word for word, but for case, white space and NFKC.

    Across problems; `deduplicate` compares within one.
    """
    seen: set[bytes] = set()
    for batch in batches:
        reasons: list[str | None] = []
        for text in batch[of].to_pylist():
            plain = " ".join(unicodedata.normalize("NFKC", text).lower().split())
            key = hashlib.blake2b(plain.encode(), digest_size=16).digest()
            reasons.append("duplicate" if key in seen else None)
            seen.add(key)
        yield reasons


def near_duplicates(
    batches: Iterable[pa.RecordBatch],
    *,
    threshold: Share = 0.8,
    num_perm: Annotated[int, Field(ge=16, le=512)] = 128,
    shingle: PositiveInt = 5,
    of: Column = "text",
) -> Iterator[list[str | None]]:
    """Drops what shares `threshold` of its runs of `shingle` words with an earlier row that stays.

    The share (Jaccard) is estimated from `num_perm` minima of hashes (MinHash, Broder 1997), give
    or take sqrt(s (1 - s) / num_perm); only rows that agree in a band of them are compared.
    """
    index = Index(threshold, num_perm)
    for batch in batches:
        signatures = _signatures(batch[of], shingle, num_perm)
        reasons: list[str | None] = []
        for start in range(0, len(signatures), ROWS):
            is_old = index.add(signatures[start : start + ROWS])
            reasons += ["near_duplicate" if old else None for old in is_old]
        yield reasons


def _signatures(texts: pa.Array, shingle: int, num_perm: int) -> np.ndarray:
    """MinHash signatures (R, num_perm), uint32."""
    try:
        from rensa import RMinHash
    except ImportError:
        what = "needs rensa, which is not installed"
        raise UserError("near_duplicates", what, "pip install 'limbeck[curate]'") from None
    pieces = [np.zeros((0, num_perm), np.uint32)]
    for piece in slices(texts):
        found = runs(words(piece, signs=True), shingle)
        minima = RMinHash.digest_matrix_from_flat_token_hashes(
            found.hashes, found.offsets, num_perm, seed=1
        )
        pieces.append(np.array(minima.to_rows(), np.uint32))
    return np.concatenate(pieces)


def rows_per_band(threshold: float, num_perm: int) -> int:
    """The longest bands in which pairs at the threshold still meet with probability `RECALL`."""
    fits = [r for r in range(1, num_perm + 1) if _meet(threshold, r, num_perm // r) >= RECALL]
    return max(fits, default=1)


def _meet(share: float, rows: int, bands: int) -> float:
    """How probably two texts agree in a whole band."""
    return 1 - (1 - share**rows) ** bands


class Index:
    """Whom a new row may be like: a byte of each row's minima, and who first had each band.

    Keys of bands lie in sorted stretches, and of two that are about equally long one is made: a
    million rows are a few arrays to search, and no object each.
    """

    def __init__(self, threshold: float, num_perm: int):
        self.threshold = threshold
        self.rows_per_band = rows_per_band(threshold, num_perm)
        self.blocks: list[np.ndarray] = []  # (ROWS, num_perm) each, uint8: the minima's lowest byte
        self.stretches: list[tuple[np.ndarray, np.ndarray]] = []  # keys uint64, rows int32; (K,)

    @property
    def nbytes(self) -> int:
        held = [*self.blocks, *(array for stretch in self.stretches for array in stretch)]
        return sum(array.nbytes for array in held)

    def add(self, signatures: np.ndarray) -> list[bool]:
        """For each of at most `ROWS` rows whether it is like an earlier one that stayed.

        Most have no band in common with anyone; the others are compared one by one.
        """
        base = len(self.blocks) * ROWS
        self.blocks.append(signatures.astype(np.uint8))
        keys = self._keys(signatures)  # (R, bands)
        distinct, place, count = np.unique(keys, return_inverse=True, return_counts=True)
        holders = self._holders(distinct)
        shared = ((count > 1) & (holders < 0))[place].reshape(keys.shape)
        holders = holders[place].reshape(keys.shape)
        stays = np.ones(len(keys), bool)
        first: dict[int, int] = {}  # band that several of these rows have -> the first that stays
        for row in np.flatnonzero((holders >= 0).any(1) | shared.any(1)).tolist():
            mine = keys[row, shared[row]].tolist()
            met = {*holders[row].tolist(), *(first.get(key, -1) for key in mine)} - {-1}
            stays[row] = not any(self._are_alike(base + row, other) for other in met)
            if stays[row]:
                for key in mine:
                    first.setdefault(key, base + row)
        self._insert(keys, (holders < 0) & stays[:, None], base)
        return (~stays).tolist()

    def _keys(self, signatures: np.ndarray) -> np.ndarray:
        """A hash of each row's bands, (R, bands)."""
        bands = signatures.shape[1] // self.rows_per_band
        parts = signatures[:, : bands * self.rows_per_band].astype(np.uint64)
        powers, _ = polynomial(self.rows_per_band)
        keys = parts.reshape(len(parts), bands, self.rows_per_band) @ powers
        return mixed(keys + np.arange(bands, dtype=np.uint64))

    def _holders(self, keys: np.ndarray) -> np.ndarray:
        """Who first had each of these bands; -1 where nobody had it."""
        holders = np.full(len(keys), -1, np.int32)
        for known, rows in self.stretches:
            place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            holders = np.where(known[place] == keys, rows[place], holders)
        return holders

    def _are_alike(self, row: int, other: int) -> bool:
        a, b = (self.blocks[number // ROWS][number % ROWS] for number in (row, other))
        return bool(np.count_nonzero(a == b) >= self.threshold * len(a))

    def _insert(self, keys: np.ndarray, new: np.ndarray, base: int) -> None:
        """Keeps the bands that nobody had; (R, bands) both."""
        rows = np.broadcast_to(
            np.arange(base, base + len(keys), dtype=np.int32)[:, None], new.shape
        )
        known, first = np.unique(keys[new], return_index=True)
        stretch = known, rows[new][first]
        while self.stretches and len(self.stretches[-1][0]) <= 2 * len(stretch[0]):
            longer = self.stretches.pop()
            known = np.concatenate([longer[0], stretch[0]])
            order = np.argsort(known, kind="stable")  # two sorted halves: merged in one go
            stretch = known[order], np.concatenate([longer[1], stretch[1]])[order]
        if len(stretch[0]):
            self.stretches.append(stretch)
