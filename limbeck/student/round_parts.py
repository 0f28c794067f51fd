"""Rounds of reinforcement learning on disk: of each table a part for each round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from limbeck import tables
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.train.signals import Answered
from limbeck.types import Problem, Trace, Verdict

if TYPE_CHECKING:
    from limbeck.train.old_logprobs import Own

REWARDS = pa.schema(
    [
        ("trace_id", pa.string()),
        ("reward", pa.float64()),
        ("parts", pa.string()),  # JSON: what each reward gave, unweighted
        ("learned", pa.bool_()),  # whether it is learned from
    ]
)
OWN = pa.schema(
    [
        ("trace_id", pa.string()),
        ("whole", pa.list_(pa.float32())),  # as in limbeck/train/old_logprobs.py
        ("drawn", pa.list_(pa.float32())),
    ]
)
WRITTEN = ("rollouts", "verdicts", "rewards")


class RoundParts:
    """The parts of a stage's rounds; whoever asks for one that is missing gets a UserError."""

    def __init__(self, out: StageFolder, problems: Sequence[Problem], num_samples: int) -> None:
        self.out, self.num_samples = out, num_samples
        self.problems = {problem.id: problem for problem in problems}

    def has(self, name: str, number: int) -> bool:
        return self._find(name, number) is not None

    def mend(self, number: int) -> None:
        """Sets aside what changed on disk of a round, and what was made of it: it is made again.

        UserError where an earlier round lacks a part: nothing can be written behind it.
        """
        for name in WRITTEN:
            self._check_earlier(name, number)
        is_broken = False
        for path in filter(None, (self._find(name, number) for name in (*WRITTEN, "own"))):
            if not is_broken and not tables.is_whole(path):
                self.out.log(f"{path} changed on disk since it was written; it is made again")
                is_broken = True
            if is_broken:
                path.rename(path.with_name(f".{path.name}.broken"))

    def write(self, number: int, groups: Sequence[Answered], learned: Sequence[Answered]) -> None:
        """All of a round; what is there already stays."""
        traces = [trace for group in groups for trace in group.traces]
        verdicts = [verdict for group in groups for verdict in group.verdicts]
        is_learned = {id(group) for group in learned}
        rewards = [
            {
                "trace_id": trace.id,
                "reward": group.rewards[i],
                "parts": json.dumps({name: part[i] for name, part in group.parts.items()}),
                "learned": id(group) in is_learned,
            }
            for group in groups
            for i, trace in enumerate(group.traces)
        ]
        self._keep("rollouts", number, tables.to_table("traces", map(vars, traces)))
        self._keep("verdicts", number, tables.to_table("verdicts", map(vars, verdicts)))
        self._keep("rewards", number, pa.Table.from_pylist(rewards, REWARDS))

    def read(self, number: int) -> tuple[list[Answered], list[Answered]]:
        """(all groups of a round, those that are learned from)."""
        rows = self._rows("rewards", number)
        parts = [json.loads(row["parts"]) for row in rows]
        groups = self.grouped(
            self.traces(number),
            self.verdicts(number),
            [row["reward"] for row in rows],
            {name: [part[name] for part in parts] for name in parts[0]},
        )
        learned = [row["learned"] for row in rows[:: self.num_samples]]
        return groups, [group for group, is_in in zip(groups, learned, strict=True) if is_in]

    def grouped(
        self,
        traces: Sequence[Trace],
        verdicts: Sequence[Verdict],
        rewards: Sequence[float],
        parts: Mapping[str, Sequence[float | None]],
    ) -> list[Answered]:
        """All samples of a question together, as they stand together."""
        spans = [slice(i, i + self.num_samples) for i in range(0, len(traces), self.num_samples)]
        return [
            Answered(
                self.problems[traces[span.start].problem_id],
                traces[span],
                verdicts[span],
                rewards[span],
                {name: part[span] for name, part in parts.items()},
            )
            for span in spans
        ]

    def traces(self, number: int) -> list[Trace]:
        tuples = ("token_ids", "logprobs")
        return [
            Trace(**row | {name: tuple(row[name] or ()) for name in tuples})
            for row in self._rows("rollouts", number)
        ]

    def verdicts(self, number: int) -> list[Verdict]:
        return [Verdict(**row) for row in self._rows("verdicts", number)]

    def write_own(self, number: int, own: Mapping[str, Own]) -> None:
        """The trainer's own log-probabilities by trace."""
        rows = [{"trace_id": name, **vars(found)} for name, found in own.items()]
        self._keep("own", number, pa.Table.from_pylist(rows, OWN))

    def own(self, number: int) -> dict[str, Own]:
        from limbeck.train.old_logprobs import Own

        rows = self._rows("own", number)
        return {row["trace_id"]: Own(row["whole"], row["drawn"]) for row in rows}

    def _find(self, name: str, number: int) -> Path | None:
        return next((self.out.path / name).glob(f"part-{number:05d}-*.parquet"), None)

    def _keep(self, name: str, number: int, table: pa.Table) -> None:
        if not self.has(name, number):
            self._check_earlier(name, number)
            tables.write_part(self.out.path / name, table)

    def _check_earlier(self, name: str, number: int) -> None:
        """A part takes the first number that is free: that of an earlier round, were it missing."""
        written = {path.name[:10] for path in tables.parts(self.out.path / name)}
        for earlier in range(number):
            if f"part-{earlier:05d}" not in written:
                raise self._lost(name, f"lacks the part of round {earlier + 1}")

    def _rows(self, name: str, number: int) -> list[dict[str, Any]]:
        path = self._find(name, number)
        if path is None:
            raise self._lost(name, f"lacks the part of round {number + 1}")
        if not tables.is_whole(path):
            raise self._lost(f"{name}/{path.name}", "changed on disk since it was written")
        rows: list[dict[str, Any]] = tables.read_table(path).to_pylist()
        return rows

    def _lost(self, name: str, what: str) -> UserError:
        way_out = f"restore it, or start the stage anew with --redo {self.out.name}"
        return UserError(str(self.out.path / name), what, way_out)
