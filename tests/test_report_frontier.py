"""The frontier's picture: who is on it, and labels that never overlap, however wide the screen."""

from __future__ import annotations

import random
import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from limbeck.report import Report, render, scatter
from limbeck.report.frontier import frontiers
from limbeck.report.scatter import Point, front, scatter_plot

TICKS = scatter.TOP + scatter.HEIGHT + 8  # from here on downwards
SCALE = [0, 0.25, 0.5, 0.75, 1.0]
NAMES = ("a", "teacher", "answers_only", "models/of/somebody/DeepSeek-R1-Distill-Qwen-1.5B", "蒸馏")

LABEL = re.compile(
    r'<text x="([\d.]+)%" y="(\d+)" dx="(-?\d+)" class="name" text-anchor="(\w+)">(.*?)<'
)


def some_points(seed: int, num: int) -> list[Point]:
    rng = random.Random(seed)
    return [
        Point(rng.choice(NAMES), 10 ** rng.uniform(0, seed % 4), y, y - 0.03, y + 0.03, i % 6, i)
        for i in range(1, num + 1)
        for y in [rng.choice((0.5, rng.random()))]
    ]


def test_the_front_is_what_nothing_beats():
    def beats(one: Point, other: Point) -> bool:
        prices = [float(f"{point.x:.2g}") for point in (one, other)]
        better = (prices[0], one.y) != (prices[1], other.y)
        return prices[0] <= prices[1] and one.y >= other.y and better

    for seed in range(20):
        points = some_points(seed, 12)
        best = [p for p in points if not any(beats(q, p) for q in points)]
        assert {p.number for p in front(points)} == {p.number for p in best}


def test_prices_whose_ranges_overlap_are_the_same():
    noisy = [
        Point("cheap", 11.2, 0.855, 0.81, 0.89, 0, 1, (9.9, 14.6)),
        Point("better", 11.8, 0.883, 0.85, 0.91, 1, 2, (10.1, 12.1)),
        Point("dear", 17.8, 0.955, 0.93, 0.97, 2, 3, (16.7, 29.8)),
    ]
    assert front(noisy) == noisy[1:]
    apart = [Point("cheap", 11.2, 0.855, 0.81, 0.89, 0, 1, (11.1, 11.3)), *noisy[1:]]
    apart[1] = Point("better", 11.8, 0.883, 0.85, 0.91, 1, 2, (11.7, 12.1))
    assert front(apart) == apart
    picture = scatter_plot("t", "d", noisy, SCALE)
    assert picture.count('class="ring"') == 2 and picture.count('class="whisker"') == 6


def test_almost_the_same_price_is_the_same_and_stands_close():
    near = [Point("a", 25.92, 0.4, 0.3, 0.5, 0, 1), Point("b", 26.03, 0.8, 0.7, 0.9, 1, 2)]
    assert front(near) == near[1:]
    places = re.findall(r'<svg x="([\d.]+)%"', scatter_plot("t", "d", near, SCALE))
    assert abs(float(places[0]) - float(places[1])) < 2  # per cent of the width


def test_what_is_worth_nothing_is_on_no_front():
    points = [Point("a", 1.0, 0.0, 0.0, 0.1, 0, 1), Point("b", 2.0, 0.0, 0.0, 0.1, 1, 2)]
    assert front(points) == []
    assert 'class="front"' not in scatter_plot("t", "d", points, [0, 0.1])
    rows = [row(name, 0.0, latency_s=1.0) for name in "ab"]
    assert 'id="frontier"' not in render(Report(name="r", title="t", frontier=rows))


def test_who_is_worth_next_to_nothing_does_not_squeeze_the_others():
    rows = [row(n, v, latency_s=v) for n, v in (("a", 0.9), ("b", 0.8), ("start", 0.0))]
    (found,) = frontiers(rows, {})
    (panel,) = found["panels"]
    assert ">start<" not in panel["svg"] and "75 %" in panel["svg"] and "10 %" not in panel["svg"]
    assert found["aside"].startswith("The upright axes begin at 75 %.")
    assert found["aside"].endswith("Not drawn, being far below: `start` (0.0 %).")
    assert [line["name"] for line in found["table"]["rows"]] == ["a", "b", "start"]


def test_equals_are_both_on_the_front():
    twins = [Point(name, 1.0, 0.5, 0.4, 0.6, 0, n) for n, name in enumerate("ab", 1)]
    assert front(twins) == twins
    assert scatter_plot("t", "d", twins, SCALE).count('class="s0"') == 2


@pytest.mark.parametrize("seed", range(24))
def test_labels_stay_inside_and_apart_at_every_width(seed):
    """Read off the picture itself, with the width of letters that the stylesheet's font has."""
    svg = scatter_plot("t", "d", some_points(seed, 3 + seed % 9), SCALE)
    assert ElementTree.fromstring(svg) is not None
    labels = LABEL.findall(svg)
    assert labels
    for width in (230, 310, 430, 640, 800):
        boxes = [box(width, *label) for label in labels]
        assert all(left >= -1 and right <= width + 1 for left, right, _, _ in boxes)
        assert all(bottom < TICKS for _, _, _, bottom in boxes)
        for one, other in combinations(boxes, 2):
            beside = one[1] <= other[0] + 1 or other[1] <= one[0] + 1
            assert beside or one[3] <= other[2] + 1 or other[3] <= one[2] + 1


