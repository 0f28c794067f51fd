"""Which traces are kept: a filter answers None for what it keeps, or one word that says why not.

Three kinds, told apart by the name of their first parameter:

- of one trace (`traces.py`, `reading.py`): `(trace, verdict, *, knobs) -> str | None`;
- of a problem's traces (`groups.py`): `(traces, verdicts, *, knobs) -> list[str | None]`;
- of everything (`duplicates.py`, `contamination.py`): `(batches, *, knobs) -> Iterator[list[str |
  None]]`, over Arrow batches with the columns `id`, `problem_id`, `question`, `text`, `domain`; one
  list per batch, so that a corpus is never in memory.

What is imported here is what a recipe may name.
"""

from limbeck.filters.contamination import decontaminated
from limbeck.filters.duplicates import exact_duplicates, near_duplicates
from limbeck.filters.groups import agreement, at_most, deduplicate, difficulty, shortest
from limbeck.filters.reading import faithful, readable
from limbeck.filters.traces import (
    correct,
    finished,
    length,
    not_repetitive,
    one_language,
    well_formed,
)

__all__ = [
    "agreement",
    "at_most",
    "correct",
    "decontaminated",
    "deduplicate",
    "difficulty",
    "exact_duplicates",
    "faithful",
    "finished",
    "length",
    "near_duplicates",
    "not_repetitive",
    "one_language",
    "readable",
    "shortest",
    "well_formed",
]
