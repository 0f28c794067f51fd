"""Which traces are kept: a filter answers None for what it keeps, or one word that says why not.

Three kinds, told apart by the name of their first parameter:

- of one trace (`traces.py`): `(trace, verdict, *, knobs) -> str | None`;
- of a problem's traces (`groups.py`): `(traces, verdicts, *, knobs) -> list[str | None]`;
- of everything (`duplicates.py`, `contamination.py`): `(batches, *, knobs) -> Iterator[list[str |
  None]]`, over Arrow batches with the columns `id`, `problem_id`, `question`, `text`, `domain`; one
  list per batch, so that a corpus is never in memory.

What is imported here is what a recipe may name.
"""

from limbeck.filters.groups import at_most, deduplicate, shortest
from limbeck.filters.traces import (
    correct,
    finished,
    length,
    not_repetitive,
    one_language,
    well_formed,
)

__all__ = [
    "at_most",
    "correct",
    "deduplicate",
    "finished",
    "length",
    "not_repetitive",
    "one_language",
    "shortest",
    "well_formed",
]
