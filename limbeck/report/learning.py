"""The pictures of reinforcement learning: what each number did over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from limbeck.report import plots

Points = Sequence[tuple[float, float]]
GAMED = "the reward is gamed"
NUM_WORDS = 3  # of reflection that have a curve of their own


class Panel(NamedTuple):
    """A picture: what it shows, in which unit, and by which names its numbers are told."""

    title: str
    unit: str
    lines: Mapping[str, str]
    whole: bool = False
    """On an axis of 0 to 100 %."""
    folded: bool = False


PANELS = (
    Panel("Right answers", "%", {"training": "correct", "validation (dashed)": "pass_at_1"}, True),
    Panel(
        "Length",
        "tokens an answer",
        {"all": "mean_length", "the right ones (dashed)": "mean_length_right"},
    ),
    Panel("Entropy", "nats a token", {"": "entropy"}),
    Panel(
        "Checks and direct answers",
        "% of answers",
        {"check themselves": "self_checks", "do not think (dashed)": "direct"},
        True,
    ),
    Panel(
        "Groups without signal",
        "%",
        {"all": "no_signal", "all right": "all_right", "all wrong": "all_wrong"},
        True,
    ),
    Panel("Language", "% of the words in the question's", {"": "language"}, True),
    Panel("Truncated", "% of answers", {"": "truncated"}, folded=True),
    Panel("Clipped", "% of tokens", {"": "clip_share"}, folded=True),
    Panel("Distance from the reference", "KL, nats a token", {"": "kl"}, folded=True),
    Panel("Engine against trainer", "KL, nats a token", {"": "mismatch_kl"}, folded=True),
    Panel("Gradient", "norm before it is clipped", {"": "grad_norm"}, folded=True),
)


def learning_plots(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pictures of one training, those that only a specialist needs marked as `folded`."""
    curves: Mapping[str, Points] = row["curves"]
    rewards = {"reward": "reward"}
    rewards |= {name.partition(".")[2]: name for name in curves if name.startswith("rewards.")}
    panels = [Panel("Reward", "mean of all answers", rewards), *PANELS]
    panels.insert(5, Panel("Reflection", "words in 1,000 answers", _words(curves)))
    found = [_picture(panel, curves) for panel in panels]
    if GAMED in {finding["what"] for finding in row["findings"]}:
        found.insert(1, _against(curves))
    return [picture for picture in found if picture["svg"]]


def _words(curves: Mapping[str, Points]) -> dict[str, str]:
    """The words of reflection that are used most, by the names of their curves."""
    used = {
        name: sum(value for _, value in points)
        for name, points in curves.items()
        if name.startswith("reflection.") and any(value for _, value in points)
    }
    most = sorted(used, key=lambda name: -used[name])[:NUM_WORDS]
    return {name.partition(".")[2]: name for name in most}


def _picture(panel: Panel, curves: Mapping[str, Points]) -> dict[str, Any]:
    factor = 100.0 if panel.unit.startswith("%") else 1.0
    lines = {
        label: [(step, factor * value) for step, value in curves.get(name, ())]
        for label, name in panel.lines.items()
    }
    lines = {label: points for label, points in lines.items() if points}
    desc = "; ".join(
        f"{label or panel.title} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
        for label, points in lines.items()
    )
    svg = plots.line_plot(panel.title, desc, lines, 0, label="", whole=panel.whole)
    return {"title": panel.title, "unit": panel.unit, "svg": Markup(svg), "folded": panel.folded}


def _against(curves: Mapping[str, Points]) -> dict[str, Any]:
    """The reward and what it should stand for, each between its lowest and its highest value."""
    worth = "pass_at_1" if len(curves.get("pass_at_1", ())) > 2 else "correct"
    lines = {}
    for label, name in (("reward", "reward"), ("right answers", worth)):
        values = [value for _, value in curves[name]]
        low, high = min(values), max(values)
        ends = (
            f"{low:.2f} to {high:.2f}"
            if name == "reward"
            else f"{100 * low:.0f} to {100 * high:.0f} %"
        )
        lines[f"{label} ({ends})"] = [
            (step, 100 * (value - low) / ((high - low) or 1)) for step, value in curves[name]
        ]
    svg = plots.line_plot("The reward against what it stands for", GAMED, lines, 0, label="")
    unit = "each in % of its own range"
    return {
        "title": "Reward against right answers",
        "unit": unit,
        "svg": Markup(svg),
        "folded": False,
    }
