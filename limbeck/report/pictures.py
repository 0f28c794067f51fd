"""The pictures of a report, each with what stands beside it: rows in, inline SVG out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from limbeck.report import formats, plots, sentences
from limbeck.report.scatter import LONGEST, short

if TYPE_CHECKING:
    from limbeck.report.contents import Report, Row

PICTURED = ("nats", "rating")  # units whose metrics have a picture of their own


def series_of(report: Report) -> dict[str, int]:
    """A colour and a shape for each name, the student's (the first test's a) always the first."""
    first = [report.tests[0]["a"]] if report.tests else []
    rows = [*report.results, *report.families, *report.frontier]
    return {name: i for i, name in enumerate(dict.fromkeys([*first, *(r["name"] for r in rows)]))}


def score_plots(report: Report) -> list[dict[str, Any]]:
    """One picture per split and metric worth one: every model's score."""
    colours, found = series_of(report), []
    for split, metric in _pictured(report.results):
        rows = [r for r in report.results if (r["split"], r["metric"]) == (split, metric)]
        unit, label = rows[0].get("unit"), sentences.label(metric)
        guess = None if unit or metric == "f1" else _guess(report, split)
        lines = [
            plots.IntervalRow(
                _fitting(row["name"]), [_mark(row, colours)], formats.percent(row), guess
            )
            for row in rows
        ]
        desc = f"{label}: " + "; ".join(f"{r['name']} {sentences.cell(r)}" for r in rows)
        title = f"{label}, {split}" if unit else f"Share of {split} problems solved"
        svg = plots.interval_plot(title, desc, lines, sentences.DIGITS[unit] if unit else None)
        num_problems = max((row.get("num_problems") or 0 for row in rows), default=0)
        found.append(
            {"split": split, "metric": metric, "num_problems": num_problems, "guess": guess}
        )
        found[-1] |= {"svg": Markup(svg), "in_nats": unit == "nats"}
    return found


def _fitting(name: str) -> str:
    """A name that leaves room for its score on a phone; the tables have it whole."""
    return short(name) if len(name) > LONGEST else name


def _pictured(results: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Per split what is in nats, or a rating, then the main share, and F1 beside it."""
    for split in dict.fromkeys(row["split"] for row in results):
        here = [row for row in results if row["split"] == split]
        yield from dict.fromkeys((split, r["metric"]) for r in here if r.get("unit") in PICTURED)
        if shares := sentences.shares(here):
            yield sentences.main_split(shares)
            if "f1" in {row["metric"] for row in shares[1:]}:
                yield split, "f1"


def family_plots(report: Report) -> list[dict[str, Any]]:
    """One picture per split: every model's score in every family, for the first metric."""
    colours, found = series_of(report), []
    guesses = {(row["split"], row.get("domain")): row["share"] for row in report.guess}
    families = sentences.shares(report.families)
    for split in dict.fromkeys(row["split"] for row in families):
        here = [row for row in families if row["split"] == split]
        if len({row["domain"] for row in here}) == 1:
            continue  # the whole split, once more
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
    return plots.Mark(row["name"], value, low, high, colours[row["name"]])


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


def funnel(row: Row, meaning: Mapping[str, str]) -> dict[str, Any]:
    """As a picture: what each filter took away, in the order in which they were asked."""
    steps = row.get("funnel") or [{"reasons": row.get("dropped", {})}]
    drops = [pair for step in steps for pair in _by_size(step["reasons"])]
    rest = row["sampled"] - row["kept"] - sum(count for _, count in drops)
    drops += [("unaccounted", rest)] if rest > 0 else []
    words = [f"{formats.count(row[key])} {key}" for key in ("sampled", "kept")]
    words += [f"{formats.count(count)} {word}" for word, count in drops]
    title = f"{row['stage']}: what was kept and dropped"
    svg = plots.funnel(title, ", ".join(words), row["sampled"], drops, meaning)
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


def curve_plots(report: Report) -> list[dict[str, Any]]:
    colours, found = series_of(report), []
    for row in report.curves:
        lines = {"training": row.get("points") or [], "held-out (dashed)": row.get("heldout") or []}
        lines |= row.get("parts", {})
        last = f"{len(lines['training'])} points; the last training loss is " + (
            f"{lines['training'][-1][1]:.3g}" if lines["training"] else "unknown"
        )
        svg = plots.line_plot(f"Loss of {row['name']}", last, lines, colours.get(row["name"], 0))
        if svg:
            found.append({"name": row["name"], "svg": Markup(svg)})
    return found


def sweep_plots(report: Report) -> list[dict[str, Any]]:
    """One picture per metric: its value over temperature, a line for each alpha."""
    found = []
    temperatures = sorted({row["temperature"] for row in report.sweep})
    alphas = sorted({row["alpha"] for row in report.sweep})
    for metric in dict.fromkeys(row["metric"] for row in report.sweep):
        at = {
            (row["alpha"], row["temperature"]): plots.Mark(
                "", row["value"], row["low"], row["high"]
            )
            for row in report.sweep
            if row["metric"] == metric
        }
        lines = {
            f"alpha {alpha:g}": [at.get((alpha, temperature)) for temperature in temperatures]
            for alpha in alphas
        }
        label = sentences.label(metric)
        desc = "; ".join(
            f"alpha {alpha:g}, temperature {t:g}: {mark.value:.3f}"
            for (alpha, t), mark in at.items()
        )
        ticks = [f"T = {temperature:g}" for temperature in temperatures]
        svg = plots.grid_plot(f"{label} over temperature", desc, ticks, lines)
        if svg:
            found.append({"metric": label, "svg": Markup(svg), "names": list(lines)})
    return found


def length_plot(report: Report) -> Markup:
    groups = {row["name"]: row.get("values") or [] for row in report.lengths}
    desc = "Distribution of the number of tokens per text: " + ", ".join(groups)
    return Markup(plots.histogram("Tokens per text", desc, groups))
