"""Numbers and texts as the page shows them."""

from __future__ import annotations

import re
from typing import Any

import jinja2
from markupsafe import Markup, escape

from limbeck.report import plots, sentences

LONGEST_TEXT = 6000  # characters shown of one generated text


def safe(value: object) -> object:
    """Every value on its way into the page: missing is nothing, text is made visible."""
    if value is None or isinstance(value, jinja2.Undefined):
        return ""
    return value if isinstance(value, Markup) else plots.visible(value)


def prose(text: object) -> Markup:
    """A sentence of ours with `names` set as code and intervals with a proper dash."""
    parts = re.split(r"`([^`\n]*)`", plots.visible(text))
    for index, part in enumerate(parts):
        part = part if index % 2 else re.sub(r"(?<=\d)-(?=\d)", "–", part)
        part = part if index % 2 else re.sub(r"(?<![\w.])-(?=\d)", "−", part)
        part = part if index % 2 else re.sub(r"(?<=\d) (?=%)", "\u202f", part)  # never broken there
        parts[index] = Markup("<code>%s</code>") % part if index % 2 else escape(part)
    return Markup("").join(parts)


def trace(text: object) -> Markup:
    """A model's text, its thinking in a quieter voice than its answer; cut where very long."""
    shown = plots.visible(str(text or "")[:LONGEST_TEXT])
    cut = len(str(text or "")) - LONGEST_TEXT
    thought, mark, answer = shown.rpartition("</think>")
    if not mark:
        thought, answer = (shown, "") if shown.lstrip().startswith("<think>") else ("", shown)
    tail = Markup('<i class="cut">… %s more characters</i>') % count(cut) if cut > 0 else Markup("")
    return Markup('<span class="thought">%s</span>%s%s') % (thought + mark, answer, tail)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def count(value: Any) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if is_number(value) else "–"


def share(value: Any) -> str:
    return f"{100 * value:.1f} %" if is_number(value) else "–"


def percent(row: Any) -> str:
    """`61.2 % (57.0–65.1)` of a row, `1.612 (1.570–1.651)` in a unit; `61.2 %` of a share."""
    if is_number(row):
        return f"{100 * row:.1f} %"
    value = sentences.number(row, "value") + ("" if "unit" in row else " %")
    if row.get("low") is None or row.get("high") is None:
        return value
    to = " to " if row["low"] < 0 else "–"
    return f"{value} ({sentences.number(row, 'low')}{to}{sentences.number(row, 'high')})"


def seconds(value: Any) -> str:
    if not is_number(value):
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def si(value: Any, unit: str = "") -> str:
    if not is_number(value):
        return "–"
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()
