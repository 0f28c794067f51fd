"""What every use of an engine shares: which texts are still missing, and writing them in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from limbeck import ledger, store, tables
from limbeck.config import StageConfig
from limbeck.folder import StageFolder
from limbeck.journal import Journal
from limbeck.types import Generator, Problem, Request, Sampling, Trace


class SamplingConfig(StageConfig):
    """The knobs of `types.Sampling` as a stage's."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draws from the smallest set of tokens that holds this share of the probability."""
    top_k: PositiveInt | None = None
    """Draws from this many of the most probable tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Leaves out tokens less probable than this share of the most probable one's."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """A text ends before the first of these."""
    max_tokens: PositiveInt = 1024
    """A text that has not ended by then is truncated, and says so."""

    def sampling(self) -> Sampling:
        """The same for an engine."""
        return Sampling(
            self.temperature, self.top_p, self.max_tokens, self.top_k, self.min_p, self.stop
        )


def requests_for(
    problems: Sequence[Problem], num_samples: int, seed: int, out: StageFolder, label: str = ""
) -> list[Request]:
    """One request per problem and sample; a problem's samples stand together, to share a prefill.

    `label` tells the rows of a stage's tables apart where it makes several.

    Each has its own seed, so a text depends neither on order nor on what shares its batch.
    """
    return [
        Request(out.row_id(p.id, i, label), p, i, store.seed_of(seed, out.name, p.id, i))
        for p in problems
        for i in range(num_samples)
    ]


def write_missing(
    engine: Generator,
    requests: Sequence[Request],
    sampling: Sampling,
    table: Path,
    out: StageFolder,
    rows_per_part: int = 4096,
) -> None:
    """Generates what a table of traces lacks, in parts of the same rows whenever it is resumed.

    Finished parts are whole chunks of the wanted list, so what remains chunks as it would have
    without the interruption: same batches, same bits. A part that changed on disk is made again,
    unless that costs money. An engine that costs money answers into a journal, and an answer that
    is there is never asked for again.
    """
    if not engine.costs_money:
        tables.set_broken_aside(table, out.log)
    done = set(tables.read_table(table, ["id"])["id"].to_pylist()) if tables.parts(table) else set()
    missing = [request for request in requests if request.id not in done]
    journal = _open_journal(table, out) if engine.costs_money else None
    with out.progress(len(missing), "traces") as advance:
        for start in range(0, len(missing), rows_per_part):
            chunk = missing[start : start + rows_per_part]
            with out.account(f"{table.name} part") as row:
                traces = {}
                for trace in _answers(engine, chunk, sampling, journal, out.name):
                    traces[trace.id] = trace
                    advance(1)
                row["tokens_in"] = sum(t.prompt_tokens for t in traces.values())
                row["tokens_out"] = sum(t.completion_tokens for t in traces.values())
                tokens = row["tokens_in"] + row["tokens_out"]
                row["flops"] = ledger.forward_flops(engine.num_parameters or 0, tokens)
            # Behind its account: a kill in between makes the part again, and that costs again.
            tables.write_part(table, tables.to_table("traces", [traces[r.id] for r in chunk]))
            if journal:
                journal.clear()
    if journal:
        journal.remove()
    there = tables.read_table(table, ["id"])["id"].to_pylist()
    if lost := {request.id for request in requests} - set(there):
        raise RuntimeError(f"{table} lacks {len(lost)} of the rows that were asked for")


def _answers(
    engine: Generator,
    chunk: Sequence[Request],
    sampling: Sampling,
    journal: Journal | None,
    name: str,
) -> Iterator[Trace]:
    """A chunk's traces: those that the journal has, and then new ones, in it before they count."""
    wanted = {request.id for request in chunk}
    paid = [Trace(**row) for row in journal.records if row["id"] in wanted] if journal else []
    yield from paid
    known = {trace.id for trace in paid}
    for trace in engine.generate([r for r in chunk if r.id not in known], sampling):
        if journal:
            journal.append(asdict(trace))
            store.failpoint(f"{name}.journal-{len(journal.records)}")
        yield trace


def _open_journal(table: Path, out: StageFolder) -> Journal:
    journal = Journal(table.with_name(f"{table.name}.journal"))
    if journal.torn:
        out.log(f"{journal.path} ended in a torn record; its {journal.torn} bytes are cut off")
    for place in journal.quarantined:
        out.log(f"{journal.path} was broken in the middle; what could not be read is in {place}")
    return journal
