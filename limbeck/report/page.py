"""The report: plain rows in, one HTML page out. It loads nothing, runs nothing, believes no text.

Rows are dicts as `limbeck show --json` prints them. Scores, intervals and differences are shares
(0.61 is 61 %), intervals are 95 %, a test's difference is a minus b.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from limbeck.report import plots

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
    "contaminated": "too close to a held-out problem",
    "unaccounted": "dropped without a stated reason",
}
METRICS = {"pass_at_1": "pass@1", "greedy": "greedy"}
LONGEST_TEXT = 6000  # characters shown of one generated text


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
        finalize=_safe,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "seconds": _seconds, "si": _si, "prose": _prose}
    environment.filters |= {
        "share": _share,
        "percent": _percent,
        "trace": _trace,
        "points": _points,
        "p": _p,
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
        sentences=[_sentence(test) for test in report.tests],
        reasons=list(dict.fromkeys(w for row in report.verdict_reasons.values() for w in row)),
        published_columns=list(dict.fromkeys(key for row in report.published for key in row)),
        total=lambda key: _total(report.ledger, key),
        metrics=METRICS,
        meaning=MEANING,
        shapes=plots.SHAPES,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        **sections,
    )


def headline(results: Sequence[Row], tests: Sequence[Row]) -> str:
    """The run in one sentence, which claims a difference only where the first test found one."""
    if not results:
        return "Nothing has been evaluated yet."
    split, metric = _main(results)
    scores = {
        row["name"]: row for row in results if (row["split"], row["metric"]) == (split, metric)
    }
    test = next((t for t in tests if t["split"] == split and {t["a"], t["b"]} <= set(scores)), None)
    names = [test["a"], test["b"]] if test else list(scores)[:3]
    asked = "held-out problems" if _heldout(split) else f"`{split}` problems"
    solved = [f"`{name}` {_score(scores[name])}" for name in names]
    solved[0] = f"`{names[0]}` solves {_score(scores[names[0]], f' of {asked}')}"
    sentence = ", ".join(solved)
    if not test:
        more = "; no paired test has compared them" if len(names) > 1 else ""
        return f"{sentence}{more}."
    sentence += f" {test['note']}" if test.get("note") else ""
    size, chance = _points(abs(test["difference"])), _p(test.get("p"))
    if _clear(test):
        worse = "" if test["difference"] > 0 else f" against `{test['a']}`"
        aside = f" ({chance})" if chance else ""
        return f"{sentence}: the difference of {size}{worse} is clear{aside}."
    return f"{sentence}: the difference of {size} cannot be told from chance ({_range(test)})."


def results_table(results: Sequence[Row], tests: Sequence[Row], width: int = 100) -> str:
    """Scores in per cent as aligned plain text, a row per name, a column per split and metric.

    Columns that do not fit into `width` characters follow in a further block; tests are sentences.
    """
    names = list(dict.fromkeys(row["name"] for row in results))
    columns = list(dict.fromkeys((row["split"], row["metric"]) for row in results))
    cells = {(row["name"], row["split"], row["metric"]): _cell(row) for row in results}
    table = [["", "", *map(plots.visible, names)]]
    for split, metric in columns:
        head = [plots.visible(split), METRICS.get(metric, plots.visible(metric))]
        table.append([*head, *(cells.get((name, split, metric), "    -") for name in names)])
    widths = [max(map(len, column)) for column in table]
    blocks: list[list[int]] = []
    for index in range(1, len(table)):
        used = widths[0] + sum(widths[i] + 3 for i in blocks[-1]) if blocks else width
        if used + widths[index] + 3 > width:
            blocks.append([])
        blocks[-1].append(index)
    lines = []
    for block in blocks:
        for line in zip(*(table[i] for i in (0, *block)), strict=True):
            padded = (cell.ljust(widths[i]) for cell, i in zip(line, (0, *block), strict=True))
            lines.append("   ".join(padded).rstrip())
        lines.append("")
    if results:
        lines.append("per cent solved (95 % interval)")
    lines += [plots.visible(_sentence(test)).replace("`", "") for test in tests]
    return "\n".join(lines).strip("\n") + "\n"


def _cell(row: Row) -> str:
    if row.get("low") is None or row.get("high") is None:
        return f"{100 * row['value']:5.1f}"
    return f"{100 * row['value']:5.1f}  ({100 * row['low']:.1f}-{100 * row['high']:.1f})"


def _main(results: Sequence[Row]) -> tuple[str, str]:
    """The split and metric that stand for the run: the first split, by pass@1 where it has it."""
    split = results[0]["split"]
    metrics = [row["metric"] for row in results if row["split"] == split]
    return split, "pass_at_1" if "pass_at_1" in metrics else metrics[0]


def _heldout(split: str) -> bool:
    return split.replace("_", "").replace("-", "") == "heldout"


def _score(row: Row, of: str = "") -> str:
    if row.get("low") is None or row.get("high") is None:
        return f"{100 * row['value']:.0f} %{of}"
    return f"{100 * row['value']:.0f} %{of} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def _clear(test: Row) -> bool:
    """Whether a test tells its two apart: by its interval, its p and its own verdict, all three."""
    doubt = str(test.get("verdict") or "").lower().startswith(("un", "in", "no", "same", "tie"))
    apart = test["low"] > 0 or test["high"] < 0
    return apart and not doubt and (test.get("p") is None or test["p"] < 0.05)


def _sentence(test: Row) -> str:
    a, b, where = f"`{test['a']}`", f"`{test['b']}`", f"on {test['split']}"
    if not _clear(test):
        return f"{a} and {b} cannot be told apart {where} (difference {_range(test)})."
    verb = "solves more than" if test["difference"] > 0 else "solves less than"
    return f"{a} {verb} {b} {where}, by {_points(abs(test['difference']))} ({_range(test)})."


def _range(test: Row) -> str:
    chance = _p(test.get("p"))
    return f"{100 * test['low']:+.1f} to {100 * test['high']:+.1f}" + (
        f", {chance}" if chance else ""
    )


def _points(share: Any) -> str:
    points = f"{100 * share:.0f}" if abs(share) >= 0.0995 else f"{100 * share:.1f}"
    return f"{points} point{'' if points in ('1', '1.0') else 's'}"


def _p(p: Any) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _series(report: Report) -> dict[str, int]:
    """A colour and a shape for each name, the student's (the first test's a) always the first."""
    first = [report.tests[0]["a"]] if report.tests else []
    rows = [*report.results, *report.families]
    return {name: i for i, name in enumerate(dict.fromkeys([*first, *(r["name"] for r in rows)]))}


def _score_plots(report: Report) -> list[dict[str, Any]]:
    """One picture per split: every model's score."""
    colours, found = _series(report), []
    for split in dict.fromkeys(row["split"] for row in report.results):
        _, metric = _main([row for row in report.results if row["split"] == split])
        rows = [r for r in report.results if (r["split"], r["metric"]) == (split, metric)]
        guess = _guess(report, split)
        lines = [
            plots.IntervalRow(row["name"], [_mark(row, colours)], _percent(row), guess)
            for row in rows
        ]
        desc = f"{METRICS.get(metric, metric)}: " + "; ".join(
            f"{r['name']} {_cell(r)}" for r in rows
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
        here = [row for row in here if row["metric"] == _main(here)[1]]
        lines = []
        for domain in dict.fromkeys(row["domain"] for row in here):
            rows = [row for row in here if row["domain"] == domain]
            note = f"{_count(rows[0].get('num_problems'))} problems"
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
    drops = {word: count for word, count in row.get("dropped", {}).items() if count}
    rest = row["sampled"] - row["kept"] - sum(drops.values())
    drops |= {"unaccounted": rest} if rest > 0 else {}
    words = [f"{row['sampled']:,} sampled", f"{row['kept']:,} kept"]
    words += [f"{count:,} {word}" for word, count in drops.items()]
    title = f"{row['stage']}: what was kept and dropped"
    svg = plots.funnel(title, ", ".join(words), row["sampled"], drops, MEANING)
    return {
        "stage": row["stage"],
        "svg": Markup(svg),
        "share": row["kept"] / max(row["sampled"], 1),
    }


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
        steps.append((_count(funnel["sampled"]), "solutions written by the teacher"))
        steps.append((_count(funnel["kept"]), "of them kept: right, readable and new"))
    student = report.tests[0]["a"] if report.tests else None
    model = next((row for row in report.models if row["name"] == student), None)
    if model and model.get("num_parameters"):
        tokens = (
            f", trained on {_si(model.get('loss_tokens'))} tokens"
            if model.get("loss_tokens")
            else ""
        )
        steps.append((_si(model["num_parameters"]), f"parameters in the student{tokens}"))
    if report.results:
        split, metric = _main(report.results)
        rows = [r for r in report.results if (r["split"], r["metric"]) == (split, metric)]
        row = next((row for row in rows if row["name"] == student), None)
        if row:
            asked = "held-out problems" if _heldout(split) else f"{split} problems"
            steps.append((f"{100 * row['value']:.0f} %", f"of {asked} solved by it"))
    if report.machine.get("cpu_seconds"):
        cores = report.machine.get("cores")
        where = f" on {cores} core{'' if cores == 1 else 's'}" if cores else ""
        steps.append((_seconds(report.machine["cpu_seconds"]), f"of processor time{where}, in all"))
    return steps


def _safe(value: object) -> object:
    """Every value on its way into the page: missing is nothing, text is made visible."""
    if value is None or isinstance(value, jinja2.Undefined):
        return ""
    return value if isinstance(value, Markup) else plots.visible(value)


def _prose(text: object) -> Markup:
    """A sentence of ours with `names` set as code and intervals with a proper dash."""
    parts = re.split(r"`([^`\n]*)`", plots.visible(text))
    for index, part in enumerate(parts):
        part = part if index % 2 else re.sub(r"(?<=\d)-(?=\d)", "–", part)
        part = part if index % 2 else re.sub(r"(?<![\w.])-(?=\d)", "−", part)
        parts[index] = Markup("<code>%s</code>") % part if index % 2 else escape(part)
    return Markup("").join(parts)


def _trace(text: object) -> Markup:
    """A model's text, its thinking in a quieter voice than its answer; cut where very long."""
    shown = plots.visible(str(text or "")[:LONGEST_TEXT])
    cut = len(str(text or "")) - LONGEST_TEXT
    thought, mark, answer = shown.rpartition("</think>")
    if not mark:
        thought, answer = (shown, "") if shown.lstrip().startswith("<think>") else ("", shown)
    tail = (
        Markup('<i class="cut">… %s more characters</i>') % _count(cut) if cut > 0 else Markup("")
    )
    return Markup('<span class="thought">%s</span>%s%s') % (thought + mark, answer, tail)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count(value: Any) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if _is_number(value) else "–"


def _share(value: Any) -> str:
    return f"{100 * value:.1f} %" if _is_number(value) else "–"


def _percent(row: Any) -> str:
    """`61.2 % (57.0–65.1)` of a row, or `61.2 %` of a share."""
    if _is_number(row):
        return f"{100 * row:.1f} %"
    if row.get("low") is None or row.get("high") is None:
        return f"{100 * row['value']:.1f} %"
    return f"{100 * row['value']:.1f} % ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


def _seconds(value: Any) -> str:
    if not _is_number(value):
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _si(value: Any, unit: str = "") -> str:
    if not _is_number(value):
        return "–"
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def _total(rows: Iterable[Row], key: str) -> float | None:
    values = [row[key] for row in rows if _is_number(row.get(key))]
    return sum(values) if values else None
