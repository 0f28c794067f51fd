"""The report: plain rows in, one HTML page out. It loads nothing, runs nothing, believes no text.

Rows are dicts as `limbeck show --json` prints them. Scores, intervals and differences are shares
(0.61 is 61 %), intervals are 95 %, a test's difference is a minus b.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from limbeck.report import formats, plots, sentences

Row = Mapping[str, Any]

INTRO = (
    "A teacher wrote out its reasoning on many problems. Every answer was checked against the known"
    " one, and a small model, the student, was trained on the solutions that held up: the recipe by"
    " which DeepSeek-R1 was distilled. This page says how well the student reasons now, what it"
    " learned from, and what that cost."
)
MEANING = {  # of a reason, in the few words that fit a phone
    "correct": "the answer matches the known one",
    "wrong": "another answer than the known one",
    "unparsed": "no answer could be found in it",
    "truncated": "ran out of tokens before answering",
    "timeout": "checking it took too long",
    "bad_gold": "the known answer cannot be checked",
    "error": "could not be generated or judged",
    "malformed": "thinking and answer not told apart",
    "duplicate": "the same text was kept already",
    "near_duplicate": "almost the same text was kept already",
    "contaminated": "shares a run of words with an evaluation",
    "mixed_language": "thinks in several languages",
    "repetitive": "goes round in circles",
    "long_paragraph": "a wall of text",
    "code_block": "program code in its thinking",
    "broken_markup": "formulas that are never closed",
    "unfaithful": "its answer does not follow from its thinking",
    "too_short": "fewer tokens than wanted",
    "too_long": "more tokens than wanted",
    "longer": "its problem has shorter ones",
    "surplus": "its problem has enough others",
    "too_easy": "its problem is always solved",
    "too_hard": "its problem is never solved",
    "disagrees": "another answer than most give",
    "no_majority": "its problem's samples agree on nothing",
    "unaccounted": "dropped without a stated reason",
}


@dataclass(frozen=True)
class Report:
    """Everything the page may show; what is empty is left out."""

    name: str
    title: str
    command: str = ""
    started: object = ""
    finished: object = ""
    headline: str = ""
    intro: str = INTRO
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Row = field(default_factory=dict)
    """cpu, cores, threads, gemm_gflops, cpu_seconds, wall_seconds"""
    results: Sequence[Row] = ()
    """name, split, metric, value, low, high, num_problems, num_samples, tokens_per_answer, cost,
    and a cost_unit if it is not FLOPs"""
    tests: Sequence[Row] = ()
    """a, b, split, difference, low, high, p, verdict[, note]; the first is the headline's, its a
    the student"""
    families: Sequence[Row] = ()
    """name, split, domain, metric, value, low, high, num_problems"""
    guess: Sequence[Row] = ()
    """split, domain, share: the score of always guessing the commonest answer"""
    models: Sequence[Row] = ()
    """name, num_parameters, loss_tokens, prompt_tokens, num_examples, num_steps, cpu_seconds,
    flops, trained_on"""
    funnel: Sequence[Row] = ()
    """stage, sampled, kept, dropped: {reason: count}; the student's own comes first"""
    verdict_reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    curves: Sequence[Row] = ()
    """name, points: [(step, loss)][, heldout: [(step, loss)]]"""
    lengths: Sequence[Row] = ()
    """name, values: completion tokens"""
    examples: Sequence[Row] = ()
    """problem, answer, good: {text, reason, id}, bad: {text, reason, id}"""
    answers: Sequence[Row] = ()
    """problem, gold, by: [{name, text, reason}]"""
    ledger: Sequence[Row] = ()
    """stage, verb, wall_seconds, cpu_seconds, tokens_in, tokens_out, flops, peak_memory_mib"""
    published: Sequence[Row] = ()
    notes: Sequence[str] = ()
    recipe_text: str = ""


