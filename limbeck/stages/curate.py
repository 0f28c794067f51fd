"""curate: which traces become training data, and the named reason for each that does not.

A corpus goes through in one pass, window by window: what a filter leaves of a window is what the
next one sees of it, and text is never in memory for longer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from limbeck import card, tables, windows
from limbeck.chat import split_think
from limbeck.config import (
    Plugin,
    ProblemsPath,
    StageConfig,
    TracesPath,
    VerdictsPath,
    map_references,
    written,
)
from limbeck.errors import UserError
from limbeck.filters.answers import Reasons, answered, checked, looks_at
from limbeck.folder import StageFolder
from limbeck.plugins import FilterChoice
from limbeck.types import Problem, Trace
from limbeck.windows import Window

WRITES = {"dataset": "dataset", "decisions": "decisions"}
EXTENDS = True
USES = ("limbeck.filters",)


class Config(StageConfig):
    problems: ProblemsPath
    """The questions that the traces answer."""
    traces: TracesPath
    """The candidates."""
    verdicts: VerdictsPath
    """What the verifier said of them."""
    keep: list[FilterChoice] = []
    """Filters of `limbeck/filters/`, in order; the first that objects names the reason."""
    thinking: Literal["keep", "drop"] = "keep"
    """`drop` leaves only what follows `</think>`: data without reasoning, for comparison."""
    weights: Literal["equal", "by_difficulty"] = "equal"
    """`by_difficulty` weighs a row by the share of its problem's judged samples that are not
    correct, taken as half a sample where all are; the mean over the data set is 1."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for rule in self.keep:
            looks_at(rule)
        return self


@dataclass
class Decided:
    """A window, and for each of its traces None or the reason why it is dropped."""

    window: Window
    dropped: Reasons

    def left(self) -> Window:
        """The window with only those traces that no filter has dropped so far."""
        rows = zip(self.window.traces, self.window.verdicts, self.dropped, strict=True)
        stay = [(trace, verdict) for trace, verdict, reason in rows if reason is None]
        traces, verdicts = [trace for trace, _ in stay], [verdict for _, verdict in stay]
        return Window(self.window.problems, traces, verdicts)

    def drop(self, reasons: Reasons) -> None:
        """Takes in what a filter said of what was left."""
        rows = [row for row, reason in enumerate(self.dropped) if reason is None]
        for row, reason in zip(rows, reasons, strict=True):
            self.dropped[row] = reason


