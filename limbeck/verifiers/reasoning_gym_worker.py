"""The worker's side of `reasoning_gym`: families' own scorers, in a process that can be killed."""

from __future__ import annotations

import functools
import json
from typing import Any

from reasoning_gym import create_dataset

GRIDS = ("arc_agi", "rearc")  # they compare with a tuple of tuples, which JSON knows as lists


def score(question: dict[str, Any]) -> float:
    """What the family's `score_answer` gives: {family, knobs, answer, entry} -> 0 to 1."""
    family, entry = question["family"], question["entry"]
    if family in GRIDS:
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    scorer = _family(family, json.dumps(question["knobs"], sort_keys=True))
    return float(scorer.score_answer(question["answer"], entry))


@functools.cache
def _family(name: str, knobs: str) -> Any:
    """Some scorers read the knobs (a tolerance, say); one item is enough to ask them."""
    return create_dataset(name, **{**json.loads(knobs), "size": 1, "seed": 0})
