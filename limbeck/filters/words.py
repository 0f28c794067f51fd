"""Texts as hashed words and runs of words, many texts at once.

A word is a run of letters, a run of digits or one letter of Chinese or Japanese script, in lower
case and NFKC, so that `$x^2+3x$` and `X² + 3 x` have the same words; punctuation and LaTeX's words
for spaces and looks are none. Hashes are polynomials modulo 2^64, of bytes for words and of words
for runs, then mixed (MurmurHash3's finisher): the same on every machine and in every process.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SLICE = 1 << 18  # bytes of text at once: what is computed of them fits the cache
LETTER, DIGIT, SIGN, IDEOGRAPH = 1, 2, 3, 4
SIGNS = b"+-*/=<>^%"
ODD = np.uint64(0x9E3779B97F4A7C15)
FOREIGN_SIGN = re.compile(r"[^\w\x00-\x7f]")
LAST_IDEOGRAPH = re.compile("([\u3000-\u9fff])(?![\u3000-\u9fff])")
# What only says how a formula looks. `left` and `text` go as words of a text, too: from all alike.
LOOKS = [
    *("quad", "qquad", "left", "right", "displaystyle", "limits", "boxed"),
    *("text", "textbf", "mathrm", "mathbf", "mathit", "mbox"),
]


@dataclass(frozen=True)
class Hashed:
    """Hashes (N,), uint64; those of text r lie from `offsets[r]` to `offsets[r + 1]`, (R + 1,)."""

    hashes: np.ndarray
    offsets: np.ndarray


def slices(texts: pa.Array) -> Iterator[pa.Array]:
    """A column in pieces of about a quarter of a megabyte, of one text where that is longer."""
    sizes = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < len(texts):
        limit = (ends[start - 1] if start else 0) + SLICE
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        yield texts.slice(start, stop - start)
        start = stop


def words(texts: pa.Array, signs: bool = False) -> Hashed:
    """The words of some texts; with `signs`, each of `+-*/=<>^%` is a word, too."""
    found = _words(*_folded(*_bytes(texts)), signs)
    stay = ~np.isin(found.hashes, _looks())
    passed = np.concatenate([[0], np.cumsum(stay)])
    return Hashed(found.hashes[stay], passed[found.offsets])


def runs(found: Hashed, length: int) -> Hashed:
    """Every run of `length` words; all the words of a text that has fewer are one run."""
    count = np.diff(found.offsets)
    num_runs = np.where(count > 0, np.maximum(count - length, 0) + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(num_runs)])
    starts = np.arange(offsets[-1]) + np.repeat(found.offsets[:-1] - offsets[:-1], num_runs)
    lengths = np.repeat(np.minimum(count, length), num_runs)
    powers, inverses = polynomial(len(found.hashes))
    sums = np.zeros(len(found.hashes) + 1, np.uint64)
    np.cumsum(found.hashes * powers, out=sums[1:])
    hashes = (sums[starts + lengths] - sums[starts]) * inverses[starts]
    return Hashed(mixed(hashes + lengths.astype(np.uint64)), offsets)


def wholes(found: Hashed) -> np.ndarray:
    """One hash (R,) for all the words of each text; 0 for a text without words."""
    longest = int(np.diff(found.offsets).max(initial=1))
    whole = runs(found, longest)
    hashes = np.zeros(len(found.offsets) - 1, np.uint64)
    hashes[np.diff(whole.offsets) > 0] = whole.hashes
    return hashes


def _folded(letters: bytes, ends: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Texts with what lies beyond ASCII in NFKC and lower case, its punctuation as spaces.

    Only the stretches beyond ASCII are looked at, each with the letter before it, which an accent
    may belong to.
    """
    beyond = np.frombuffer(letters, np.uint8) > 127
    edges = np.flatnonzero(beyond[1:] != beyond[:-1]) + 1
    if not len(edges) and not beyond[:1].any():
        return letters, ends
    edges = np.unique(np.concatenate([edges, ends[ends < len(letters)]]))
    starts = edges[beyond[edges]]
    stops = np.append(edges, len(letters))[np.searchsorted(edges, starts) + 1]
    starts = starts - ~np.isin(starts, ends)
    pieces: list[bytes] = []
    shifts, done = [], 0
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        piece = letters[start:stop]
        folded = _fold_short(piece) if len(piece) < 32 else _fold(piece)
        pieces += letters[done:start], folded
        shifts.append(len(folded) - len(piece))
        done = stop
    pieces.append(letters[done:])
    shift = np.concatenate([[0], np.cumsum(shifts)])
    return b"".join(pieces), ends + shift[np.searchsorted(stops, ends, side="right")]


