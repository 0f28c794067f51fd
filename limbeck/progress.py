"""Progress on long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unicodedata import category

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from limbeck import secrets

PLAIN_EVERY_S = 15.0

quiet = False
console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line to the person who waits."""
    if not quiet:
        console.print(visible(secrets.hidden(line)), markup=False, soft_wrap=True)


def visible(text: str) -> str:
    """Control and direction characters spelled out: what a model wrote must not drive a terminal.

    Newlines and tabs stay.
    """
    return "".join(f"\\x{ord(c):02x}" if _drives(c) else c for c in text)


def _drives(char: str) -> bool:
    return category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and char not in "\n\t"


def left(done: float, total: float, seconds: float) -> str:
    """'1,234/s, 0:42 left', from what was done in this sitting."""
    rate = done / seconds if seconds > 0 else 0.0
    if not rate:
        return ""
    minutes, rest = divmod(int((total - done) / rate), 60)
    return (
        f"{rate:,.0f}/s, {minutes}:{rest:02d} left"
        if rate >= 10
        else (f"{rate:.1f}/s, {minutes}:{rest:02d} left")
    )


@contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Callable[..., None]]:
    """Yields `advance(amount, note="")`; `total` counts what this sitting has to do."""
    if quiet:
        yield lambda amount, note="": None
    elif sys.stderr.isatty():
        yield from _bar(label, total, unit)
    else:
        yield from _lines(label, total, unit)


def _bar(label: str, total: float, unit: str) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("  {task.description:<14}"),
        BarColumn(32),
        TextColumn("{task.completed:>9,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TextColumn("[dim]{task.fields[rest]}[/dim]"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(label, total=total, unit=unit, rest="")
        started, done = time.monotonic(), 0.0

        def advance(amount: float, note: str = "") -> None:
            nonlocal done
            done += amount
            rest = left(done, total, time.monotonic() - started)
            bars.update(task, advance=amount, rest=f"{rest}  {note}")

        yield advance


def _lines(label: str, total: float, unit: str) -> Iterator[Callable[..., None]]:
    started = spoke = time.monotonic()
    done = 0.0

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, spoke
        done += amount
        if (now := time.monotonic()) - spoke >= PLAIN_EVERY_S:
            spoke = now
            rest = left(done, total, now - started)
            say(f"  {label}: {done:,.0f}/{total:,.0f} {unit}, {rest} {note}".rstrip())

    yield advance