def render(report: Report) -> str:
    """The whole page. Every value is made visible and escaped on its way out, in one place."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=formats.safe,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": formats.count,
        "seconds": formats.seconds,
        "si": formats.si,
        "prose": formats.prose,
        "share": formats.share,
        "percent": formats.percent,
        "trace": formats.trace,
        "points": sentences.points,
        "p": sentences.probability,
    }
    sections = {
        "score_plots": _score_plots(report),
        "family_plots": _family_plots(report),
        "funnels": [_funnel(row) for row in report.funnel],
        "curve_plots": _curve_plots(report),
        "length_plot": _length_plot(report),
    }
    page = environment.get_template("page.html.j2")
    return page.render(
        r=report,
        journey=_journey(report),
        series=_series(report),
        sentences=[sentences.sentence(test) for test in report.tests],
        reasons=list(dict.fromkeys(w for row in report.verdict_reasons.values() for w in row)),
        published_columns=list(dict.fromkeys(key for row in report.published for key in row)),
        total=lambda key: _total(report.ledger, key),
        metrics=sentences.METRICS,
        meaning=MEANING,
        shapes=plots.SHAPES,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        **sections,
    )


def _series(report: Report) -> dict[str, int]:
    """A colour and a shape for each name, the student's (the first test's a) always the first."""
    first = [report.tests[0]["a"]] if report.tests else []
    rows = [*report.results, *report.families]
    return {name: i for i, name in enumerate(dict.fromkeys([*first, *(r["name"] for r in rows)]))}


def _score_plots(report: Report) -> list[dict[str, Any]]:
    """One picture per split: every model's score."""
    colours, found = _series(report), []
    for split in dict.fromkeys(row["split"] for row in report.results):
        _, metric = sentences.main_split([row for row in report.results if row["split"] == split])
        rows = [r for r in report.results if (r["split"], r["metric"]) == (split, metric)]
        guess = _guess(report, split)
        lines = [
            plots.IntervalRow(row["name"], [_mark(row, colours)], formats.percent(row), guess)
            for row in rows
        ]
        desc = f"{sentences.METRICS.get(metric, metric)}: " + "; ".join(
            f"{r['name']} {sentences.cell(r)}" for r in rows
        )
        svg = plots.interval_plot(f"Share of {split} problems solved", desc, lines)
        num_problems = max((row.get("num_problems") or 0 for row in rows), default=0)
        found.append(
            {"split": split, "metric": metric, "num_problems": num_problems, "guess": guess}
        )
        found[-1]["svg"] = Markup(svg)
    return found


def _family_plots(report: Report) -> list[dict[str, Any]]:
    """One picture per split: every model's score in every family, for the first metric."""
    colours, found = _series(report), []
    guesses = {(row["split"], row.get("domain")): row["share"] for row in report.guess}
    for split in dict.fromkeys(row["split"] for row in report.families):
        here = [row for row in report.families if row["split"] == split]
        here = [row for row in here if row["metric"] == sentences.main_split(here)[1]]
        lines = []
        for domain in dict.fromkeys(row["domain"] for row in here):
            rows = [row for row in here if row["domain"] == domain]
            note = f"{formats.count(rows[0].get('num_problems'))} problems"
            marks = [_mark(row, colours) for row in rows]
            lines.append(plots.IntervalRow(domain, marks, note, guesses.get((split, domain))))
        desc = "Each model's share solved in each family, also in the table below."
        svg = plots.interval_plot(f"Share solved by family, {split}", desc, lines)
        found.append({"split": split, "svg": Markup(svg), "metric": here[0]["metric"]})
    return found


def _mark(row: Row, colours: Mapping[str, int]) -> plots.Mark:
    value = row["value"]
    low, high = (value if row.get(end) is None else row[end] for end in ("low", "high"))
    return plots.Mark(
        row["name"], value, low, high, min(colours[row["name"]], len(plots.SHAPES) - 1)
    )


def _guess(report: Report, split: str) -> float | None:
    """What guessing scores on a split: its own row, or the families' mean by number of problems."""
    here = [row for row in report.guess if row["split"] == split]
    whole = [row["share"] for row in here if row.get("domain") in (None, "", "all")]
    if whole or not here:
        return float(whole[0]) if whole else None
    sizes = {
        r["domain"]: r.get("num_problems") or 1 for r in report.families if r["split"] == split
    }
    weights = [sizes.get(row["domain"], 0 if sizes else 1) for row in here]
    weighted = sum(row["share"] * weight for row, weight in zip(here, weights, strict=True))
    return weighted / sum(weights) if sum(weights) else None


