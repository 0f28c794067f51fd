"""Problems made by rule: the task families of `reasoning_gym` (https://arxiv.org/abs/2505.24760)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from limbeck.errors import UserError
from limbeck.plugins import VerifierName
from limbeck.problems import make_problem
from limbeck.types import Problem

SOURCE = {"source": "open-thought/reasoning-gym", "licence": "apache-2.0"}
ENDLESS = 2**40  # items; a family without a `size` of its own never runs out
BLOCK = 256  # items made from one derived seed
NUMPY_SEEDED = ("pool_matrix",)  # numpy.random.seed takes 32 bits
MANY_ANSWERS = {  # families with several right answers: only their own scorers know them all
    "countdown", "cryptarithm", "graph_color", "group_anagrams", "intermediate_integration", "jugs",
    "kakurasu", "knight_swap", "n_queens", "palindrome_generation", "palindrome_partitioning",
    "polynomial_multiplication", "propositional_logic", "puzzle24", "quantum_lock", "rubiks_cube",
    "shortest_path", "simple_integration", "sokoban", "tower_of_hanoi", "word_ladder",
}  # fmt: skip
EXAMPLES = {  # where a family without an answer of its own keeps one of the right ones
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
NO_ANSWER = ("boxnet", "rush_hour")  # nothing would prove their questions gradable


def read(
    *, tasks: dict[str, dict[str, Any]], seed: int = 0, verifier: VerifierName | None = None
) -> Iterator[Problem]:
    """The families of `tasks` in turn, by name, without end: family name -> its own knobs.

    A family with a `size` ends after so many; the others go on. Without a `verifier`, answers are
    judged by `exact`, those of families with several right ones by `reasoning_gym`. `meta` has
    `family`, its `knobs`, `template`, `source`, `licence` and what the family says about the item.
    Raises UserError for an unknown family or knob.
    """
    named = sorted(tasks.items())
    return _in_turn({name: _family(name, knobs, seed, verifier) for name, knobs in named})


def check(
    *, tasks: dict[str, dict[str, Any]], seed: int, verifier: VerifierName | None = None
) -> None:
    """Raises UserError for an unknown family or knob."""
    read(tasks=tasks, seed=seed, verifier=verifier)


def _in_turn(streams: dict[str, Iterator[Problem]]) -> Iterator[Problem]:
    while streams:
        for name, stream in list(streams.items()):
            problem = next(stream, None)
            if problem is None:
                del streams[name]
            else:
                yield problem


def _family(
    name: str, knobs: dict[str, Any], seed: int, verifier: str | dict[str, Any] | None
) -> Iterator[Problem]:
    from reasoning_gym.factory import DATASETS

    where = f"tasks.{name}"
    if name not in DATASETS:
        raise UserError(where, "no such reasoning_gym task", _did_you_mean(name, list(DATASETS)))
    if name in NO_ANSWER:
        what = "gives no answers, so nothing proves that its questions have any"
        raise UserError(where, what, "take another family")
    known = [f.name for f in fields(DATASETS[name][1]) if f.name != "seed"]
    for knob in map(str, knobs):
        if knob not in known:
            raise UserError(f"{where}.{knob}", "no such knob", _did_you_mean(knob, known))
    size = knobs.get("size", ENDLESS)
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{where}.size", f"{size!r} is no number of items", "give 1 or more")
    try:
        _block(name, knobs, seed, 0)
    except Exception as error:  # each family has its own ways of failing
        raise UserError(where, f"reasoning_gym refuses {knobs}: {error}", "mend them") from error
    return _items(name, knobs, seed, verifier or _verifier(name))


def _verifier(family: str) -> str:
    return "reasoning_gym" if family in MANY_ANSWERS else "exact"


def _items(
    name: str, knobs: dict[str, Any], seed: int, verifier: str | dict[str, Any]
) -> Iterator[Problem]:
    for index in range(knobs.get("size", ENDLESS)):
        if index % BLOCK == 0:
            block = _block(name, knobs, seed, index // BLOCK)
        try:
            entry = block[index % BLOCK]
        except IndexError:  # a family with a fixed list of items
            return
        metadata = _plain(entry["metadata"])
        yield make_problem(
            str(entry["question"]).strip(),
            _answer(metadata[EXAMPLES[name]] if name in EXAMPLES else entry["answer"]),
            verifier=verifier,
            domain=name,
            meta={**metadata, **SOURCE, "family": name, "knobs": knobs, "template": name},
        )


def _answer(answer: Any) -> str:
    """As a student would write it."""
    return json.dumps(answer) if isinstance(answer, dict) else str(answer)


def _block(name: str, knobs: dict[str, Any], seed: int, number: int) -> Any:
    """reasoning_gym's data set of `BLOCK` items; some families make all of them at once."""
    from reasoning_gym import create_dataset

    start = block_seed(seed, name, knobs, number)
    return create_dataset(name, **{**knobs, "size": BLOCK, "seed": start})


def block_seed(seed: int, name: str, knobs: dict[str, Any], number: int) -> int:
    """Where a block's items start: reasoning_gym draws item i from the seed `start + i`.

    Seeds that lie closer than their data sets are long share problems, and `seed + 1` would share
    all but one; hence a hash, into 2^63 places.
    """
    content = json.dumps([seed, name, knobs, number], sort_keys=True)
    bits = 31 if name in NUMPY_SEEDED else 63
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") >> (64 - bits)


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """What of it can be written as JSON; the rest is the family's own objects."""
    plain = {}
    for key, value in metadata.items():
        try:
            plain[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return plain


def _did_you_mean(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)[:8]
    return f"did you mean {' or '.join(close)}?"