def box(width: int, x: str, y: str, dx: str, align: str, words: str) -> tuple[float, ...]:
    size = sum(12 if ord(char) > 0x2E80 else 6.4 for char in words)
    place = float(x) * width / 100 + int(dx)
    left = place - {"start": 0, "middle": size / 2, "end": size}[align]
    return left, left + size, int(y) - 10, int(y) + 3


def test_what_has_no_room_for_its_name_is_called_by_its_number():
    crowd = [Point("a name of some length", 1.0, 0.5, 0.5, 0.5, 0, n) for n in range(1, 9)]
    words = re.findall(r'class="name"[^>]*>(.*?)<', scatter_plot("t", "d", crowd, SCALE))
    assert set(words) & set("12345678") and len(words) < 8
    assert scatter.short("x/" * 9 + "DeepSeek-R1-Distill-Qwen-1.5B") == "DeepSeek-…till-Qwen-1.5B"


def test_the_legend_explains_every_number_and_every_mark():
    """Models so close together that most have no room for a name, read off the whole page."""
    rows = [row(f"model_number_{n}", 0.8, latency_s=1.0, num_bytes=9.0) for n in range(1, 21)]
    page = render(Report(name="r", title="t", frontier=[*rows, row("nothing", 0.01, num_bytes=1)]))
    section = page.partition('<section id="frontier">')[2]
    entry = r'<li class="(s\d)">(<svg.*?</svg>)<small>(\d+)</small> (.*?)</li>'
    legend = re.findall(entry, section)
    called = {number: name for _, _, number, name in legend}
    assert called == {str(n): f"model_number_{n}" for n in range(1, 21)}
    assert len({(colour, mark) for colour, mark, _, _ in legend}) == 20
    labels = {label[-1] for label in LABEL.findall(section)}
    numbers = {label for label in labels if label.isdecimal()}
    assert numbers and labels <= {*called, *called.values()}
    for name, points in re.findall(r"<g class=\"(s\d)\"><title>.*?</title>(.*?)</g>", section):
        path = re.search(r"<path (.*?) transform", points)[1]
        assert (name, path) in {(colour, mark.partition("<path ")[2].partition("/>")[0])
                                for colour, mark, _, _ in legend}  # fmt: skip


def row(name: str, value: float, **known: float | str | None) -> dict[str, object]:
    ends = {"low": value - 0.05, "high": value + 0.05}
    return {
        "name": name,
        "split": "heldout",
        "metric": "pass_at_1",
        "value": value,
        **ends,
        **known,
    }


ROWS = [
    row("large", 0.9, num_parameters=1e6, latency_s=0.5, peak_memory_mib=None, kind="base"),
    row("small", 0.6, num_parameters=1e5, latency_s=0.1, tokens_per_answer=20, kind="sft"),
    row("worse", 0.5, num_parameters=2e5, latency_s=None, tokens_per_answer=30, kind="pruned"),
]


def test_unknown_values_leave_a_point_out_of_that_panel_only():
    (frontier,) = frontiers(ROWS, {"large": 0, "small": 1, "worse": 2})
    marks = {panel["title"]: panel["svg"].count('class="mark"') for panel in frontier["panels"]}
    assert marks == {"Size": 3, "Latency": 2, "Length": 2}  # nobody's memory is known
    assert frontier["panels"][0]["unit"] == "parameters"  # no bytes are known
    table = {row["name"]: row for row in frontier["table"]["rows"]}
    assert table["large"]["best"] == "size, latency" and table["worse"]["best"] == ""
    heads = [head.figure for head in frontier["table"]["columns"]]
    assert table["worse"]["cells"][heads.index("latency")].figure == "–"
    assert "memory" not in heads
    said = ElementTree.fromstring(frontier["panels"][0]["svg"])[1].text
    assert said == "On the frontier: small (100 k), large (1\u202f000 k). Off it: worse."


def test_the_upright_axis_is_one_for_all_and_fits_the_values():
    (frontier,) = frontiers(ROWS, {})
    axes = [re.findall(r">([\d.]+ %)<", panel["svg"]) for panel in frontier["panels"]]
    assert axes == 3 * [[f"{share} %" for share in range(40, 101, 10)]]


def test_every_split_has_a_frontier_and_an_empty_one_is_left_out():
    other = [{**row, "split": "harder"} for row in ROWS]
    page = render(Report(name="r", title="t", frontier=[*ROWS, *other, {**ROWS[0], "split": "x"}]))
    assert page.count("On the frontier:") == 6 and page.count("The same on other problems") == 1
    assert "<section" not in render(Report(name="r", title="t", frontier=ROWS[:1]))


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), None])
def test_what_is_no_number_is_drawn_nowhere(strange):
    rows = [row("a", 0.4, latency_s=strange), row("b", 0.5, latency_s=1.0, num_parameters=2)]
    rows += [{**row("c", 0.6, latency_s=2.0, num_parameters=3), "low": strange, "high": strange}]
    rows += [{**row("d", 0.7, latency_s=3.0), "value": strange}]
    page = render(Report(name="r", title="t", frontier=rows))
    assert ">c<" in page and ">nan" not in page and ">inf" not in page


def test_where_all_are_always_right_there_is_an_axis_nevertheless():
    rows = [{**row(n, 1.0, latency_s=1.0), "low": 1.0, "high": 1.0} for n in "ab"]
    (found,) = frontiers(rows, {})
    assert ">0 %<" in found["panels"][0]["svg"] and ">100 %<" in found["panels"][0]["svg"]
