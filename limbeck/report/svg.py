"""What pictures are made of: lines, marks and labels as SVG, whose text cannot act.

Horizontal places are percentages and type is never scaled, so one picture fits a phone and a desk.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from html import escape

SHAPES = (  # circle, square, triangle, diamond, cross, plus
    "M0,-5A5,5 0 1 1 0,5A5,5 0 1 1 0,-5Z",
    "M-4.5,-4.5h9v9h-9Z",
    "M0,-6L5.8,4.6H-5.8Z",
    "M0,-6.2L6.2,0L0,6.2L-6.2,0Z",
    "M-4.5,-6L0,-1.5L4.5,-6L6,-4.5L1.5,0L6,4.5L4.5,6L0,1.5L-4.5,6L-6,4.5L-1.5,0L-6,-4.5Z",
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4Z",
)
# By how many shapes each further round of colours is turned, every other round being hollow: of 36
# series no two look alike, and of 24 those that share a shape have colours that nobody confuses.
TURNS = (0, 1, 3, 4, 2, 5)


def visible(text: object) -> str:
    """Text that cannot act: control, bidi and invisible characters become signs, `␛`, `⟨U+202E⟩`.

    What it returns is legal in XML. Newlines, tabs, spaces of all widths and joiners stay.
    """
    text = str(text).replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _sign(char) for char in text)


def _sign(char: str) -> str:
    code = ord(char)
    if char in "\n\t\u200c\u200d" or unicodedata.category(char) == "Zs":
        return char
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def compact(value: float) -> str:
    """A number in at most three digits: 950, 12k, 3.4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that enclose `low` and `high`."""
    if not high > low:
        high = low + (abs(low) or 1)
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * m for m in (1, 2, 2.5, 5, 10, 20) if (high - low) / (power * m) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 10 - math.floor(math.log10(step))
    return [round(step * i, digits) for i in range(first, last + 1)]


def anchor(share: float) -> str:
    """On which side of its place a label stands, so that it does not leave the picture."""
    return "start" if share <= 0 else "end" if share > 0.97 else "middle"


def clean(text: object) -> str:
    """Text that is made visible and escaped."""
    return escape(visible(text))


def text(
    x: float,
    y: float,
    words: str,
    style: str,
    align: str = "start",
    *,
    extra: str = "",
    shift: int = 0,
) -> str:
    """A label at x per cent, moved by `shift` pixels; `extra` follows in a quieter voice."""
    more = f'<tspan class="quiet" dx="8">{clean(extra)}</tspan>' if extra else ""
    return (
        f'<text x="{x:.2f}%" y="{y:.0f}" dx="{shift}" class="{style}" text-anchor="{align}">'
        f"{clean(words)}{more}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return (
        f'<line x1="{100 * x1:.2f}%" x2="{100 * x2:.2f}%" y1="{y1:.1f}" y2="{y2:.1f}"'
        f' class="{style}"/>'
    )


def bar(x: float, y: float, width: float, height: float, style: str) -> str:
    return (
        f'<rect x="{100 * x:.2f}%" y="{y:.0f}" width="{100 * width:.2f}%" height="{height:.0f}"'
        f' class="{style}"/>'
    )


def colour(series: int) -> str:
    """The class of a series, by which the stylesheet colours it."""
    return f"s{series % len(SHAPES)}"


def _outline(series: int) -> str:
    """The attributes of the path that is the mark of a series."""
    turn, number = divmod(series, len(SHAPES))
    path = SHAPES[(number + TURNS[turn % len(TURNS)]) % len(SHAPES)]
    return f'd="{path}"' + (' class="hollow"' if turn % 2 else "")


def shape(x: float, y: float, series: int, scale: float = 1, shift: int = 0) -> str:
    """The mark of a series, in whatever colour it stands in."""
    return (
        f'<svg x="{x:.2f}%" y="{y:.1f}" class="mark"><path {_outline(series)}'
        f' transform="translate({shift} 0) scale({scale})"/></svg>'
    )


def sign(series: int) -> str:
    """The mark of a series on its own, for a legend."""
    path = f"<path {_outline(series)}/>"
    return f'<svg class="mark" viewBox="-7 -7 14 14" aria-hidden="true">{path}</svg>'


def picture(title: str, desc: str, height: float, body: Sequence[str], style: str = "") -> str:
    return (
        f'<svg role="img" class="plot {style}" xmlns="http://www.w3.org/2000/svg" width="100%"'
        f' height="{height:.0f}"><title>{clean(title)}</title><desc>{clean(desc)}</desc>'
        + "".join(body)
        + "</svg>"
    )
