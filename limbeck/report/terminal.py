"""What a run came to, as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limbeck.report import sentences, svg

Row = Mapping[str, Any]
OF = {  # what the other shares are shares of
    "language": "language: per cent of the thinking's words that are in the question's language",
    "format": "format: per cent of answers that are well-formed",
}


def results_table(results: Sequence[Row], tests: Sequence[Row], width: int = 100) -> str:
    """Scores as aligned plain text, a row per name, a column per split and metric.

    Columns that do not fit into `width` characters follow in a further block; tests are sentences.
    """
    names = list(dict.fromkeys(row["name"] for row in results))
    columns = list(dict.fromkeys((row["split"], row["metric"]) for row in results))
    cells = {(row["name"], row["split"], row["metric"]): sentences.cell(row) for row in results}
    table = [["", "", *map(svg.visible, names)]]
    for split, metric in columns:
        head = [svg.visible(split), svg.visible(sentences.label(metric))]
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
    lines += [*_legend(results)]
    if unanswered := [told for name in names if (told := sentences.unanswered(results, name))]:
        lines += [
            "counted as wrong because there was no answer (per cent):",
            *map(_plain, unanswered),
        ]
    lines += [_plain(sentences.seeds(row)) for row in results if "seeds" in row]
    lines += [_plain(sentences.sentence(test)) for test in tests]
    return "\n".join(lines).strip("\n") + "\n"


def _legend(results: Sequence[Row]) -> Iterator[str]:
    """What the numbers are."""
    if any("unit" not in row for row in results):
        yield "per cent solved (95 % interval)"
    if any("seeds" in row for row in results):
        yield "several seeds of one training are pooled, and told one by one"
    if any(row.get("unit") == "nats" for row in results):
        yield "KL and NLL in nats per token of the gold answers: less is better"
    measured = {row["metric"] for row in results}
    yield from (told for metric, told in OF.items() if metric in measured)


def gain(row: Row) -> str:
    """What there was to gain on a split, and what of it was gained, in a line."""
    after = row.get("after", {})
    rates = [
        f"{sentences.label(name)} {100 * row[name]:.0f}"
        + (f" to {100 * after[name]:.0f} %" if name in after else " %")
        for name in row
        if sentences.SOLVING.fullmatch(name)
    ]
    return f"{row['split']} {', '.join(rates)}; there were {sentences.points(row['reach'])} to gain"


def _plain(text: str) -> str:
    return svg.visible(text).replace("`", "")
