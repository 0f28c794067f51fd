"""Answers that cost money: in the journal before they count, never asked for again, and counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from limbeck import store, tables
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.journal import Journal
from limbeck.types import Generator, Request, Sampling, Trace


def longer_limit(engine: Generator, sampling: Sampling) -> int | None:
    """The limit of tokens with which a truncated answer is asked for again, if it is at all."""
    longer: int | None = getattr(engine, "longer_max_tokens", None)
    if longer is not None and longer <= sampling.max_tokens:
        what = f"longer_max_tokens {longer} is not above max_tokens {sampling.max_tokens}"
        raise UserError(f"engine {engine.name}", what, "raise it, or drop it")
    return longer


def journaled(
    engine: Generator,
    requests: Sequence[Request],
    sampling: Sampling,
    journal: Journal,
    name: str,
) -> Iterator[Trace]:
    """The traces that the journal has, and then new ones, in it before they are given.

    Where the engine has a longer limit, a truncated one is followed by another of the same id.
    """
    wanted = {request.id for request in requests}
    paid = [trace for trace in received(journal) if trace.id in wanted]
    yield from paid
    times, longer = Counter(trace.id for trace in paid), longer_limit(engine, sampling)
    cut = {trace.id for trace in paid if trace.finish == "length" and times[trace.id] == 1}
    rounds = [([r for r in requests if not times[r.id]], sampling)]
    if longer:
        again = [r for r in requests if r.id in cut]
        rounds.insert(0, (again, replace(sampling, max_tokens=longer)))
    try:
        for asked, drawn in rounds:
            for trace in engine.generate(asked, drawn) if asked else ():
                journal.append(asdict(trace))
                store.failpoint(f"{name}.journal-{len(journal.records)}")
                note_waste(engine, journal)
                yield trace
    finally:
        note_waste(engine, journal)


def note_waste(engine: Generator, journal: Journal) -> None:
    """A record of what was billed for nothing, as no trace tells of it."""
    budget = getattr(engine, "budget", None)
    wasted = budget.take_waste() if budget else (0, 0)
    if any(wasted):
        journal.append({"wasted": wasted})


def wasted(journal: Journal) -> tuple[int, int]:
    """(tokens in, tokens out) that were billed for nothing since the last part."""
    found = [row["wasted"] for row in journal.records if "wasted" in row]
    return sum(tokens for tokens, _ in found), sum(tokens for _, tokens in found)


def settled(
    answers: Iterable[Trace], longer: int | None, firsts: dict[str, Trace]
) -> Iterator[tuple[Trace, list[Trace]]]:
    """(each request's trace, all that were paid for on the way to it).

    `firsts` holds the truncated ones while they are asked for again, to the `longer` limit.
    """
    for trace in answers:
        if longer and trace.finish == "length" and trace.id not in firsts:
            firsts[trace.id] = trace
        elif first := firsts.pop(trace.id, None):
            yield first if trace.finish == "error" else trace, [first, trace]
        else:
            yield trace, [trace]


def received(journal: Journal) -> Iterator[Trace]:
    """The answers in a journal; a request that nothing came of is asked again."""
    for row in journal.records:
        if "wasted" not in row and (row["finish"] != "error" or row["completion_tokens"]):
            yield Trace(**row)


def count_earlier(
    engine: Generator, journal: Journal, done: set[str], table: Path, out: StageFolder
) -> None:
    """Tells the engine's budget, where it has one, what the answers of this table cost before.

    The ledger knows those of parts, also such as were truncated and asked for again.
    """
    budget = getattr(engine, "budget", None)
    if budget is None:
        return
    num_parts, of_parts = len(tables.parts(table)), {}
    for row in store.read_jsonl(out.path / "ledger.jsonl"):
        if row["work"] == f"{table.name} part" and row.get("part", num_parts) < num_parts:
            of_parts[row["part"]] = row  # the last: an earlier one was of a part that a kill took
    for row in of_parts.values():
        budget.count((row["tokens_in"], row["tokens_out"]), row["answers"])
    if any(wasted(journal)):
        budget.count(wasted(journal), 0)
    for trace in received(journal):
        if trace.id not in done:
            budget.count((trace.prompt_tokens, trace.completion_tokens))


def open_journal(table: Path, out: StageFolder) -> Journal:
    """The journal beside a table, with what was wrong with it in the log."""
    journal = Journal(table.with_name(f"{table.name}.journal"))
    if journal.torn:
        out.log(f"{journal.path} ended in a torn record; its {journal.torn} bytes are cut off")
    for place in journal.quarantined:
        out.log(f"{journal.path} was broken in the middle; what could not be read is in {place}")
    return journal


def forget(journal: Journal, kept: Collection[Trace]) -> None:
    """Leaves nothing in the journal but these, or all of it: the others are in a part now."""
    if not kept:
        journal.clear()
        return
    aside = journal.path.with_name(f".{journal.path.name}.tmp")
    aside.unlink(missing_ok=True)  # a kill came in the middle
    fresh = Journal(aside)
    for trace in kept:
        fresh.append(asdict(trace))
    store.commit(aside, journal.path)
    os.close(journal.file)
    journal.file, journal.records = fresh.file, fresh.records
