"""What filters answer, held against what they were asked: a filter may be anybody's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from inspect import signature
from typing import Any, TypeVar

from limbeck.config import Plugin
from limbeck.errors import UserError

KINDS = ("trace", "traces", "batches")
Reasons = list[str | None]
Owner = TypeVar("Owner")
Batch = TypeVar("Batch")


def looks_at(rule: Plugin) -> str:
    """A filter's kind, which its first parameter's name tells; ValueError where it tells none."""
    first = next(iter(signature(rule.function).parameters), "nothing")
    if first not in KINDS:
        what = f"filter {rule.name} looks at {first!r}, which is no kind of filter"
        raise ValueError(f"{what}; call its first parameter {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    return first


def checked(rule: Plugin, said: Any, num: int) -> Reasons:
    """What a filter said of `num` rows: None or a word for each. UserError for anything else."""
    way_out = "give None for what is kept and a word for what is not"
    if not isinstance(said, Iterable) or isinstance(said, str):
        raise UserError(f"filter {rule.name}", f"gives {_told(said)}, which is no list", way_out)
    reasons = list(said)
    if len(reasons) != num:
        raise UserError(
            f"filter {rule.name}", f"gives {len(reasons)} words for {num} rows", way_out
        )
    for reason in reasons:
        if reason is not None and (not isinstance(reason, str) or not reason.strip()):
            raise UserError(f"filter {rule.name}", f"gives {_told(reason)} as a word", way_out)
    return reasons


def answered(
    rule: Plugin,
    ask: Callable[[Iterator[Batch]], Iterable[Any]],
    asked: Iterable[tuple[Owner, Batch, int]],
) -> Iterator[tuple[Owner, Reasons]]:
    """Each owner with what the filter says of the rows of its batch, which are so many.

    The filter is given a batch when it asks, and answers when it likes. UserError if it does not
    give one answer for each.
    """
    waiting: deque[tuple[Owner, int]] = deque()

    def batches() -> Iterator[Batch]:
        for owner, batch, num in asked:
            waiting.append((owner, num))
            yield batch

    left, where = batches(), f"filter {rule.name}"
    for said in ask(left):
        if not waiting:
            raise UserError(where, "answers before it was asked", "yield one list for each batch")
        owner, num = waiting.popleft()
        yield owner, checked(rule, said, num)
    if waiting or next(left, None) is not None:
        raise UserError(where, "left a batch unanswered", "yield one list for each batch")


def _told(value: Any) -> str:
    return " ".join(repr(value).split())[:40]