@dataclass
class Counts:
    """What each filter said, and (domain, reason) of each trace; None is the reason to keep it."""

    said: list[Counter[str]]
    ends: Counter[tuple[str, str | None]]

    @property
    def kept(self) -> int:
        return sum(num for (_, reason), num in self.ends.items() if reason is None)

    @property
    def dropped(self) -> dict[str, int]:
        """By reason, the commonest first."""
        return dict(sum(self.said, Counter[str]()).most_common())


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `decisions`, one row per trace, and `dataset`, the kept ones as messages."""
    out.path.mkdir(parents=True, exist_ok=True)
    counts = Counts([Counter() for _ in config.keep], Counter())
    licences: dict[str, str] = {}
    with out.account("curate"), TemporaryDirectory(prefix=".scratch-", dir=out.path) as scratch:
        # A weight is relative to all others: until they are known, rows wait in the scratch folder.
        weigh = config.weights == "by_difficulty"
        rows_at = Path(scratch) / "dataset" if weigh else out.path / "dataset"
        paths = config.problems, config.traces, config.verdicts
        plan = windows.plan(*paths, out.name, windows.WINDOW)
        with out.progress(plan.num_traces, "traces") as advance:
            for decided in decide(plan.read(Path(scratch)), config.keep, counts.said):
                kept, window = decided.left(), decided.window
                tables.write_part(out.path / "decisions", _decisions(decided))
                if kept.traces:
                    weights = difficulties(window) if weigh else {}
                    tables.write_part(rows_at, _rows(kept, config.thinking, weights))
                domains = (window.problems[trace.problem_id].domain for trace in window.traces)
                counts.ends.update(zip(domains, decided.dropped, strict=True))
                card.add_licences(licences, sorted(_licences(kept)))
                advance(len(window.traces))
        told = ", ".join(f"{n:,} {reason}" for reason, n in counts.dropped.items())
        if not counts.kept:
            raise UserError(f"{out.name}.keep", f"dropped every trace ({told})", "loosen a filter")
        if weigh:
            _write_weighed(rows_at, out.path / "dataset")
    told = f"; dropped {told}" if told else ""
    out.log(f"kept {counts.kept:,} of {plan.num_traces:,} traces{told}")
    summary = _summary(config, out, plan.num_traces, counts)
    card.write(
        out.path / "dataset",
        name=f"{out.recipe} {out.name}",
        sampled=plan.num_traces,
        dropped=counts.dropped,
        licences=licences,
        lineage=_lineage(config, out),
    )
    return summary


# -- deciding -----------------------------------------------------------------------------------


def decide(
    all_windows: Iterable[Window], keep: list[Plugin], said: list[Counter[str]]
) -> Iterator[Decided]:
    """Each window with the reason of the first filter that objects, or None, for each trace.

    `said` counts the reasons of each filter.
    """
    decided: Iterator[Decided] = (Decided(w, [None] * len(w.traces)) for w in all_windows)
    for rule, counts in zip(keep, said, strict=True):
        decided = _filtered(rule, decided, counts)
    return decided


def _filtered(rule: Plugin, decided: Iterator[Decided], counts: Counter[str]) -> Iterator[Decided]:
    """One filter's turn: it sees what is left of each window."""

    def ask(left: Iterator[Window]) -> Iterable[Any]:
        return _reasons(rule, left)

    asked = ((each, left, len(left.traces)) for each in decided for left in [each.left()])
    for each, reasons in answered(rule, ask, asked):
        each.drop(reasons)
        counts.update(reason for reason in reasons if reason)
        yield each


def _reasons(rule: Plugin, left: Iterator[Window]) -> Iterator[Any]:
    """What a filter says of each window."""
    kind = looks_at(rule)
    if kind == "batches":
        yield from rule(map(_batch, left)) or ()
        return
    for window in left:
        pairs = zip(window.traces, window.verdicts, strict=True)
        if kind == "traces":
            groups = [list(group) for _, group in groupby(pairs, lambda pair: pair[0].problem_id)]
            said = [(rule([t for t, _ in group], [v for _, v in group]), group) for group in groups]
            yield [word for words, group in said for word in checked(rule, words, len(group))]
        else:
            yield [rule(trace, verdict) for trace, verdict in pairs]


def _batch(window: Window) -> pa.RecordBatch:
    """What a filter of everything sees of a window."""
    problems = [window.problems[trace.problem_id] for trace in window.traces]
    columns = {
        "id": [trace.id for trace in window.traces],
        "problem_id": [problem.id for problem in problems],
        "question": [problem.question for problem in problems],
        "text": [trace.text for trace in window.traces],
        "domain": [problem.domain for problem in problems],
    }
    return pa.record_batch(
        {name: pa.array(values, pa.string()) for name, values in columns.items()}
    )


def difficulties(window: Window) -> dict[str, float]:
    """1 less the pass rate of each problem that has judged samples, at least half a sample's."""
    num, right = Counter[str](), Counter[str]()
    for trace, verdict in zip(window.traces, window.verdicts, strict=True):
        num[trace.problem_id] += verdict.correct is not None
        right[trace.problem_id] += verdict.correct is True
    return {p: max(1 - right[p] / n, 1 / (2 * n)) for p, n in num.items() if n}


# -- writing ------------------------------------------------------------------------------------


def _decisions(decided: Decided) -> pa.Table:
    traces = decided.window.traces
    columns = [[t.id for t in traces], [t.problem_id for t in traces], decided.dropped]
    return pa.table(columns, schema=tables.SCHEMAS["decisions"])


