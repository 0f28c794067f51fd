"""The picture of a scan: how much worse a model gets if one of its layers alone is pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from limbeck.report import formats, svg

HEIGHT, TOP = 120, 6
GAP = 0.2  # of the room that a layer has
MOST_LABELS = 8  # below the bars, on a phone


def sensitivity(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a scan a picture for each level, which layers matter most and least, and a table."""
    levels = [f"{100 * level:g} %" for level in row["levels"]]
    rises = [[block["loss"][i] for block in row["blocks"]] for i in range(len(levels))]
    panels = [
        {"title": f"{level} of a layer", "svg": Markup(_bars(f"{row['stage']}, {level}", of_level))}
        for level, of_level in zip(levels, rises, strict=True)
        if any(map(formats.is_number, of_level))
    ]
    return {
        "stage": row["stage"],
        "dense": _nats(row["dense"]),
        "panels": panels,
        "told": _told(rises[-1], levels[-1]) if panels else "",
        "levels": levels,
        "rows": [
            (block["index"], [_nats(rise) for rise in block["loss"]]) for block in row["blocks"]
        ],
    }


def _nats(value: Any) -> str:
    return f"{value:.4f}" if formats.is_number(value) else "–"


def _told(rises: Sequence[Any], level: str) -> str:
    """The layers that matter most, and least, at the strongest level."""
    known = [index for index, rise in enumerate(rises) if formats.is_number(rise)]
    if len(known) < 2:
        return ""
    order = sorted(known, key=lambda index: rises[index])
    most, least = (
        [f"{i} ({rises[i]:+.3g})" for i in ends] for ends in (order[::-1][:3], order[:3])
    )
    most, least = most[: len(order) // 2], least[: len(order) // 2]
    return f"At {level} the model needs layers {', '.join(most)} most, {', '.join(least)} least."


def _bars(title: str, rises: Sequence[Any]) -> str:
    """A bar for each layer, up where the loss rises and down where it falls."""
    known = [rise for rise in rises if formats.is_number(rise)]
    scale = svg.ticks(min(0.0, *known), max(0.0, *known), 4)
    low, high, width = scale[0], scale[-1], 1 / len(rises)

    def place(rise: float) -> float:
        return TOP + HEIGHT * (high - rise) / (high - low)

    body = []
    for tick in scale:
        body.append(svg.line(0, place(tick), 1, place(tick), "grid" if tick else "axis"))
        body.append(svg.text(0, place(tick) + 4, f"{tick:g}", "tick", "end", shift=-8))
    for index, rise in enumerate(rises):
        left, middle = width * (index + GAP / 2), 100 * width * (index + 0.5)
        if index % -(-len(rises) // MOST_LABELS) == 0:
            body.append(svg.text(middle, TOP + HEIGHT + 18, str(index), "tick", "middle"))
        if not formats.is_number(rise):
            continue
        top, bottom = place(max(rise, 0.0)), place(min(rise, 0.0))
        bar = svg.bar(left, top, width * (1 - GAP), max(bottom - top, 1.0), "rise")
        body.append(f"<g><title>{svg.clean(f'layer {index}: {rise:+.4f}')}</title>{bar}</g>")
    told = "; ".join(f"layer {i} {_nats(rise)}" for i, rise in enumerate(rises))
    return svg.picture(f"Rise of the loss, {title}", told, TOP + HEIGHT + 24, body, "gutter")