def _funnel(row: Row) -> dict[str, Any]:
    """As a picture: what each filter took away, in the order in which they were asked."""
    steps = row.get("funnel") or [{"reasons": row.get("dropped", {})}]
    drops = [pair for step in steps for pair in _by_size(step["reasons"])]
    rest = row["sampled"] - row["kept"] - sum(count for _, count in drops)
    drops += [("unaccounted", rest)] if rest > 0 else []
    words = [f"{row['sampled']:,} sampled", f"{row['kept']:,} kept"]
    words += [f"{count:,} {word}" for word, count in drops]
    title = f"{row['stage']}: what was kept and dropped"
    svg = plots.funnel(title, ", ".join(words), row["sampled"], drops, MEANING)
    return {
        "stage": row["stage"],
        "svg": Markup(svg),
        "share": row["kept"] / max(row["sampled"], 1),
        "domains": [
            {"name": name or "none", "main": _by_size(found["dropped"])[:3], **found}
            for name, found in row.get("by_domain", {}).items()
        ],
    }


def _by_size(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What there is any of, most first."""
    return sorted(((w, n) for w, n in counts.items() if n), key=lambda pair: -pair[1])


def _curve_plots(report: Report) -> list[dict[str, Any]]:
    colours, found = _series(report), []
    for row in report.curves:
        lines = {"training": row.get("points") or [], "held-out (dashed)": row.get("heldout") or []}
        series = min(colours.get(row["name"], 0), len(plots.SHAPES) - 1)
        last = f"{len(lines['training'])} points; the last training loss is " + (
            f"{lines['training'][-1][1]:.3g}" if lines["training"] else "unknown"
        )
        svg = plots.line_plot(f"Loss of {row['name']}", last, lines, series)
        if svg:
            found.append({"name": row["name"], "svg": Markup(svg)})
    return found


def _length_plot(report: Report) -> Markup:
    groups = {row["name"]: row.get("values") or [] for row in report.lengths}
    desc = "Distribution of the number of tokens per text: " + ", ".join(groups)
    return Markup(plots.histogram("Tokens per text", desc, groups))


def _journey(report: Report) -> list[tuple[str, str]]:
    """The run in at most five figures, each with what it counts."""
    steps: list[tuple[str, str]] = []
    if report.funnel:
        funnel = report.funnel[0]
        steps.append((formats.count(funnel["sampled"]), "solutions written by the teacher"))
        steps.append((formats.count(funnel["kept"]), "of them kept: right, readable and new"))
    student = report.tests[0]["a"] if report.tests else None
    model = next((row for row in report.models if row["name"] == student), None)
    if model and model.get("num_parameters"):
        tokens = (
            f", trained on {formats.si(model.get('loss_tokens'))} tokens"
            if model.get("loss_tokens")
            else ""
        )
        steps.append((formats.si(model["num_parameters"]), f"parameters in the student{tokens}"))
    if report.results:
        split, metric = sentences.main_split(report.results)
        rows = [r for r in report.results if (r["split"], r["metric"]) == (split, metric)]
        row = next((row for row in rows if row["name"] == student), None)
        if row:
            asked = "held-out problems" if sentences.is_heldout(split) else f"{split} problems"
            steps.append((f"{100 * row['value']:.0f} %", f"of {asked} solved by it"))
    if report.machine.get("cpu_seconds"):
        cores = report.machine.get("cores")
        where = f" on {cores} core{'' if cores == 1 else 's'}" if cores else ""
        steps.append(
            (formats.seconds(report.machine["cpu_seconds"]), f"of processor time{where}, in all")
        )
    return steps


def _total(rows: Iterable[Row], key: str) -> float | None:
    values = [row[key] for row in rows if formats.is_number(row.get(key))]
    return sum(values) if values else None
