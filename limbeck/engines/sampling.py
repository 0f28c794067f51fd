"""What every use of an engine shares: which texts are still missing, and writing them in parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from limbeck import ledger, secrets, store, tables
from limbeck.config import StageConfig
from limbeck.engines.budget import Budget
from limbeck.engines.journaled import (
    count_earlier,
    forget,
    journaled,
    longer_limit,
    open_journal,
    settled,
    wasted,
)
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
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """A text ends before the first of these."""
    max_tokens: PositiveInt = 1024
    """A text that has not ended by then is truncated, and says so."""

    def sampling(self) -> Sampling:
        """The same for an engine."""
        return Sampling(
            self.temperature,
            self.top_p,
            self.max_tokens,
            self.top_k,
            self.min_p,
            tuple(self.stop),
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
    *,
    is_first: bool = True,
) -> None:
    """Generates what a table of traces lacks, part by part.

    Of an engine that costs nothing, parts are whole chunks of the wanted list, so what remains
    chunks as it would have without an interruption: same batches, same bits. One that changed on
    disk is made again. An engine that costs money answers into a journal, and an answer that is
    there is never asked for again; its parts take answers as they come, so that nobody waits for
    the slowest of a chunk. Its budget knows what earlier answers cost: it is told when the table is
    written for the first time (`is_first`) with this engine.
    """
    if not engine.costs_money:
        tables.set_broken_aside(table, out.log)
    done = set(tables.read_table(table, ["id"])["id"].to_pylist()) if tables.parts(table) else set()
    missing = [request for request in requests if request.id not in done]
    place = {request.id: i for i, request in enumerate(missing)}
    chunks = [missing[i : i + rows_per_part] for i in range(0, len(missing), rows_per_part)]
    journal: Journal | None = None
    if engine.costs_money:
        journal = open_journal(table, out)
        if is_first:
            count_earlier(engine, journal, done, table, out)
        answers: Iterable[Trace] = journaled(engine, missing, sampling, journal, out.name)
    else:
        answers = chain.from_iterable(engine.generate(chunk, sampling) for chunk in chunks)
    firsts: dict[str, Trace] = {}
    ends = settled(answers, longer_limit(engine, sampling), firsts)
    with out.progress(len(missing), "traces") as advance, _heard(out):
        for chunk in chunks:
            traces, paid = [], []
            with out.account(f"{table.name} part") as row:
                for trace, all_of_it in islice(ends, len(chunk)):
                    traces.append(trace)
                    paid += all_of_it
                    advance(1)
                row |= {"part": len(tables.parts(table)), "answers": len(paid)}
                wasted_in, wasted_out = wasted(journal) if journal else (0, 0)
                row["tokens_in"] = sum(t.prompt_tokens for t in paid) + wasted_in
                row["tokens_out"] = sum(t.completion_tokens for t in paid) + wasted_out
                tokens = row["tokens_in"] + row["tokens_out"]
                row["flops"] = ledger.forward_flops(engine.num_parameters or 0, tokens)
                row |= bill(engine, row["tokens_in"], row["tokens_out"])
            # Behind its account: a kill in between makes the part again, and that costs again.
            traces.sort(key=lambda trace: place[trace.id])
            tables.write_part(table, tables.to_table("traces", traces))
            if journal:
                forget(journal, firsts.values())
        next(ends, None)  # an engine may have something to say at its end
    if journal:
        journal.remove()
    there = tables.read_table(table, ["id"])["id"].to_pylist()
    if lost := {request.id for request in requests} - set(there):
        raise RuntimeError(f"{table} lacks {len(lost)} of the rows that were asked for")


def bill(engine: Generator, tokens_in: int, tokens_out: int) -> dict[str, Any]:
    """What an account says of a server that is paid."""
    if not engine.costs_money:
        return {}
    budget: Budget | None = getattr(engine, "budget", None)
    money = budget.price_of(tokens_in, tokens_out) if budget else None
    return {"unpriced": True} if money is None else {"money": money}


@contextmanager
def _heard(out: StageFolder) -> Iterator[None]:
    """What engines warn of meanwhile goes to the stage's log."""

    class ToLog(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            out.log(secrets.hidden(record.getMessage()))

    engines, to_log = logging.getLogger("limbeck.engines"), ToLog(logging.WARNING)
    engines.addHandler(to_log)
    try:
        yield
    finally:
        engines.removeHandler(to_log)
