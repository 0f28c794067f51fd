"""What every use of an engine shares: which texts are still missing, and writing them in parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limbeck import ledger, store
from limbeck.folder import StageFolder
from limbeck.types import Generator, Problem, Request, Sampling


def requests_for(
    problems: Sequence[Problem], num_samples: int, seed: int, out: StageFolder
) -> list[Request]:
    """One request per problem and sample; a problem's samples stand together, to share a prefill.

    Each has its own seed, so a text depends neither on order nor on what shares its batch.
    """
    return [
        Request(out.row_id(p.id, i), p, i, store.seed_of(seed, out.name, p.id, i))
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
    without the interruption: same batches, same bits.
    """
    done = set(store.read_table(table, ["id"])["id"].to_pylist()) if store.parts(table) else set()
    missing = [request for request in requests if request.id not in done]
    with out.progress(len(missing), "traces") as advance:
        for start in range(0, len(missing), rows_per_part):
            chunk = missing[start : start + rows_per_part]
            with out.account(f"{table.name} part") as row:
                traces = {}
                for trace in engine.generate(chunk, sampling):
                    traces[trace.id] = trace
                    advance(1)
                store.write_part(table, store.to_table("traces", [traces[r.id] for r in chunk]))
                row["tokens_in"] = sum(t.prompt_tokens for t in traces.values())
                row["tokens_out"] = sum(t.completion_tokens for t in traces.values())
                tokens = row["tokens_in"] + row["tokens_out"]
                row["flops"] = ledger.forward_flops(engine.num_parameters or 0, tokens)
