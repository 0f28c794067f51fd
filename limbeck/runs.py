"""A run folder, read back: its stages, results and cost, one trace's story, the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from limbeck import ledger, progress, store, tables
from limbeck.errors import UserError
from limbeck.runner import read_description

Row = dict[str, Any]


class Run:
    """Reads what a run wrote; changes nothing but the report."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "recipe.json").exists():
            raise UserError(str(path), "is not a run folder", "give one that limbeck run made")
        self.recipe = read_description(self.path)

    def stages(self) -> list[Row]:
        """Every stage with its state and, once it is finished, what it says of itself."""
        rows = []
        for name, entry in self.recipe["stages"].items():
            manifest = self.path / name / "stage.json"
            begun = (self.path / name / "started.json").exists()
            row = {"stage": name, "verb": entry["stage"], "state": "begun" if begun else "new"}
            if manifest.exists():
                done = store.read_sealed(manifest)
                row |= {"state": "done", "finished": done["finished"], "summary": done["summary"]}
            rows.append(row)
        return rows

    def summary(self) -> Row:
        """What `limbeck show --json` prints."""
        compared = self.compared()
        return {
            "name": self.recipe["name"],
            "stages": self.stages(),
            "results": compared["results"],
            "tests": compared["tests"],
            "families": compared["families"],
            "budgets": compared["budgets"],
            "trials": self.trials(),
            "learning": self.learning(),
            "ledger": self.ledger(),
            "costs": self.costs(),
            "frontier": self.frontier(),
            "gates": self.gates(),
            "ratios": self.ratios(),
            "forgetting": compared["forgetting"],
            "published": compared["published"],
        }

    def results(self) -> list[Row]:
        """The results table: a row per model, split and metric."""
        return self.compared()["results"]

    def learning(self) -> list[Row]:
        """Of each reinforcement learning its curves, findings and what there was to gain."""
        from limbeck.reporting import reinforcement

        return reinforcement.learning(self)

    def trials(self) -> list[Row]:
        """Every trial of the choices between trainings, the chosen ones among them."""
        from limbeck.reporting import training

        return training.trials(self)

    def table(self, name: str) -> pa.Table:
        """`run.table("sample/traces")` as Arrow; `.to_pandas()` it if you like."""
        return tables.read_table(self.path / name)

    def ledger(self) -> list[Row]:
        """What each stage cost, all its sittings together."""
        return [
            {"stage": row["stage"], "verb": row["verb"]}
            | ledger.total(self.path / row["stage"] / "ledger.jsonl")
            for row in self.stages()
            if row["state"] != "new"
        ]

    def costs(self) -> dict[str, list[Row]]:
        """What an accepted trace, a point of accuracy and a right answer have cost."""
        from limbeck.reporting import costs

        return costs.costs(self)

    def frontier(self) -> list[Row]:
        """How often each model is right, beside its size, memory, latency and tokens."""
        from limbeck.reporting import frontier

        return frontier.frontier(self)

    def gates(self) -> list[Row]:
        """Every trial of the gates between models that were made smaller."""
        from limbeck.reporting import compression

        return compression.gates(self)

    def ratios(self) -> list[Row]:
        """How many times as fast one engine writes as another, of the pairs that were compared."""
        from limbeck.reporting import frontier

        return frontier.ratios(self)

    def compared(self) -> dict[str, list[Row]]:
        """The tables of the compare stages; without one, those of the evaluations."""
        kinds = ("results", "families", "tests", "forgetting", "published", "budgets")
        found: dict[str, list[Row]] = {kind: [] for kind in kinds}
        for row in self.done("compare"):
            place = self.path / row["stage"] / "results" / "results.json"
            store.verify(place)
            for key, rows in store.read_json(place).items():
                found[key] += rows
        if not found["results"]:
            for row in self.done("evaluate"):
                results = row["summary"]["results"]
                found["results"] += [{"name": row["stage"], **result} for result in results]
        return found

    def done(self, verb: str) -> list[Row]:
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
        problems = list(self._rows("problems", "id", trace["problem_id"]))
        # The same problem may lie in several tables: the one that the trace's stage was asked from.
        asked = str(self.recipe["stages"].get(place.partition("/")[0], {}).get("problems", ""))
        problem = next((p for p in problems if p[0] in asked), next(iter(problems), None))
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
        import pyarrow.compute as pc

        for row in self.stages():
            for output, made in _writes(row["verb"]).items():
                folder = self.path / row["stage"] / output
                if made == kind and row["state"] == "done" and tables.parts(folder):
                    table = tables.read_table(folder)
                    match = pc.starts_with if prefix else pc.equal
                    for hit in table.filter(match(table[column], value)).to_pylist():
                        yield f"{row['stage']}/{output}", hit

    # -- words and pictures ---------------------------------------------------------------------

    def text(self) -> str:
        """The run for a terminal: stages, results, cost."""
        lines = [f"{self.recipe['name']}  {self.path}", ""]
        for row in self.stages():
            told = _in_words(row.get("summary", {}))
            lines.append(f"{row['stage']:<20} {row['verb']:<9} {row['state']:<6} {told}".rstrip())
        lines += [
            "",
            self.results_text(),
            *self._learning_lines(),
            "",
            *self._cost_lines(),
        ]
        return progress.visible("\n".join(lines))

    def _cost_lines(self) -> Iterator[str]:
        """What each stage cost, and what units of what came of them did."""
        from limbeck.reporting import costs

        yield f"{'cost':<20} {'CPU s':>9} {'tokens':>12} {'FLOPs':>9} {'money':>9}".rstrip()
        rows = self.ledger()
        for row in [*rows, {**ledger.summed(rows), "stage": "in all"}]:
            tokens = row["tokens_in"] + row["tokens_out"]
            flops = f"{row['flops']:.1e}" if row["flops"] else ""  # of servers nobody knows them
            cost = f"{row['cpu_seconds']:>9.1f} {tokens:>12,.0f} {flops:>9}"
            money = "" if row["money"] is None else f"{costs.amount(row['money'], 'money'):>9}"
            yield f"{row['stage']:<20} {cost} {money}".rstrip()
        yield from ("", *costs.in_words(self.costs()))

    def results_text(self) -> str:
        """The results table and what the paired tests say."""
        from limbeck.report import results_table

        compared = self.compared()
        return results_table(compared["results"], compared["tests"]) if compared["results"] else ""

    def _learning_lines(self) -> Iterator[str]:
        """What there was to gain by reinforcement learning, and what went wrong."""
        from limbeck.report import gain

        for row in self.learning():
            yield from (f"{row['name']}: {gain(split)}" for split in row["gain"])
            for finding in row["findings"]:
                what, evidence, way_out = finding.values()
                yield f"{row['name']}: {what} ({evidence}); {way_out}"

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
        return progress.visible("\n".join(lines))

    def write_report(self) -> Path:
        """Writes `report.html`, whole or not at all."""
        from limbeck.reporting import write_report

        return write_report(self)


def _writes(verb: str) -> dict[str, str]:
    import importlib

    return importlib.import_module(f"limbeck.stages.{verb}").WRITES


def _indent(text: str) -> str:
    return text.replace("\n", "\n         ")


def _in_words(summary: Row) -> str:
    """What a stage says of itself, as far as it fits in a line: `show --json` has all of it."""
    accounts = summary.get("accounts", {})
    told = [f"{accounts['ok']:,} of {accounts['inputs']:,}"] if accounts else []
    told += [f"{accounts[end]:,} {end}" for end in ("rejected", "failed") if accounts.get(end)]
    for name, value in summary.items():
        if isinstance(value, str) and len(value) < 40:
            told.append(f"{name.replace('_', ' ')} {value}")
        elif isinstance(value, int) and value:
            told.append(f"{value:,} {name.removeprefix('num_').replace('_', ' ')}")
    return ", ".join(told)
