"""Where questions come from: one source a file, `read(*, knobs) -> Iterator[Problem]`.

Here is what the sources share: a problem made from a question and its answer, and the key by which
problems are split, so that no look-alike is on both sides. `rows` makes one of a table's row.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.types import Message, Problem

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def make_problem(
    question: str,
    answer: str,
    *,
    verifier: str | dict[str, Any],
    domain: str = "",
    meta: Mapping[str, Any] | None = None,
) -> Problem:
    """A one-turn problem; its id is the hash of what is asked and what is right, nothing else."""
    messages = (Message("user", question),)
    content = {"messages": [[m.role, m.content] for m in messages], "answer": answer}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Problem(
        id=hashlib.sha256(canonical.encode()).hexdigest()[:16],
        messages=messages,
        answer=answer,
        verifier=verifier,
        domain=domain,
        meta=dict(meta or {}),
    )


def source_name(place: str) -> str:
    """What rows are said to come from: a public name as it is, of a path here its last part."""
    return Path(place).name if Path(place).exists() else place


def is_text(text: str) -> bool:
    """Whether it can be written down: JSON may hold halves of characters, UTF-8 not."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def collision_key(problem: Problem) -> str:
    """Two problems with the same key must not be on both sides of a split.

    A `meta["group"]`, an article say, is the key of all its problems. Else, with two numbers or
    more, a question is its template and its numbers in order; with fewer, its template and its
    normalised text. The template is `meta["template"]`, or the text itself with its numbers masked.
    """
    if group := problem.meta.get("group"):
        return json.dumps(["group", str(group)], ensure_ascii=False)
    text = " ".join(unicodedata.normalize("NFKC", problem.question).lower().split())
    numbers = [number.replace(",", "") for number in NUMBER.findall(text)]
    template = problem.meta.get("template")
    if len(numbers) >= 2:
        return json.dumps([template or NUMBER.sub("#", text), numbers], ensure_ascii=False)
    return json.dumps([template or "", text], ensure_ascii=False)


def heldout_fraction(problem: Problem) -> float:
    """Where in [0, 1) the problem's collision key falls; `heldout_fraction(p) < share` holds out.

    It depends on the content alone: any seed, order or number of problems gives the same split.
    """
    digest = hashlib.sha256(collision_key(problem).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits, so that it stays below 1
