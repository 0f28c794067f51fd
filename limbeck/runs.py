"""A run folder, read back: its stages, results and cost, one trace's story, the report."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from limbeck import ledger, store
from limbeck.errors import UserError
from limbeck.types import Problem

Row = dict[str, Any]
NUM_SHOWN = 4  # pairs of traces, and problems with everybody's answer, in the report


class Run:
    """Reads what a run wrote; changes nothing but the report."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        described = self.path / "recipe.json"
        if not described.exists():
            raise UserError(str(path), "is not a run folder", "give one that limbeck run made")
        self.recipe = store.read_json(described)

    def stages(self) -> list[Row]:
        """Every stage with its state and, once it is finished, what it says of itself."""
        rows = []
        for name, entry in self.recipe["stages"].items():
            manifest = self.path / name / "stage.json"
            begun = (self.path / name / "started.json").exists()
            row = {"stage": name, "verb": entry["stage"], "state": "begun" if begun else "new"}
            if manifest.exists():
                done = store.read_json(manifest)
                row |= {"state": "done", "finished": done["finished"], "summary": done["summary"]}
            rows.append(row)
        return rows

    def summary(self) -> Row:
        """What `limbeck show --json` prints."""
        compared = self._compared()
        return {
            "name": self.recipe["name"],
            "stages": self.stages(),
            "results": compared["results"],
            "tests": compared["tests"],
            "families": compared["families"],
            "ledger": self.ledger(),
            "published": [],
        }

    def results(self) -> list[Row]:
        """The results table: a row per model, split and metric."""
        return self._compared()["results"]

    def table(self, name: str) -> pa.Table:
        """`run.table("sample/traces")` as Arrow; `.to_pandas()` it if you like."""
        return store.read_table(self.path / name)

    def ledger(self) -> list[Row]:
        """What each stage cost, all its sittings together."""
        return [
            {"stage": row["stage"], "verb": row["verb"]}
            | ledger.total(self.path / row["stage"] / "ledger.jsonl")
            for row in self.stages()
            if row["state"] != "new"
        ]

    def _compared(self) -> dict[str, list[Row]]:
        """The tables of the compare stages; without one, those of the evaluations."""
        found: dict[str, list[Row]] = {"results": [], "families": [], "tests": []}
        for row in self._done("compare"):
            place = self.path / row["stage"] / "results" / "results.json"
            for key, rows in store.read_json(place).items():
                found[key] += rows
        if not found["results"]:
            for row in self._done("evaluate"):
                results = row["summary"]["results"]
                found["results"] += [{"name": row["stage"], **result} for result in results]
        return found

    def _done(self, verb: str) -> list[Row]:
        return [row for row in self.stages() if row["verb"] == verb and row["state"] == "done"]

    # -- one trace ------------------------------------------------------------------------------

    def story(self, trace_id: str) -> Row:
        """Where a trace came from, what was said of it and what it was trained into.

        `trace_id` may be the beginning of one. UserError if none or several begin so.
        """
        found = list(self._rows("traces", "id", trace_id, prefix=True))
        ids = {row["id"] for _, row in found}
        if len(ids) != 1:
            what = f"{len(ids)} traces begin with it" if ids else "no trace of this run begins so"
            raise UserError(f"{self.path}: id {trace_id!r}", what, "take an id from the report")
        place, trace = found[0]
        trace.pop("logprobs"), trace.pop("token_ids")
        problem = next(self._rows("problems", "id", trace["problem_id"]), None)
        story: Row = {"trace": trace, "from": place}
        if problem:
            story["problem"] = {**problem[1], "from": problem[0]}
        verdicts = self._rows("verdicts", "trace_id", trace["id"])
        story["verdicts"] = [{"by": place, **row} for place, row in verdicts]
        decisions = list(self._rows("decisions", "trace_id", trace["id"]))
        story["decisions"] = [{"by": place, "dropped": row["dropped"]} for place, row in decisions]
        kept = {place.partition("/")[0] for place, row in decisions if row["dropped"] is None}
        story["trained_into"] = [
            name
            for name, entry in self.recipe["stages"].items()
            if str(entry.get("data", "")).partition("./")[2].partition("/")[0] in kept
        ]
        return story

    def _rows(
        self, kind: str, column: str, value: str, prefix: bool = False
    ) -> Iterator[tuple[str, Row]]:
        """(place, row) of every table of this kind that has the value in a column."""
        for row in self.stages():
            for output, made in _writes(row["verb"]).items():
                folder = self.path / row["stage"] / output
                if made == kind and row["state"] == "done" and store.parts(folder):
                    table = store.read_table(folder)
                    match = pc.starts_with if prefix else pc.equal
                    for hit in table.filter(match(table[column], value)).to_pylist():
                        yield f"{row['stage']}/{output}", hit

    # -- words and pictures ---------------------------------------------------------------------

    def text(self) -> str:
        """The run for a terminal: stages, results, cost."""
        lines = [f"{self.recipe['name']}  {self.path}", ""]
        for row in self.stages():
            told = json.dumps(row.get("summary", {}), ensure_ascii=False)
            told = told if len(told) < 90 else f"{told[:87]}..."
            lines.append(f"{row['stage']:<20} {row['verb']:<9} {row['state']:<6} {told}")
        lines += [
            "",
            self.results_text(),
            "",
            f"{'cost':<20} {'CPU s':>9} {'tokens':>12} {'FLOPs':>9}",
        ]
        for row in self.ledger():
            tokens = row["tokens_in"] + row["tokens_out"]
            lines.append(
                f"{row['stage']:<20} {row['cpu_seconds']:>9.1f} {tokens:>12,.0f} {row['flops']:>9.1e}"
            )
        return "\n".join(lines)

    def results_text(self) -> str:
        """The results table and what the paired tests say."""
        from limbeck.report.page import results_table

        compared = self._compared()
        return results_table(compared["results"], compared["tests"]) if compared["results"] else ""

    def story_text(self, trace_id: str) -> str:
        """A trace's story for a terminal."""
        story = self.story(trace_id)
        trace, problem = story["trace"], story.get("problem")
        lines = [f"trace    {trace['id']}  sample {trace['index']} in {story['from']}"]
        lines += [
            f"author   {trace['model']}, {trace['completion_tokens']} tokens, {trace['finish']}"
        ]
        if problem:
            lines += [f"problem  {problem['id']} ({problem['domain']}) in {problem['from']}"]
            lines += [f"         {m['role']}: {_indent(m['content'])}" for m in problem["messages"]]
            lines += [f"answer   {problem['answer']}"]
        lines += [f"text     {_indent(trace['text'])}"]
        for verdict in story["verdicts"]:
            read = f", read as {verdict['extracted']!r}" if verdict["extracted"] else ""
            lines += [f"verdict  {verdict['reason']}{read}, by {verdict['by']}"]
        for decision in story["decisions"]:
            why = f"dropped as {decision['dropped']}" if decision["dropped"] else "kept"
            lines += [f"curated  {why} by {decision['by']}"]
        lines += [f"trained  into {', '.join(story['trained_into']) or 'no model'}"]
        return "\n".join(_visible(line) for line in lines)

    def write_report(self) -> Path:
        """Writes `report.html`, whole or not at all."""
        from limbeck.report.page import Report, headline, render

        compared = self._compared()
        sessions = store.read_jsonl(self.path / "sessions.jsonl")
        done = [row for row in self.stages() if row["state"] == "done"]
        page = Report(
            name=self.recipe["name"],
            title=self.recipe["title"],
            command=sessions[0]["command"] if sessions else "",
            started=sessions[0]["started"] if sessions else "",
            finished=max((row["finished"] for row in done), default=""),
            versions=sessions[-1]["versions"] if sessions else {},
            machine=self._machine(sessions),
            headline=headline(compared["results"], compared["tests"]),
            results=compared["results"],
            tests=compared["tests"],
            families=compared["families"],
            guess=self._guess(),
            models=self._models(),
            funnel=[{"stage": row["stage"], **row["summary"]} for row in self._done("curate")],
            verdict_reasons={r["stage"]: r["summary"]["reasons"] for r in self._done("verify")},
            curves=self._curves(),
            lengths=self._lengths(),
            examples=self._examples(),
            answers=self._answers(),
            ledger=self.ledger(),
            recipe_text=json.dumps(self.recipe, indent=1, ensure_ascii=False),
        )
        path = self.path / "report.html"
        store.write_text(path, render(page))
        return path

    def _machine(self, sessions: list[Row]) -> Row:
        rows = self.ledger()
        about = sessions[-1]["machine"] if sessions else {}
        return {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": about.get("threads"),
            "device": about.get("device"),
            "gemm_gflops": about.get("gemm_gflops"),
            "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
            "wall_seconds": round(sum(row["wall_seconds"] for row in rows), 1),
        }

    def _guess(self) -> list[Row]:
        return [
            {"split": f"{row['stage']}/{split}", "domain": domain, "share": share}
            for row in self._done("collect")
            for split, shares in row["summary"]["guess"].items()
            for domain, share in shares.items()
        ]

    def _models(self) -> list[Row]:
        return [
            {"name": row["stage"]}
            | {key: value for key, value in row["summary"].items() if key != "num_too_long"}
            | {key: cost[key] for key in ("cpu_seconds", "flops")}
            | {"trained_on": self.recipe["stages"][row["stage"]]["data"]}
            for row in self._done("sft")
            for cost in [ledger.total(self.path / row["stage"] / "ledger.jsonl")]
        ]

    def _curves(self) -> list[Row]:
        curves = []
        for row in self._done("sft"):
            metrics = store.read_jsonl(self.path / row["stage"] / "metrics.jsonl")
            points = {m["step"]: m["loss"] for m in metrics}  # the last word on a step counts
            curves.append({"name": row["stage"], "points": sorted(points.items())})
        return curves

    def _lengths(self) -> list[Row]:
        """Completion tokens of what the first curation kept and dropped."""
        for row in self._done("curate"):
            dropped = self._dropped(row["stage"])
            kept: dict[bool, list[int]] = {True: [], False: []}
            for trace in self._traces_of(row["stage"]).values():
                kept[dropped[trace["id"]] is None].append(trace["completion_tokens"])
            return [
                {"name": "kept", "values": kept[True]},
                {"name": "dropped", "values": kept[False]},
            ]
        return []

    def _dropped(self, stage: str) -> dict[str, str | None]:
        decisions = store.read_table(self.path / stage / "decisions").to_pylist()
        return {row["trace_id"]: row["dropped"] for row in decisions}

    def _traces_of(self, stage: str) -> dict[str, Row]:
        place = self._inside(self.recipe["stages"][stage]["traces"])
        names = ["id", "problem_id", "text", "completion_tokens"]
        return {row["id"]: row for row in store.read_table(place, names).to_pylist()}

    def _inside(self, reference: str) -> Path:
        return self.path / reference[2:] if reference.startswith("./") else Path(reference)

    def _problems(self, reference: str) -> dict[str, Problem]:
        return {problem.id: problem for problem in store.read_problems(self._inside(reference))}

    def _examples(self) -> list[Row]:
        """A kept and a dropped trace of the same problem, a few domains and reasons."""
        for row in self._done("curate"):
            stage = row["stage"]
            problems = self._problems(self.recipe["stages"][stage]["problems"])
            dropped, traces = self._dropped(stage), self._traces_of(stage)
            good: dict[str, str] = {}
            for trace_id, reason in dropped.items():
                if reason is None:
                    good.setdefault(traces[trace_id]["problem_id"], trace_id)
            pairs, seen = [], Counter[tuple[str, str]]()
            for trace_id, reason in dropped.items():
                problem = problems[traces[trace_id]["problem_id"]]
                kind = (problem.domain, reason or "")
                if reason in (None, "duplicate") or problem.id not in good or seen[kind]:
                    continue
                seen[kind] += 1
                mine = good[problem.id]
                pairs.append(
                    {
                        "problem": problem.question,
                        "answer": problem.answer,
                        "good": {"text": traces[mine]["text"], "reason": "kept", "id": mine},
                        "bad": {"text": traces[trace_id]["text"], "reason": reason, "id": trace_id},
                    }
                )
            if pairs:
                return pairs[:NUM_SHOWN]
        return []

    def _answers(self) -> list[Row]:
        """The same held-out problems, one of each domain, answered greedily by every model."""
        compares = self._done("compare")
        if not compares:
            return []
        scores = self.recipe["stages"][compares[0]["stage"]]["scores"]
        by_model: dict[str, dict[str, Row]] = {}
        asked: dict[str, Problem] = {}
        for name, reference in scores.items():
            stage = reference[2:].partition("/")[0]
            if not store.parts(self.path / stage / "greedy"):
                return []
            rows = store.read_table(self.path / stage / "greedy").to_pylist()
            by_model[name] = {row["problem_id"]: row for row in rows}
            splits = self.recipe["stages"][stage]["problems"]
            asked = asked or self._problems(next(iter(splits.values())))
        firsts = {problem.domain: problem for problem in reversed(asked.values())}
        return [
            {
                "problem": problem.question,
                "gold": problem.answer,
                "by": [
                    {
                        "name": name,
                        "text": rows[problem.id]["text"],
                        "reason": _judged(problem, rows),
                    }
                    for name, rows in by_model.items()
                ],
            }
            for problem in list(firsts.values())[:NUM_SHOWN]
        ]


def _judged(problem: Problem, rows: dict[str, Row]) -> str:
    from limbeck.types import Trace
    from limbeck.verifiers.judging import judge

    return judge(problem, Trace(**rows[problem.id])).reason


def _writes(verb: str) -> dict[str, str]:
    import importlib

    return importlib.import_module(f"limbeck.stages.{verb}").WRITES


def _indent(text: str) -> str:
    return text.replace("\n", "\n         ")


def _visible(text: str) -> str:
    """Control characters spelled out: a model's text must not drive a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