def _rows(kept: Window, thinking: str, weights: dict[str, float]) -> pa.Table:
    rows = (_row(kept.problems[trace.problem_id], trace, thinking) for trace in kept.traces)
    return tables.to_table(
        "dataset", [{**row, "weight": weights.get(row["problem_id"], 1.0)} for row in rows]
    )


def _row(problem: Problem, trace: Trace, thinking: str) -> dict[str, Any]:
    text = trace.text if thinking == "keep" else (split_think(trace.text).answer or "").strip()
    asked = [{"role": m.role, "content": m.content} for m in problem.messages]
    return {
        "id": trace.id,
        "problem_id": problem.id,
        "messages": [*asked, {"role": "assistant", "content": text}],
        "domain": problem.domain,
        "source": _source(problem),
        "teacher": trace.model,
    }


def _source(problem: Problem) -> str:
    return str(problem.meta.get("source") or "")


def _write_weighed(waiting: Path, dataset: Path) -> None:
    """Writes the rows that waited, their weights divided by the mean."""
    mean = pc.mean(tables.read_table(waiting, ["weight"])["weight"]).as_py()
    for part in tables.parts(waiting):
        table = tables.read_table(part)
        weight = pc.divide(table["weight"].cast(pa.float64()), mean).cast(pa.float32())
        place = table.schema.get_field_index("weight")
        tables.write_part(dataset, table.set_column(place, table.schema.field(place), weight))


# -- telling ------------------------------------------------------------------------------------


def _summary(config: Config, out: StageFolder, sampled: int, counts: Counts) -> dict[str, Any]:
    """Kept and dropped are what was sampled: in all, filter by filter, and of each domain."""
    dropped = counts.dropped
    funnel, left = [], sampled
    for rule, reasons in zip(config.keep, counts.said, strict=True):
        left -= reasons.total()
        row = {"filter": rule.name, "reasons": dict(reasons.most_common()), "left": left}
        funnel.append(row)
    assert left == counts.kept, "the funnel does not add up"
    return {
        "accounts": out.balance(sampled, counts.kept, rejected=sum(dropped.values())),
        "sampled": sampled,
        "kept": counts.kept,
        "dropped": dropped,
        "funnel": funnel,
        "by_domain": _by_domain(counts.ends),
    }


def _by_domain(ends: Counter[tuple[str, str | None]]) -> dict[str, dict[str, Any]]:
    """What was sampled, kept and dropped of each domain."""
    found: dict[str, dict[str, Any]] = {}
    for (domain, reason), num in sorted(ends.items(), key=lambda end: (end[0][0], -end[1])):
        row = found.setdefault(domain, {"sampled": 0, "kept": 0, "dropped": {}})
        row["sampled"] += num
        if reason is None:
            row["kept"] = num
        else:
            row["dropped"][reason] = num
    return found


def _licences(kept: Window) -> set[tuple[str, str]]:
    """(source, licence) of the problems, where both are known."""
    problems = (kept.problems[trace.problem_id] for trace in kept.traces)
    told = ((_source(problem), str(problem.meta.get("licence") or "")) for problem in problems)
    return {(source, licence) for source, licence in told if source and licence}


def _lineage(config: Config, out: StageFolder) -> list[str]:
    """How the rows were made, for the data card; what lies outside the run by its last name."""

    def told(kind: str, path: str, key: str) -> str:
        run, place = out.path.parent, Path(path)
        return f"./{place.relative_to(run)}" if place.is_relative_to(run) else place.name

    shown = map_references(config, told)
    rules = [json.dumps(written(rule), ensure_ascii=False) for rule in shown.keep]
    return [
        f"Recipe {out.recipe}, stage {out.name} (curate), identity {out.key}",
        f"Problems of {shown.problems}, traces of {shown.traces}, verdicts of {shown.verdicts}",
        *(f"Filter {number}: {rule}" for number, rule in enumerate(rules, 1)),
        f"Thinking: {config.thinking}; weights: {config.weights}",
    ]
