"""What an examination finds. A check is a function that says things; its name is the finding's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from limbeck.errors import UserError, UserErrors
from limbeck.verifiers.sandbox.checks import Finding

__all__ = [
    "Check",
    "Finding",
    "Said",
    "broken",
    "examined",
    "fine",
    "listed",
    "refused",
    "worth_knowing",
]

FEW = 3


class Said(NamedTuple):
    """A check's word; `ok` is None for what is no mistake by itself, or cannot be known here."""

    ok: bool | None
    told: str
    way_out: str = ""


Check = Callable[..., Iterator[Said]]


def fine(told: str) -> Said:
    return Said(True, told)


def worth_knowing(told: str, way_out: str) -> Said:
    return Said(None, told, way_out)


def broken(told: str, way_out: str) -> Said:
    return Said(False, told, way_out)


def examined(check: Check, *subject: Any) -> list[Finding]:
    """What a check says of a subject, under its name: `end_of_turn` is "end of turn".

    What it cannot even look at is broken, in the words of the UserError.
    """
    name = check.__name__.replace("_", " ")
    try:
        return [Finding(name, *said) for said in check(*subject)]
    except (UserError, UserErrors) as error:
        return list(refused(name, error))


def refused(name: str, error: UserError | UserErrors) -> Iterator[Finding]:
    """A mistake, or several, in their own words."""
    for one in error.errors if isinstance(error, UserErrors) else [error]:
        yield Finding(name, False, f"{one.where}: {one.what}", one.way_out)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more
