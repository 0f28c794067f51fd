"""Answers and programs that attack a verifier, by families, and honest ones that must pass.

The rows lie in `hostile/`. `expect: reject` is labelled wrong, `expect: accept` right, so that a
verifier that refuses everything is found out, too. A problem's domain is its family.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.audit.labelled import Labelled, rows
from limbeck.types import Message, Problem, Trace

FOLDER = Path(__file__).parent / "hostile"


def answers(_: Path) -> Iterator[Labelled]:
    """Texts against the verifiers of answers."""
    for row in rows(FOLDER / "answers.jsonl"):
        more = row.get("problem", {})
        text = row["text"]
        if "repeat" in row:  # a text of megabytes is a short line here
            text = text.replace("{repeat}", row["repeat"]["what"] * row["repeat"]["times"])
        problem = _problem(row, row["gold"], row["verifier"], more.get("question", ""), more)
        yield _labelled(problem, row, text)


def programs(_: Path) -> Iterator[Labelled]:
    """Programs against the sandbox and the tests."""
    for row in rows(FOLDER / "programs.jsonl"):
        meta = {key: row[key] for key in ("tests", "prefix") if key in row}
        problem = _problem(row, row.get("gold", ""), "code", "", {"meta": meta})
        yield _labelled(problem, row, row["program"])


def _problem(
    row: dict[str, Any], gold: str, verifier: Any, question: str, more: dict[str, Any]
) -> Problem:
    messages = (Message("user", question),)
    meta = more.get("meta", {})
    return Problem(row["id"], messages, gold, verifier, domain=row["family"], meta=meta)


def _labelled(problem: Problem, row: dict[str, Any], text: str) -> Labelled:
    trace = Trace(row["id"], row["id"], 0, text, row.get("finish", "stop"), "hostile")
    return problem, trace, row["expect"] == "accept"
