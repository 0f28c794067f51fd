"""A filter of everything: what the evaluation problems already say.

`keep_corpus(batches, *, knobs)`. A row is contaminated if its question or its text has a run of
words that an evaluation question has; the hashes of these are exact, 64 bits, and lie in one sorted
table, so that each hit can be told by the problem that was hit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from limbeck import progress, tables
from limbeck.config import ProblemsPath
from limbeck.filters.words import Hashed, runs, slices, wholes, words

COMMON = 5  # evaluation questions that share a run of words: it is of their prompt, not of them
SIEVE_BITS = 22
NUM_TOLD = 5


def decontaminated(
    batches: Iterable[pa.RecordBatch],
    *,
    problems: Annotated[list[ProblemsPath], Field(min_length=1)],
    n: PositiveInt = 10,
    of: Literal["question", "text", "both"] = "both",
) -> Iterator[list[str | None]]:
    """Drops rows that share a run of `n` words with a question of the evaluation `problems`.

    10 words as DeepSeekMath, 13 as GPT-3. A shorter evaluation question is looked for in questions,
    whole; one of fewer than `n / 2` words has to be all of the question. What `COMMON` evaluation
    questions share, such as a prompt, does not count. The first hits are told by name.
    """
    held = Evaluation(problems, n)
    num_hits = 0
    for batch in batches:
        hits = np.full(batch.num_rows, -1)
        if of != "text":
            hits = held.hits_of_questions(batch["question"])
        if of != "question":
            hits = np.where(hits < 0, held.hits(batch["text"]), hits)
        for row in np.flatnonzero(hits >= 0).tolist()[: max(0, NUM_TOLD - num_hits)]:
            trace, problem = batch["id"][row].as_py(), held.ids[hits[row]]
            progress.say(f"contaminated: trace {trace} has words of evaluation problem {problem}")
        num_hits += int(np.count_nonzero(hits >= 0))
        yield [None if hit < 0 else "contaminated" for hit in hits.tolist()]


class Evaluation:
    """The runs of words of evaluation questions, and whose they are."""

    def __init__(self, paths: Sequence[str], n: int):
        asked = {p.question: p.id for path in paths for p in tables.read_problems(path)}
        self.ids = list(asked.values())
        found = words(pa.array(list(asked), pa.string()))
        self.whole = dict(zip(wholes(found).tolist(), range(len(self.ids)), strict=True))
        self.whole.pop(0, None)  # a question without words
        own, owners = _without_prompt(found, n)
        counts = np.diff(own.offsets)
        longest = np.zeros(len(self.ids), np.int64)
        np.maximum.at(longest, owners, counts)
        counted = (counts >= n) | ((counts == longest[owners]) & (2 * counts >= n))
        self.lengths = [n, *np.unique(counts[counted & (counts < n)]).tolist()]
        of_all = runs(own, n)  # what is shorter is one run
        is_counted = np.repeat(counted, np.diff(of_all.offsets))
        owner_of = np.repeat(owners, np.diff(of_all.offsets))[is_counted]
        self.hashes, first = np.unique(of_all.hashes[is_counted], return_index=True)
        self.owners = owner_of[first]
        self.sieve = np.zeros(1 << SIEVE_BITS, bool)
        self.sieve[_sieved(self.hashes)] = True

    def hits(self, texts: pa.Array) -> np.ndarray:
        """Which problem each text shares a run of words with, its number or -1; (R,)."""
        pieces = [self._hits(runs(words(piece), self.lengths[0])) for piece in slices(texts)]
        return np.concatenate([np.zeros(0, np.int64), *pieces])

    def hits_of_questions(self, questions: pa.Array) -> np.ndarray:
        """The same for questions, in which short and whole questions are looked for, too."""
        coded = questions.dictionary_encode()  # each once: a problem's traces share it
        found = words(coded.dictionary)
        hits = np.array([self.whole.get(key, -1) for key in wholes(found).tolist()], np.int64)
        for length in self.lengths:
            hits = np.where(hits < 0, self._hits(runs(found, length)), hits)
        return hits[coded.indices.to_numpy(zero_copy_only=False)]

    def _hits(self, found: Hashed) -> np.ndarray:
        hits = np.full(len(found.offsets) - 1, -1)
        place = np.flatnonzero(self.sieve[_sieved(found.hashes)])
        if len(self.hashes) and len(place):
            nearest = np.searchsorted(self.hashes, found.hashes[place])
            nearest = np.minimum(nearest, len(self.hashes) - 1)
            is_hit = self.hashes[nearest] == found.hashes[place]
            rows = np.searchsorted(found.offsets, place[is_hit], side="right") - 1
            hits[rows[::-1]] = self.owners[nearest[is_hit]][::-1]  # the first of several stays
        return hits


def _without_prompt(found: Hashed, n: int) -> tuple[Hashed, np.ndarray]:
    """The stretches of words that are a question's own, and the number of its question.

    A run of `n` words that `COMMON` questions have is of their prompt.
    """
    of_all = runs(found, n)
    num_runs = np.diff(of_all.offsets)
    owners = np.repeat(np.arange(len(num_runs)), num_runs)
    pairs = np.unique(np.stack([of_all.hashes, owners.astype(np.uint64)]), axis=1)
    hashes, count = np.unique(pairs[0], return_counts=True)
    is_common = np.isin(of_all.hashes, hashes[count >= COMMON])
    starts = np.arange(len(owners)) + (found.offsets[:-1] - of_all.offsets[:-1])[owners]
    depth = np.zeros(len(found.hashes) + n + 1, np.int64)
    np.add.at(depth, starts[is_common], 1)
    np.add.at(depth, starts[is_common] + n, -1)
    is_own = np.cumsum(depth)[: len(found.hashes)] == 0
    begins = is_own & np.append(True, ~is_own[:-1])
    first = found.offsets[:-1][num_runs > 0]
    begins[first] = is_own[first]
    passed = np.append(0, np.cumsum(is_own))
    places = np.flatnonzero(begins)
    own = Hashed(found.hashes[is_own], np.append(passed[places], passed[-1]))
    return own, np.searchsorted(found.offsets, places, side="right") - 1


def _sieved(hashes: np.ndarray) -> np.ndarray:
    """The upper bits of hashes: most of what is looked up ends at a table of these."""
    return hashes >> np.uint64(64 - SIEVE_BITS)