def _fold(piece: bytes) -> bytes:
    text = unicodedata.normalize("NFKC", piece.decode()).lower()
    text = FOREIGN_SIGN.sub(" ", text)
    return LAST_IDEOGRAPH.sub(r"\1 ", text).encode()  # or it would take letters behind it along


_fold_short = functools.lru_cache(maxsize=65_536)(_fold)


def _words(letters: bytes, ends: np.ndarray, signs: bool) -> Hashed:
    """Each word as the sum of its letters times powers, divided by the power of its beginning."""
    kinds_of, lower_of = _alphabet(signs)
    kinds = np.frombuffer(letters.translate(kinds_of), np.uint8)
    lower = np.frombuffer(letters.translate(lower_of), np.uint8)
    begins = kinds != 0
    begins[1:] &= ((kinds[1:] != kinds[:-1]) & (kinds[:-1] != IDEOGRAPH)) | (kinds[1:] >= SIGN)
    first = ends[:-1][ends[:-1] < len(letters)]
    begins[first] = kinds[first] != 0
    starts = np.flatnonzero(begins)
    if not len(starts):
        return Hashed(np.zeros(0, np.uint64), np.zeros(len(ends), np.int64))
    powers, inverses = polynomial(len(letters))
    sums = np.cumsum(lower * powers)
    hashes = np.diff(np.append(sums[starts] - lower[starts] * powers[starts], sums[-1:]))
    return Hashed(mixed(hashes * inverses[starts]), np.searchsorted(starts, ends))


def _bytes(texts: pa.Array) -> tuple[bytes, np.ndarray]:
    """The UTF-8 of some texts without gaps, and where each begins and the last ends, (R + 1,)."""
    texts = pc.fill_null(texts, "").cast(pa.string())
    _, places, content = texts.buffers()
    ends = np.frombuffer(places, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    ends = ends.astype(np.int64)
    letters = content.slice(ends[0], ends[-1] - ends[0]).to_pybytes() if content else b""
    return letters, ends - ends[0]


@functools.cache
def _alphabet(signs: bool) -> tuple[bytes, bytes]:
    """For each byte what it is part of, and its lower case; 0 twice for what is in no word.

    What begins a character of U+3000 to U+9FFF in UTF-8 begins a word, as every sign does.
    """
    kinds = np.zeros(256, np.uint8)
    kinds[ord("a") : ord("z") + 1] = kinds[ord("A") : ord("Z") + 1] = kinds[128:] = LETTER
    kinds[ord("0") : ord("9") + 1] = DIGIT
    kinds[0xE3 : 0xE9 + 1] = IDEOGRAPH
    if signs:
        kinds[list(SIGNS)] = SIGN
    lower = np.array([*bytes(range(256)).lower()], np.uint8)
    return kinds.tobytes(), (lower * (kinds > 0)).tobytes()


@functools.cache
def _looks() -> np.ndarray:
    return np.sort(_words(*_bytes(pa.array(LOOKS)), False).hashes)


def polynomial(num: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of an odd number modulo 2^64 and their inverses, each (`num`,)."""
    powers, inverses = _polynomial(max(num, SLICE))
    return powers[:num], inverses[:num]


@functools.lru_cache(maxsize=1)
def _polynomial(num: int) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for base in (int(ODD), pow(int(ODD), -1, 1 << 64)):
        powers = np.full(num, base, np.uint64)
        powers[:1] = 1
        found.append(np.cumprod(powers, out=powers))
    return found[0], found[1]


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Every bit of a hash made to depend on every other, in place."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(factor)
    hashes ^= hashes >> np.uint64(33)
    return hashes
