"""general: plain instruction data as rows of a data set, with or without thinking.

What DeepSeek-R1 learns besides reasoning (2501.12948v2, B.3.3): writing, factual questions,
self-cognition and translation. A model writes a chain of thought before some of the answers; there
is none before those to trivial questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappush, heappushpop
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from limbeck import card, store, tables
from limbeck.chat import CLOSE, OPEN, split_think
from limbeck.config import Extent, Plugin, written
from limbeck.engines.sampling import SamplingConfig, requests_for, write_missing
from limbeck.engines.thinking import FAILED, PROMPT, asked, thought, unreadable
from limbeck.errors import UserError
from limbeck.filters.answers import answered, looks_at
from limbeck.folder import StageFolder
from limbeck.plugins import EngineChoice, FilterChoice, Kind
from limbeck.problems import source_name
from limbeck.problems.conversations import Turns, cell_of, conversation
from limbeck.types import Generator, Message, Problem, Trace

WRITES = {"dataset": "dataset", "traces": "traces"}
RESUMES = True
EXTENDS = True  # rows are drawn by their hash: a larger `num` has those of the smaller one
USES = ("limbeck.filters",)
SCRATCH = ("drawn",)
ROWS_PER_PART = 4096
ROWS_FILTERED = 1024  # at a time

Rows = Annotated[Plugin, Kind("source of rows", "limbeck.problems", "rows")]
Row = dict[str, Any]


class Config(SamplingConfig):
    source: Rows
    """Where the rows come from: `{name: hub, dataset: ...}`, `{name: file, path: ...}`, or a
    function of yours that yields (where, row)."""
    num: Extent[PositiveInt]
    """How many rows to draw, by a hash of what they say; all if there are not so many."""
    seed: int = 0
    """Another one draws other rows."""
    messages: str | None = None
    """The column with whole conversations, if there is one; else `question` and `answer` are."""
    question: str = "question"
    """The column that is asked."""
    context: str | None = None
    """A column that stands behind the question, where it is not empty (Alpaca: `input`)."""
    answer: str = "answer"
    """The column that answers."""
    fill: dict[Annotated[str, Field(min_length=1)], str] = {}
    """Words of the texts and what stands in their place: `{"{name}": Ada}` for self-cognition."""
    domain: str = "general"
    """The domain of every row."""
    domain_column: str | None = None
    """The column that says it instead."""
    licence: str | None = None
    """The source's licence, for the data card."""
    thinking: Literal["none", "empty", "written"] = "none"
    """What comes before the answer: nothing, an empty `<think></think>`, or what `engine` writes.
    Conversations of several turns, and answers that think already, stay as they are."""
    engine: EngineChoice | None = None
    """Who writes the thinking, given question and answer."""
    prompt: str = PROMPT
    """What the engine is asked, with `{question}` and `{answer}`."""
    keep: list[FilterChoice] = []
    """Filters of everything, in order: `decontaminated`, `near_duplicates`, `exact_duplicates`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.engine is not None) != (self.thinking == "written"):
            raise ValueError("an engine is for `thinking: written`; set both, or neither")
        if "{question}" not in self.prompt or "{answer}" not in self.prompt:
            raise ValueError("the prompt lacks {question} or {answer}; write both into it")
        for rule in self.keep:
            if looks_at(rule) != "batches":
                what = f"{rule.name} is a filter of traces, and here is none"
                raise ValueError(f"{what}; keep filters of everything, like decontaminated")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `dataset` with its card, and the `traces` of what was thought.

    Rows stream; what an engine is asked, and its answers, are in memory.
    """
    drawn, dataset = out.path / "drawn", out.path / "dataset"
    for folder in (drawn, dataset):
        store.remove_tree(folder)
    refused: Counter[str] = Counter()
    with out.account("read"), out.progress(config.num, "rows") as advance:
        keys = draw(_read(config, out, refused), config, drawn, refused, advance)
    if not keys:
        told = ", ".join(f"{num:,} {why}" for why, num in refused.items())
        what = f"gave no rows ({told or 'it is empty'})"
        raise UserError(f"{out.name}.source", what, "name other columns, or another source")
    if len(keys) < config.num:
        out.log(f"the source has fewer rows than wanted: {len(keys):,} of {config.num:,}")
    num_read = len(keys) + refused.total()
    thoughts = _think(config, _chosen(drawn, keys, config.seed), out)
    with out.account("write"):
        rows = _finished(_chosen(drawn, keys, config.seed), config, thoughts, refused)
        for rule in config.keep:
            rows = _filtered(rows, rule, refused)
        num = _write(rows, dataset)
    if not num:
        told = ", ".join(f"{num:,} {why}" for why, num in refused.most_common())
        raise UserError(out.name, f"has no rows left ({told})", "mend what refuses them")
    source = _source(config)
    card.write(
        dataset,
        name=f"{out.recipe} {out.name}",
        sampled=num_read,
        dropped=refused,
        licences={source: config.licence} if config.licence else {},
        lineage=_lineage(config, out),
    )
    out.log(" · ".join([f"{num:,} rows", *(f"{n:,} {why}" for why, n in refused.most_common())]))
    failed = refused[FAILED]
    accounts = out.balance(num_read, num, rejected=refused.total() - failed, failed=failed)
    return {"accounts": accounts, "refused": dict(refused.most_common())}


