"""The report: plain rows in, one HTML page out. It loads nothing, runs nothing, believes no text.

Rows are dicts as `limbeck show --json` prints them. Scores, intervals and differences are shares
(0.61 is 61 %) unless the row has a `unit`, of which less is better; intervals are 95 %, a test's
difference is a minus b.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from limbeck.report import formats, pictures, plots, sentences
from limbeck.report.learning import learning_plots

Row = Mapping[str, Any]

INTRO = (
    "A teacher wrote out its reasoning on many problems. Every answer was checked against the known"
    " one, and a small model, the student, was trained on the solutions that held up: the recipe by"
    " which DeepSeek-R1 was distilled. This page says how well the student reasons now, what it"
    " learned from, and what that cost."
)
LEARNING_INTRO = (
    "A small model answered problems many times over. Every answer was checked by a rule, and what"
    " earned more than the model's other answers to the same question became likelier: the recipe"
    " by which DeepSeek-R1 learned to reason. This page says how well it reasons now, what there"
    " was to gain, how it learned, and what that cost."
)
DISTRIBUTION_INTRO = (
    "Small models, the students, learned to answer questions: some from the known answers alone,"
    " some from a teacher's whole distribution over the next token, which says of every word how"
    " likely it would have been. This page says how close each came to the teacher, how likely it"
    " finds the known answers, what it answers, and what that cost."
)
FEW = 0.2  # right answers of the best model, below which the page says how to read the rest
MANY = 7  # models that fit beside each other
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
    a cost_unit if it is not FLOPs, and seeds: [value] if several are pooled"""
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
    learning: Sequence[Row] = ()
    """name, curves: {number: [(step, value)]}, findings: [{what, evidence, way_out}], gain:
    [{split, pass_at_1, greedy, pass_at_k, reach[, after: {…}]}]: of reinforcement learning"""
    curves: Sequence[Row] = ()
    """name, points: [(step, loss)][, heldout: [(step, loss)]][, parts: {name: [(step, loss)]}]"""
    scales: Sequence[Row] = ()
    """name, step, part, loss, share: of a mixed loss's gradient"""
    distributions: Sequence[Row] = ()
    """name, teacher, tokens, bytes"""
    sizes: Sequence[Row] = ()
    """name, num_parameters, num_bytes, tokens_per_second, peak_memory_mib"""
    sweep: Sequence[Row] = ()
    """temperature, alpha, and a row of the results: what students of the same start came to"""
    lengths: Sequence[Row] = ()
    """name, values: completion tokens"""
    examples: Sequence[Row] = ()
    """problem, answer, good: {text, reason, id}, bad: {text, reason, id}"""
    answers: Sequence[Row] = ()
    """problem, gold, by: [{name, text, reason}]"""
    budgets: Sequence[Row] = ()
    """name, flops, flops_with_teacher, share_of_flops, share_of_flops_with_teacher, paid_tokens"""
    trials: Sequence[Row] = ()
    """stage, model, settings: {…}, metric, value, low, high, flops, chosen: what was chosen from"""
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
        "metric": sentences.label,
        "points": sentences.points,
        "p": sentences.probability,
        "gain": sentences.gain,
        "seeds": sentences.seeds,
    }
    sections = {
        "score_plots": pictures.score_plots(report),
        "family_plots": pictures.family_plots(report),
        "funnels": [pictures.funnel(row, MEANING) for row in report.funnel],
        "learning_plots": {row["name"]: learning_plots(row) for row in report.learning},
        "curve_plots": pictures.curve_plots(report),
        "sweep_plots": pictures.sweep_plots(report),
        "length_plot": pictures.length_plot(report),
    }
    page = environment.get_template("page.html.j2")
    return page.render(
        r=report,
        journey=_journey(report),
        series=pictures.series_of(report),
        sentences=[sentences.sentence(test) for test in report.tests],
        reasons=list(dict.fromkeys(w for row in report.verdict_reasons.values() for w in row)),
        published_columns=list(dict.fromkeys(key for row in report.published for key in row)),
        total=lambda key: _total(report.ledger, key),
        notes=[*report.notes, *_notes(report)],
        matrix=_matrix(report.results),
        meaning=MEANING,
        shapes=plots.SHAPES,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        **sections,
    )


def _matrix(results: Sequence[Row]) -> dict[str, Any]:
    """All scores side by side: a column for each model, or a row where there are many of them."""
    names = list(dict.fromkeys(row["name"] for row in results))
    ways = list(dict.fromkeys((row["split"], row["metric"]) for row in results))
    heads = {way: f"{way[0]} · {sentences.label(way[1])}" for way in ways}
    found = {(row["name"], row["split"], row["metric"]): formats.percent(row) for row in results}
    if len(names) < 2 or len(ways) < 2:
        return {}
    if len(names) > MANY:
        rows = [(name, [found.get((name, *way)) for way in ways]) for name in names]
        return {"columns": [heads[way] for way in ways], "rows": rows}
    rows = [(heads[way], [found.get((name, *way)) for name in names]) for way in ways]
    return {"columns": names, "rows": rows}


def _notes(report: Report) -> Iterator[str]:
    """What a reader has to know who looks at answers of models that are too small to give many."""
    solved = sentences.solved(report.results)
    best = max((row["value"] for row in solved), default=1.0)
    if best < FEW and len(solved) < len(report.results):
        yield (
            f"Models of this size answer few questions right, the best one {100 * best:.1f} %; what"
            " tells them apart is how close they are to the teacher (KL) and how likely they find"
            " the known answers (NLL), not how many answers they hit."
        )


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
    if sentences.shares(report.results):
        split, metric = sentences.main_split(sentences.shares(report.results))
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
