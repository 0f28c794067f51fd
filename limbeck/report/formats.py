"""Numbers and texts as the page shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from markupsafe import Markup, escape

from limbeck.report import sentences, svg

SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
SIZES = {  # of units that are not counted in thousands
    "s": ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "MiB": ((1024, "GiB"), (1, "MiB")),
    "parameters": ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")),
    "": ((1, ""),),
}
LONGEST_TEXT = 6000  # characters shown of one generated text


def safe(value: object) -> object:
    """Every value on its way into the page: missing is nothing, text is made visible."""
    if value is None or isinstance(value, jinja2.Undefined):
        return ""
    return value if isinstance(value, Markup) else svg.visible(value)


def prose(text: object) -> Markup:
    """A sentence of ours with `names` set as code and intervals with a proper dash."""
    parts = re.split(r"`([^`\n]*)`", svg.visible(text))
    for index, part in enumerate(parts):
        part = part if index % 2 else re.sub(r"(?<=\d)-(?=\d)", "–", part)
        part = part if index % 2 else re.sub(r"(?<![\w.])-(?=\d)", "−", part)
        part = part if index % 2 else re.sub(r"(?<=\d) (?=%)", "\u00a0", part)  # never broken there
        part = part if index % 2 else re.sub(r"(?<=\d),(?=\d{3}\b)", "\u202f", part)
        part = part if index % 2 else re.sub(r"(?<=\bp) ([<=]) (?=\d)", "\u00a0\\1\u00a0", part)
        parts[index] = Markup("<code>%s</code>") % part if index % 2 else escape(part)
    return Markup("").join(parts)


def trace(text: object) -> Markup:
    """A model's text, its thinking in a quieter voice than its answer; cut where very long."""
    shown = svg.visible(str(text or "")[:LONGEST_TEXT])
    cut = len(str(text or "")) - LONGEST_TEXT
    thought, mark, answer = shown.rpartition("</think>")
    if not mark:
        thought, answer = (shown, "") if shown.lstrip().startswith("<think>") else ("", shown)
    tail = Markup('<i class="cut">… %s more characters</i>') % count(cut) if cut > 0 else Markup("")
    return Markup('<span class="thought">%s</span>%s%s') % (thought + mark, answer, tail)


def is_number(value: object) -> bool:
    """Whether it can be shown and drawn: neither text nor missing, nor NaN, nor infinite."""
    is_bool = isinstance(value, bool)
    return isinstance(value, (int, float)) and not is_bool and math.isfinite(value)


def count(value: Any) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if is_number(value) else "–"


def share(value: Any) -> str:
    return f"{100 * value:.1f} %" if is_number(value) else "–"


def percent(row: Any) -> str:
    """`61.2 % (57.0–65.1)` of a row, `1.612 (1.570–1.651)` in a unit; `61.2 %` of a share."""
    if is_number(row):
        return f"{100 * row:.1f} %"
    value = sentences.number(row, "value") + ("" if "unit" in row else " %")
    if row.get("low") is not None and row.get("high") is not None:
        to = " to " if row["low"] < 0 else "–"
        value += f" ({sentences.number(row, 'low')}{to}{sentences.number(row, 'high')})"
    if row.get("percentile") is not None:
        value += f", above {row['percentile']:.0f} % of contestants"
    return value


def seconds(value: Any) -> str:
    if not is_number(value):
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def duration(value: Any) -> str:
    """Seconds, or milliseconds where there is less than one."""
    return f"{1000 * value:.3g} ms" if is_number(value) and value < 1 else seconds(value)


def mib(value: Any) -> str:
    if not is_number(value):
        return "–"
    return f"{count(value)} MiB" if value >= 10 else f"{value:.2g} MiB"


def money(value: Any) -> str:
    """In the currency of the recipe's prices."""
    if not is_number(value):
        return "–"
    if 0 < value < 1e-3:
        return f"{1e6 * value:.3g} millionths"
    return f"{value:,.2f}".replace(",", "\u202f") if value >= 1 else f"{value:.2g}"


def si(value: Any, unit: str = "") -> str:
    if not is_number(value):
        return "–"
    for size, letter in SI:
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def digits(value: float) -> str:
    """In about three digits: 1 204, 12.5, 0.00460."""
    if abs(value) >= 100 or value == 0:
        return count(value)
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{places}f}"


def brief(value: float) -> str:
    """As short as a tick may be: 1 000, 20, 0.5."""
    return count(value) if value >= 100 else f"{value:.3g}"


def in_one_unit(
    values: Iterable[Any], unit: str, write: Callable[[float], str] = digits
) -> Callable[[Any], str]:
    """How to write numbers that stand in one column, or on one axis: in the unit of its middle."""
    logs = [math.log(value) for value in values if is_number(value) and value > 0]
    middle = math.exp(sum(logs) / len(logs)) if logs else 1.0
    sizes = SIZES.get(unit, (*((size, letter + unit) for size, letter in SI), (1, unit)))
    size, name = next((pair for pair in sizes if pair[0] <= middle), sizes[-1])
    return lambda value: f"{write(value / size)} {name}".strip() if is_number(value) else "–"