def _read(config: Config, out: StageFolder, refused: Counter[str]) -> Iterator[Row]:
    """The rows that say something; the others are counted by reason."""
    columns = Turns(config.messages, config.question, config.context, config.answer, config.fill)
    source = _source(config)
    for where, row in config.source():
        messages = conversation(row, where, columns)
        if isinstance(messages, str):
            refused[messages] += 1
            continue
        problem_id = store.digest(messages)[:16]
        column = config.domain_column
        yield {
            "id": out.row_id(problem_id, 0),
            "problem_id": problem_id,
            "messages": messages,
            "domain": str(cell_of(row, where, column) or "") if column else config.domain,
            "source": source,
            "teacher": "",
            "weight": 1.0,
        }


def _source(config: Config) -> str:
    knobs = config.source.knobs
    return source_name(str(knobs.get("dataset") or knobs.get("path") or config.source.name))


def draw(
    rows: Iterable[Row],
    config: Config,
    drawn: Path,
    refused: Counter[str],
    advance: Callable[[int], None],
) -> set[int]:
    """The keys of the `num` rows with the smallest, in one pass over a source of any length.

    What was among the smallest for a while is written to `drawn`: num · (1 + ln(rows / num)) rows
    are expected there.
    """
    largest_first: list[int] = []
    keys: set[int] = set()

    def passing() -> Iterator[Row]:
        for row in rows:
            key = store.seed_of(config.seed, row["problem_id"])
            if key in keys:
                refused["seen before"] += 1
                continue
            if len(keys) < config.num:
                heappush(largest_first, -key)
                advance(1)
            else:
                refused["not drawn"] += 1
                if key > -largest_first[0]:
                    continue
                keys.remove(-heappushpop(largest_first, -key))
            keys.add(key)
            yield row

    _write(passing(), drawn)
    return keys


def _chosen(drawn: Path, keys: set[int], seed: int) -> Iterator[Row]:
    """The drawn rows, in the source's order."""
    for batch in tables.iter_batches(drawn, again=True, rows=1024) if keys else ():
        for row in batch.to_pylist():
            if store.seed_of(seed, row["problem_id"]) in keys:
                yield row


def _write(rows: Iterable[Row], folder: Path) -> int:
    """Writes rows in parts as they come; how many there were."""
    num = 0
    for part in _parts(rows, ROWS_PER_PART):
        tables.write_part(folder, tables.to_table("dataset", part))
        num += len(part)
    return num


def _think(config: Config, rows: Iterable[Row], out: StageFolder) -> dict[str, Trace]:
    """What the engine thinks before the answer of each plain row, by the row's id."""
    if config.engine is None:
        return {}
    problems = [_problem(row, config.prompt) for row in rows if is_plain(row)]
    if not problems:
        return {}
    engine: Generator = config.engine()
    requests = requests_for(problems, 1, config.seed, out)
    write_missing(engine, requests, config.sampling(), out.path / "traces", out)
    return {trace.problem_id: trace for trace in tables.read_traces(out.path / "traces")}


def _problem(row: Row, prompt: str) -> Problem:
    question = next(turn["content"] for turn in row["messages"] if turn["role"] == "user")
    answer = row["messages"][-1]["content"]
    return Problem(
        row["id"],
        (Message("user", asked(prompt, question, answer)),),
        answer,
        "exact",
        row["domain"],
    )


def is_plain(row: Row) -> bool:
    """One question and an answer without thinking."""
    num_asked = sum(turn["role"] == "user" for turn in row["messages"])
    return num_asked == 1 and split_think(row["messages"][-1]["content"]).thinking is None


def _finished(
    rows: Iterable[Row], config: Config, thoughts: Mapping[str, Trace], refused: Counter[str]
) -> Iterator[Row]:
    """The rows as they are learned; those whose thinking cannot be read are counted by reason."""
    for row in rows:
        if config.thinking != "none" and is_plain(row):
            text = ""
            if trace := thoughts.get(row["id"]):
                if reason := unreadable(trace):
                    refused[reason] += 1
                    continue
                text, row["teacher"] = thought(trace), trace.model
            last = row["messages"][-1]
            last["content"] = f"{OPEN}\n{text}\n{CLOSE}\n\n{last['content']}"
        yield row


def _filtered(rows: Iterator[Row], rule: Plugin, refused: Counter[str]) -> Iterator[Row]:
    """The rows that a filter of everything keeps."""

    def ask(batches: Iterator[pa.RecordBatch]) -> Iterable[Any]:
        return rule(batches) or ()

    asked = ((part, _batch(part), len(part)) for part in _parts(rows, ROWS_FILTERED))
    for part, reasons in answered(rule, ask, asked):
        for row, reason in zip(part, reasons, strict=True):
            if reason is None:
                yield row
            else:
                refused[reason] += 1


def _parts(rows: Iterable[Row], num: int) -> Iterator[list[Row]]:
    """The rows, so many at a time."""
    rows = iter(rows)
    while part := list(islice(rows, num)):
        yield part


def _batch(part: list[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([_seen(row) for row in part])


def _seen(row: Row) -> dict[str, str]:
    """What a filter of everything sees of a row."""
    asked = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
    about = {column: row[column] for column in ("id", "problem_id", "domain")}
    return {**about, "question": asked[-1], "text": row["messages"][-1]["content"]}


def _lineage(config: Config, out: StageFolder) -> list[str]:
    thinking = {
        "none": "answers as they are in the source, without thinking added",
        "empty": "an empty thinking before each answer",
        "written": "the thinking before an answer was written by a model that was shown question "
        "and answer; rows whose thinking was unfinished or spoke of that answer were dropped",
    }[config.thinking]
    return [
        f"Recipe {out.recipe}, stage {out.name} (general), identity {out.key}",
        f"Rows of {_source(config)}, drawn by a hash of seed {config.seed} and what they say",
        thinking,
        *(f"filter {rule.name} {written(rule)}" for rule in config.keep),
    ]
