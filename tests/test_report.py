"""The report's page and table, on rows such as a run would give and on text that means harm."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from limbeck.report import Report, gain, headline, plots, render, results_table, svg

HOSTILE = (
    "<think>\x1b[31mred</think><script>alert('x')</script></pre></svg>"
    "<img src=https://evil.example/a.png onerror=alert(1)>\u202eabc\u2066 \x00\x07\x9b {{ 7 * 7 }} \ud800"
)
SCORES = {
    ("heldout", "pass_at_1"): {
        "teacher": 0.972,
        "distilled": 0.612,
        "answers_only": 0.224,
        "untrained": 0.011,
    },
    ("heldout", "greedy"): {
        "teacher": 0.978,
        "distilled": 0.640,
        "answers_only": 0.231,
        "untrained": 0.009,
    },
    ("harder", "pass_at_1"): {
        "teacher": 0.941,
        "distilled": 0.334,
        "answers_only": 0.118,
        "untrained": 0.004,
    },
}
DOMAINS = {
    "chain_sum": (0.02, 1.0), "gcd": (0.14, 0.82), "fraction_simplify": (0.05, 0.71), "count_bits": (0.12, 1.2),
    "calendar_arithmetic": (0.16, 0.44), "number_sorting": (0.0, 1.35), "letter_counting": (0.31, 0.9),
}  # fmt: skip


def interval(share: float, size: int) -> dict[str, float]:
    half = 1.96 * math.sqrt(share * (1 - share) / size)
    return {"value": share, "low": max(0.0, share - half), "high": min(1.0, share + half)}


def results() -> list[dict[str, Any]]:
    return [
        {"name": name, "split": split, "metric": metric, **interval(share, 600), "num_problems": 600,
         "num_samples": 4 if metric == "pass_at_1" else 1, "tokens_per_answer": 180.4, "cost": 1.7e9}
        for (split, metric), row in SCORES.items() for name, share in row.items()
    ]  # fmt: skip


def paired() -> list[dict[str, Any]]:
    return [
        {"a": "distilled", "b": "answers_only", "split": "heldout", "difference": 0.388, "low": 0.341,
         "high": 0.433, "p": 1e-40, "verdict": "better", "note": "at the same training budget"},
        {"a": "distilled", "b": "answers_only", "split": "harder", "difference": 0.216, "low": 0.165,
         "high": 0.262, "p": 2e-9, "verdict": "better"},
        {"a": "distilled", "b": "teacher", "split": "heldout", "difference": -0.36, "low": -0.4,
         "high": -0.32, "p": 1e-30, "verdict": "worse"},
        {"a": "answers_only", "b": "untrained", "split": "harder", "difference": 0.018, "low": -0.006,
         "high": 0.041, "p": 0.148, "verdict": "indistinguishable"},
    ]  # fmt: skip


def artifacts() -> list[dict[str, Any]]:
    """What a run of many kinds of models would say of its frontier."""
    taken = {  # kind, bytes, MiB, seconds an answer, tokens an answer
        "teacher": ("base", 3.6e6, 310, 0.41, 182), "distilled": ("sft", 7.4e5, 262, 0.11, 176),
        "distilled-int8": ("quantized", 2.1e5, 249, 0.13, 178), "distilled-pruned-2-of-4": ("pruned", 5.2e5, 258, 0.10, 190),
        "distilled-then-rl": ("grpo", 7.4e5, 262, 0.094, 141), "kd": ("distill", 7.4e5, 262, 0.12, 180),
        "answers_only": ("sft", 7.4e5, 262, 0.012, 9), "untrained": ("other", 7.4e5, None, 0.18, 256),
        "models/exported/Q4_K_M-of-the-distilled-student": ("exported", 1.6e5, 121, 0.08, None),
    }  # fmt: skip
    worth = [0.972, 0.612, 0.604, 0.48, 0.665, 0.634, 0.224, 0.011, 0.571]
    keys = ("kind", "num_bytes", "peak_memory_mib", "latency_s", "tokens_per_answer")
    return [
        {"name": name, "split": "heldout", "metric": "pass_at_1", **interval(share, 600), **dict(zip(keys, of, strict=True)),
         "num_parameters": of[1] / 4, "tokens_per_second_1": 1400.0, "flops_per_correct": 3e8 / share, "money_per_correct": None}
        for (name, of), share in zip(taken.items(), worth, strict=True)
    ]  # fmt: skip


def costs() -> dict[str, list[dict[str, Any]]]:
    spent = {
        "cpu_seconds": 0.0114,
        "device_seconds": 0.0,
        "tokens_out": 241.7,
        "flops": 4e6,
        "joules": None,
        "money": None,
    }
    alone = {"counted": "its own making", **spent, "stages": ["sample", "verify", "curate"]}
    gained = {"name": "distilled", "split": "heldout", "metric": "pass_at_1", "start": "untrained"}
    return {
        "per_accepted_trace": [{"name": "curate", "num_accepted": 12_000, **alone}],
        "per_point": [{**gained, "points": 60.1, "low": 55.0, "high": 64.2, **alone}, {**gained, "points": -3.0, "is_clear": False, "counted": "its own making"}],
        "per_correct_answer": [{"name": "distilled", "split": "heldout", "metric": "pass_at_1", "tokens": 287.2, "seconds": 0.02,
                                "money": 1.5e-6, "stages": ["eval_distilled", "profile"]}],
    }  # fmt: skip


def forgotten() -> list[dict[str, Any]]:
    about = {"after": "distilled", "before": "untrained", "metric": "pass_at_1"}
    return [
        {**about, "split": "heldout", "difference": 0.6, "low": 0.56, "high": 0.64, "p": 1e-9, "verdict": "gained"},
        {**about, "split": "general", "difference": -0.028, "low": -0.05, "high": -0.006, "p": 0.01, "verdict": "lost"},
        {**about, "split": "other", "difference": 0.0, "low": -0.1, "high": 0.1, "p": 1.0, "verdict": "not distinguishable"},
    ]  # fmt: skip


THINK = (
    "<think>\nWe want 418 + 276 - 39.\n418 + 276: 400 + 200 = 600, 18 + 76 = 94, so 694.\n694 - 39: 694 - 40 = 654,"
    " plus 1 is {}.\nCheck: {} + 39 = {}.\n</think>\nThe result is \\boxed{{{}}}."
)
PROBLEM = "What is 418 + 276 - 39? Give the final answer in \\boxed{}."


def full() -> Report:
    rng = random.Random(7)
    families = [
        {"name": name, "split": split, "domain": domain, "metric": "pass_at_1", "num_problems": 86,
         **interval(min(0.995, share * (1 if name in ("teacher", "untrained") else shift)), 86)}
        for (split, metric), row in SCORES.items() if metric == "pass_at_1"
        for domain, (_, shift) in DOMAINS.items() for name, share in row.items()
    ]  # fmt: skip
    kept = [int(rng.lognormvariate(5.1, 0.35)) for _ in range(4000)]
    dropped = [int(min(rng.lognormvariate(5.5, 0.5), 512)) for _ in range(1500)]
    example = {
        "problem": PROBLEM,
        "answer": "655",
        "good": {"text": THINK.format(655, 655, 694, 655), "reason": "correct", "id": "t-5f20c1"},
        "bad": {"text": THINK.format(645, 645, 684, 645), "reason": "wrong", "id": "t-90be7a"},
    }
    answer = {
        "problem": PROBLEM,
        "gold": "655",
        "by": [
            {"name": "distilled", "text": THINK.format(655, 655, 694, 655), "reason": "correct"},
            {"name": "answers_only", "text": "\\boxed{635}", "reason": "wrong"},
            {
                "name": "untrained",
                "text": "418 418 the the 4 4 4 4 4 4 4 4 4",
                "reason": "truncated",
            },
        ],
    }
    ledger = [
        ("collect", "collect", 4, 5, 0, 0, 0, 210), ("sample", "sample", 61, 118, 1.9e6, 2.9e6, 0, 640),
        ("verify", "verify", 9, 16, 0, 0, 0, 180), ("curate", "curate", 2, 3, 0, 0, 0, 240),
        ("distilled", "sft", 171, 334, 3.9e6, 0, 2.3e13, 1480), ("answers_only", "sft", 168, 330, 3.9e6, 0, 2.3e13, 1475),
        ("evaluate", "evaluate", 74, 141, 1.1e6, 1.6e6, 4.1e12, 890),
    ]  # fmt: skip
    keys = [
        "stage",
        "verb",
        "wall_seconds",
        "cpu_seconds",
        "tokens_in",
        "tokens_out",
        "flops",
        "peak_memory_mib",
    ]
    return Report(
        name="quickstart",
        title="A small model learns to reason",
        command="limbeck run recipes/quickstart.yaml",
        started="2026-03-04 10:12:07",
        finished="2026-03-04 10:20:16",
        headline=headline(results(), paired()),
        versions={"limbeck": "0.1.0", "python": "3.11.7", "torch": "2.9.1", "transformers": "5.0.0"},
        machine={"cpu": "Intel Xeon Platinum 8481C", "cores": 2, "threads": 2, "gemm_gflops": 141.2,
                 "cpu_seconds": 947.0, "wall_seconds": 489.0},
        results=results(),
        tests=paired(),
        families=families,
        guess=[{"split": s, "domain": d, "share": g} for s in ("heldout", "harder") for d, (g, _) in DOMAINS.items()],
        models=[
            {"name": "distilled", "num_parameters": 1.84e6, "loss_tokens": 2_105_344, "prompt_tokens": 512_000,
             "num_examples": 12_000, "num_steps": 1200, "cpu_seconds": 334.0, "flops": 2.3e13,
             "trained_on": "the teacher's reasoning"},
            {"name": "answers_only", "num_parameters": 1.84e6, "loss_tokens": 2_105_344, "prompt_tokens": 512_000,
             "num_examples": 161_000, "num_steps": 1200, "cpu_seconds": 330.0, "flops": 2.3e13,
             "trained_on": "the answers alone"},
            {"name": "untrained", "num_parameters": 1.84e6},
        ],
        funnel=[{"stage": "curate", "sampled": 16_000, "kept": 12_000,
                 "dropped": {"wrong": 3000, "duplicate": 800, "truncated": 120, "malformed": 80}}],
        verdict_reasons={
            "verify": {"correct": 12_880, "wrong": 2920, "truncated": 120, "unparsed": 80},
            "evaluate distilled": {"correct": 1469, "wrong": 890, "truncated": 31, "unparsed": 10},
            "evaluate answers_only": {"correct": 538, "wrong": 1862},
        },
        curves=[
            {"name": name, "points": [(s, end + 3.5 * math.exp(-s / 130) + rng.gauss(0, 0.05)) for s in range(1200)],
             "heldout": [(s, end + 0.05 + 3.5 * math.exp(-s / 130)) for s in range(100, 1201, 100)]}
            for name, end in (("distilled", 0.24), ("answers_only", 1.31))
        ],
        lengths=[{"name": "kept", "values": kept}, {"name": "dropped", "values": dropped}],
        examples=[example, {**example, "problem": "How many letters r are in strawberry?"}],
        answers=[answer, {**answer, "problem": "Sort these numbers: 12, 7, 31."}],
        ledger=[dict(zip(keys, row, strict=True)) for row in ledger],
        frontier=artifacts(),
        costs=costs(),
        forgetting=forgotten(),
        published=[
            {"name": "distilled", "paper_name": "DeepSeek-R1-Distill-Qwen-1.5B", "split": "math500", "metric": "pass_at_1",
             **interval(0.612, 500), "published": 0.839, "source": "v1, Table 5",
             "differs": ["4 samples a problem here, 16 in the paper", "temperature 1 here, temperature 0.6 in the paper"]},
            {"name": "distilled", "paper_name": "DeepSeek-R1-Distill-Qwen-1.5B", "split": "codeforces", "metric": "rating",
             "unit": "rating", "value": 812.0, "low": 640.0, "high": 990.0, "published": 954, "source": "v1, Table 5", "differs": []},
        ],
        notes=["One seed: `distilled` trained again may score 1-2 points higher or lower.",
               "The teacher is a program that writes worked solutions, with mistakes put in on purpose."],
        recipe_text="name: quickstart\nstages:\n  collect: {num: 4096}\n",
    )  # fmt: skip


class Tags(HTMLParser):
    """Collects tags and checks that every one is closed in order."""

    VOID = {"meta", "br", "img", "input", "link"}

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def check(page: str) -> Tags:
    tags = Tags(page)
    assert not tags.open
    names = {tag for tag, _ in tags.seen}
    assert not names & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "a",
        "image",
        "use",
    }
    for tag, attributes in tags.seen:
        assert not [
            key
            for key in attributes
            if key.startswith("on") or key in ("src", "href", "xlink:href")
        ], tag
    assert "url(" not in page and "@import" not in page
    for picture in re.findall(r'<svg role="img".*?</svg>(?=</figure>)', page, re.DOTALL):
        root = ElementTree.fromstring(picture)
        assert root[0].tag.endswith("title") and root[0].text
        assert root[1].tag.endswith("desc") and root[1].text
    return tags


def test_a_full_page_is_well_formed_and_has_the_numbers():
    page = render(full())
    tags = check(page)
    assert page.startswith("<!doctype html>")
    assert any(
        "default-src 'none'" in (a.get("content") or "") for t, a in tags.seen if t == "meta"
    )
    assert page.count('<svg role="img"') == 2 + 2 + 1 + 2 + 1 + 4
    for number in (
        "61.2 %",
        "16\u202f000",
        "12\u202f000",
        "1.84 M",
        "39 points",
        "947 CPU-seconds",
        "141 GFLOP/s",
        "23 TFLOP",
        "83.9",
    ):
        assert number in page, number
    assert "commonest answer" in page and "1–2 points" in page
    assert len(page) < 300_000


def test_the_namespace_is_the_only_address():
    addresses = set(re.findall(r"\w+://[^\s\"'<]+", render(full())))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_what_a_model_wrote_cannot_act():
    report = full()
    side = {"text": HOSTILE, "reason": HOSTILE, "id": HOSTILE}
    rows = [{**row, "name": HOSTILE, "split": HOSTILE} for row in report.results[:1]]
    page = render(
        replace(
            report, name=HOSTILE, title=HOSTILE, headline=HOSTILE, command=HOSTILE, notes=[HOSTILE],
            recipe_text=HOSTILE, versions={HOSTILE: HOSTILE}, results=rows, tests=[],
            families=[{**row, "domain": HOSTILE} for row in rows],
            funnel=[{"stage": HOSTILE, "sampled": 2, "kept": 1, "dropped": {HOSTILE: 1}}],
            verdict_reasons={HOSTILE: {HOSTILE: 1}}, lengths=[{"name": HOSTILE, "values": [1, 2]}],
            curves=[{"name": HOSTILE, "points": [(1, 2.0), (2, 1.0)]}], frontier=[{**row, "name": HOSTILE, "split": HOSTILE, "kind": HOSTILE} for row in artifacts()],
            costs={HOSTILE: [{HOSTILE: HOSTILE, "stages": [HOSTILE]}]}, ledger=[{"stage": HOSTILE, "joules_of": HOSTILE}],
            forgetting=[{**row, "after": HOSTILE, "split": HOSTILE, "verdict": HOSTILE} for row in forgotten()],
            published=[{**rows[0], "published": 0.5, "paper_name": HOSTILE, "source": HOSTILE, "differs": [HOSTILE]}],
            examples=[{"problem": HOSTILE, "answer": HOSTILE, "good": side, "bad": side}] * 2,
            answers=[{"problem": HOSTILE, "gold": HOSTILE, "by": [{**side, "name": HOSTILE}]}],
        )
    )  # fmt: skip
    check(page)
    assert "<script" not in page and "{{ 7 * 7 }}" in page
    assert not set(page) & set("\x00\x07\x1b\x9b\u202e\u2066\ud800")
    assert "␛[31mred" in page and "⟨U+202E⟩" in page
    page.encode("utf-8")


def test_what_is_empty_is_left_out():
    page = render(Report(name="r", title="Nothing yet"))
    check(page)
    assert "<section" not in page and "<table" not in page and "<svg" not in page
    for part in (
        "results",
        "tests",
        "families",
        "models",
        "funnel",
        "curves",
        "lengths",
        "examples",
        "answers",
    ):
        check(render(replace(full(), **{part: []})))
    check(render(replace(full(), verdict_reasons={}, machine={}, ledger=[], guess=[])))


def test_rows_may_lack_what_was_not_measured():
    bare = {"name": "m", "split": "s", "metric": "greedy", "value": 0.5, "low": None, "high": None}
    page = render(
        Report(name="r", title="t", results=[bare], models=[{"name": "m"}], ledger=[{"stage": "s"}])
    )
    check(page)
    assert "50.0 %" in page


def test_the_headline_claims_no_more_than_the_test():
    assert headline(results(), paired()) == (
        "`distilled` solves 61 % of held-out problems (57-65), `answers_only` 22 % (19-26) at the same training"
        " budget: the difference of 39 points is clear (p < 0.001)."
    )
    unclear = [{**paired()[0], "low": -0.01, "p": 0.06, "difference": 0.02, "note": ""}]
    assert "cannot be told from chance (-1.0 to +43.3, p = 0.06)" in headline(results(), unclear)
    assert "cannot" in headline(results(), [{**paired()[0], "verdict": "unclear"}])
    assert "against `distilled`" in headline(results(), [paired()[2]])
    assert "no paired test" in headline(results(), [])
    by_seed = {"seeds": [0.1, 0.2, 0.3], "p_of_these": 0.003}
    assert ", over 3 seeds; these trainings themselves differ, p = 0.003)" in headline(
        results(), [{**unclear[0], **by_seed}]
    )
    told = results_table(results(), [{**paired()[0], **by_seed}])
    assert ", over 3 seeds)" in told and "themselves" not in told
    assert headline([], []) == "Nothing has been evaluated yet."


def test_the_table_is_aligned_and_plain():
    table = results_table(results(), paired())
    lines = table.splitlines()
    assert table.isascii() and "\x1b" not in table and max(map(len, lines)) <= 100
    assert lines[3] == "distilled       61.2  (57.3-65.1)    64.0  (60.2-67.8)    33.4  (29.6-37.2)"
    assert [lines[0].index(w) for w in ("heldout", "harder")] == [
        lines[1].index("pass@1"),
        lines[1].rindex("pass@1"),
    ]
    assert len({line.index(".") for line in lines[2:6]}) == 1
    assert (
        "distilled solves more than answers_only on heldout, by 39 points (+34.1 to +43.3, p < 0.001)."
        in lines
    )
    assert "answers_only and untrained cannot be told apart on harder" in table
    narrow = results_table(results(), [], width=60)
    assert max(map(len, narrow.splitlines())) <= 60 and narrow.count("distilled") == 2
    assert results_table([], []) == "\n"


def test_a_missing_score_is_a_dash():
    rows = [row for row in results() if (row["name"], row["metric"]) != ("teacher", "greedy")]
    line = results_table(rows, []).splitlines()[2]
    assert re.fullmatch(r"teacher +97\.2  \(.*\) +- +94\.1  \(.*\)", line)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(0, math.nan)],
        [(0, 1.0)],
        [(s, 1.0) for s in range(9999)],
        [(0, 0.0), (1, 0.0)],
        [(0, 0.0), (1, 3e-14)],
        [(0, -2.0), (1, 5e8)],
    ],
)
def test_plots_stand_odd_numbers(points):
    svg = plots.line_plot("t", "d", {"loss": points}, 0)
    assert svg == "" or ElementTree.fromstring(svg) is not None
    assert "nan" not in svg and len(svg) < 20_000
    ElementTree.fromstring(plots.interval_plot("t", "d", []))
    ElementTree.fromstring(plots.funnel("t", "d", 0, [], {}))
    assert plots.histogram("t", "d", {"kept": []}) == ""
    ElementTree.fromstring(plots.histogram("t", "d", {"kept": [0], "dropped": [3, 4, 900]}))


def in_nats() -> list[dict[str, Any]]:
    """A student that is nearer to its teacher than another, and answers hardly anything."""
    values = {
        "kl": (0.412, 0.598),
        "nll": (3.21, 3.75),
        "perplexity": (24.8, 42.5),
        "greedy": (0.03, 0.02),
    }
    units = {"kl": "nats", "nll": "nats", "perplexity": "perplexity"}
    return [
        {"name": name, "split": "heldout", "metric": metric, "value": value, "low": 0.9 * value,
         "high": 1.1 * value, "num_problems": 50, "num_samples": 1, "tokens_per_answer": 5.0, "cost": 1e6}
        | ({"unit": units[metric]} if metric in units else {})
        for metric, pair in values.items() for name, value in zip(("live", "hard"), pair, strict=True)
    ]  # fmt: skip


NEARER = {"a": "live", "b": "hard", "split": "heldout", "metric": "kl", "difference": -0.186,
          "low": -0.21, "high": -0.16, "p": 1e-4, "verdict": "a better", "unit": "nats"}  # fmt: skip


def test_of_nats_less_is_better_and_none_is_per_cent():
    line = headline(in_nats(), [NEARER])
    assert line.startswith(
        "KL to the teacher on held-out problems: `live` 0.412 (0.371-0.453) nats"
    )
    assert "0.186 nats per token is clear (p < 0.001)" in line and "%" not in line
    table = results_table(
        in_nats(), [NEARER, {**NEARER, "difference": 0.186, "low": 0.16, "high": 0.21}]
    )
    assert "0.412  (0.371-0.453)" in table and "24.8  (22.3-27.3)" in table
    assert "live is closer to the teacher than hard on heldout, by 0.186 nats per token" in table
    assert "live is farther from the teacher than hard on heldout" in table
    assert table.count("per cent solved") == 1 and "less is better" in table


def test_a_metric_that_does_not_tell_two_apart_is_named():
    unclear = {**NEARER, "metric": "f1", "low": -0.3, "high": 0.1, "verdict": "not distinguishable"}
    unclear.pop("unit")
    told = "live and hard cannot be told apart by F1 on heldout (difference -30.0 to +10.0"
    assert told in results_table(in_nats(), [unclear])


def test_a_page_of_likelihoods():
    rows = in_nats()
    grid = [
        {**rows[0], "temperature": temperature, "alpha": alpha, "value": temperature * alpha}
        for temperature in (1.0, 2.0, 4.0) for alpha in (0.1, 0.5, 0.9)
    ]  # fmt: skip
    curve = {"name": "live", "points": [(1, 3.0), (2, 2.0)]}
    curve["parts"] = {"teacher": [(1, 1.0), (2, 0.5)], "answers": [(1, 2.0), (2, 1.5)]}
    scale = {"name": "live", "step": 0, "part": "teacher", "loss": 0.3, "share": 0.25}
    size = {"name": "live", "num_parameters": 7e5, "num_bytes": 2.8e6, "tokens_per_second": 9e4}
    page = render(
        Report(
            name="squad", title="t", results=rows, tests=[NEARER], curves=[curve], scales=[scale],
            sizes=[size | {"peak_memory_mib": 512}], sweep=grid,
            distributions=[{"name": "scored", "teacher": "x", "tokens": 9, "bytes": 4e6}],
        )
    )  # fmt: skip
    assert "answer few questions right, the best one 3.0" in page
    assert "0.412 (0.371–0.453)" in page and "41.2 %" not in page
    assert "2.8 MB" in page and "25.0 %" in page and "4 MB" in page
    picture = page.partition("over temperature</title>")[2].partition("</figure>")[0]
    assert picture.count("<polyline") == 3 and "T = 4" in picture
    few = render(Report(name="squad", title="t", results=[{**r, "value": 0.3} for r in rows[-2:]]))
    assert "answer few questions right" not in few


def test_a_grid_may_have_holes():
    marks = [plots.Mark("", 1.0, 0.9, 1.1), None, plots.Mark("", 2.0, 1.9, 2.1)]
    svg = plots.grid_plot("t", "d", ["1", "2", "4"], {"alpha 0.1": marks})
    assert svg.count("mark") == 2 and ElementTree.fromstring(svg) is not None
    assert plots.grid_plot("t", "d", ["1"], {"alpha 0.1": marks[:1]}) == ""


# -- reinforcement learning ----------------------------------------------------------------------

STEPS = range(1, 41)
LEARNED: dict[str, Any] = {
    "name": "zero",
    "curves": {
        "reward": [(s, 1.2 + s / 100) for s in STEPS],
        "rewards.correct": [(s, 0.3 + s / 100) for s in STEPS],
        "rewards.format": [(s, 0.9) for s in STEPS],
        "correct": [(s, 0.3 + s / 100) for s in STEPS],
        "pass_at_1": [(10, 0.4), (20, 0.5), (30, 0.6), (40, 0.7)],
        "entropy": [(s, 0.3 - s / 1000) for s in STEPS],
        "reflection.wait": [(s, 100.0 + s) for s in STEPS],
        "reflection.retry": [(s, 0.0) for s in STEPS],
        "kl": [(s, 1e-13 * s) for s in STEPS],
    },
    "findings": [],
    "gain": [{"split": "heldout", "pass_at_1": 0.336, "greedy": 0.412, "pass_at_16": 0.781, "reach": 0.445,
              "after": {"pass_at_1": 0.61, "greedy": 0.64}}],
}  # fmt: skip
GAMED = {"what": "the reward is gamed", "evidence": "it `climbed`", "way_out": "stop"}


def test_a_page_of_reinforcement_learning():
    page = render(Report(name="r", title="t", learning=[LEARNED])).replace("\u00a0%", " %")
    check(page)
    assert "the base is right in 34 % of its samples (pass@1), 41 % in its greedy answers" in page
    assert "44 points within its reach. After learning: pass@1 61 %, greedy 64 %." in page
    assert page.count('<svg role="img"') == 5  # reward, right answers, entropy, reflection, KL
    assert "What went wrong" not in page and ">retry<" not in page
    folded = page.partition("How its steps went")[2]
    assert folded.count("<title>Distance from the reference</title>") == 1


def test_a_gamed_reward_is_shown_against_what_it_stands_for():
    page = render(Report(name="r", title="t", learning=[{**LEARNED, "findings": [GAMED]}]))
    check(page)
    assert "<b>the reward is gamed</b>: it <code>climbed</code>. The way out: stop." in page
    assert "reward (1.21 to 1.60)" in page and "right answers (40 to 70 %)" in page


def test_scores_stand_side_by_side_as_in_the_papers_table():
    stages = ("Zero", "Dev1", "Dev2", "Dev3", "R1")
    rows = [
        {"name": name, "split": "heldout", "metric": metric, **interval(0.5 + 0.05 * i, 300)}
        for metric in ("pass_at_1", "pass_at_16", "language")
        for i, name in enumerate(stages)
    ]
    rows.append(
        {
            "name": "R1",
            "split": "heldout",
            "metric": "helpful",
            "value": -0.4,
            "low": -0.5,
            "high": -0.3,
            "unit": "reward",
        }
    )
    page = render(Report(name="r", title="t", results=rows))
    check(page)
    table = page.partition('aria-label="Scores side by side"')[2].partition("</table>")[0]
    heads = [re.sub("<.*?>", "", head) for head in re.findall(r"<th scope=\"\w+\".*?</th>", table)]
    assert heads == [
        "",
        *stages,
        "heldout · pass@1",
        "heldout · pass@16",
        "heldout · language",
        "heldout · helpful",
    ]
    assert table.count("–</td>") == 4 and "-0.40 (-0.50 to -0.30)" in table
    plain = results_table(rows, [])
    assert "-0.40  (-0.50 to -0.30)" in plain and "pass@16" in plain
    assert "language: per cent of the thinking's words" in plain and "format:" not in plain


def test_tests_of_other_metrics_say_which():
    test = {**paired()[0], "a": "R1", "b": "Dev1"}
    table = results_table(
        results(),
        [
            {**test, "metric": "pass_at_16"},
            {**test, "metric": "language"},
            {**test, "metric": "greedy", "low": -0.1, "verdict": "not distinguishable"},
            {**test, "metric": "helpful", "unit": "reward"},
        ],
    )
    assert "R1 solves more than Dev1 on heldout (pass@16), by 39 points" in table
    assert "R1 keeps to the question's language better than Dev1 on heldout" in table
    assert "R1 and Dev1 cannot be told apart by greedy on heldout" in table
    assert "R1 earns more of helpful than Dev1 on heldout, by 0.39 (+0.341 to +0.433" in table


def test_seeds_and_trials_are_all_told():
    rows = [{**row, "seeds": [0.5, 0.25]} for row in results()[:1]]
    trial = {"stage": "rl_1", "model": "rl_1a", "settings": {"lr": 3e-4}, "chosen": True,
             "metric": "pass_at_1", "value": 0.5, "low": 0.4, "high": 0.6, "flops": 2e12}  # fmt: skip
    other = {**trial, "model": "rl_1b", "settings": {"lr": 1e-3}, "chosen": False, "value": 0.25}
    page = render(Report(name="r", title="t", results=rows, trials=[trial, other]))
    check(page)
    assert "(pass@1): 50.0, 25.0" in page
    told = page.partition("What was tried")[2]
    assert "lr 0.0003" in told and "lr 0.001" in told and told.count("✓") == 1
    assert "pass@1): 50.0, 25.0" in results_table(rows, [])


def test_budgets_stand_side_by_side():
    arm = {"name": "rl", "flops": 2e12, "flops_with_teacher": 3e12, "paid_tokens": 0,
           "share_of_flops": 1.0, "share_of_flops_with_teacher": 1.02}  # fmt: skip
    page = render(Report(name="r", title="t", budgets=[arm], ledger=[{"stage": "s"}]))
    check(page)
    assert "2 TFLOP" in page and "102.0 %" in page


# -- what stands beside a score ------------------------------------------------------------------


def unanswered() -> list[dict[str, Any]]:
    shares = {"teacher": (0.0, 0.0, 0.0, 0.0), "distilled": (0.031, 0.012, 0.0, 0.0), "answers_only": (0.0, 0.0, 0.02, 0.02),
              "untrained": (0.84, None, None, 0.05)}  # fmt: skip
    keys = ("truncated", "unparsed", "timed_out", "failed")
    return [
        {**row, **dict(zip(keys, shares[row["name"]], strict=True)), "rerun": 0.0113}
        for row in results()
    ]


def test_answers_that_are_none_stand_beside_the_scores():
    page = render(replace(full(), results=unanswered())).replace("\u202f", " ")
    check(page)
    table = page.partition('aria-label="Answers that do not count"')[2].partition("</table>")[0]
    assert (
        "3.1 % truncated<br>1.2 % unparsed" in table and "84.0 % truncated<br>5.0 % failed" in table
    )
    assert "teacher" not in table and "2.0 % timed out</td>" in table  # its failures are those
    whole = page.partition('aria-label="All scores"')[2].partition("</table>")[0]
    assert "± 1.1" in whole and "unparsed" in whole and "timed out" in whole
    assert "Answers that do not count" not in render(full())


def test_the_terminal_says_so_too_in_a_line_a_model():
    table = results_table(unanswered(), [])
    assert (
        "distilled: heldout truncated 3.1, unparsed 1.2; harder truncated 3.1, unparsed 1.2"
        in table
    )
    assert "answers_only: heldout timed out 2.0; harder timed out 2.0" in table
    assert table.count("\nuntrained") == 2 and table.count("\nteacher") == 1
    assert max(map(len, table.splitlines())) <= 100
    assert "no answers" not in results_table(results(), [])


@pytest.mark.parametrize(
    ("metric", "needed", "told"),
    [
        ("pass_at_1", (3_012, 36), "About 3,100 problems, or 36 samples of each, would settle it."),
        ("pass_at_1", (3_012, None), "About 3,100 problems would settle it; more samples of these alone may not."),
        ("greedy", (97, None), "About 97 problems would settle it."),
        ("pass_at_1", (None, None), ""),
    ],
)  # fmt: skip
def test_what_would_settle_it_is_told_in_words(metric, needed, told):
    more = dict(zip(("num_problems", "num_samples"), needed, strict=True))
    unclear = {**paired()[-1], "metric": metric, "needed": more}
    assert results_table(results(), [unclear]).rstrip().endswith(f"). {told}".rstrip())
    assert "settle" not in results_table(results(), [{**paired()[0], "needed": more}])


def test_votes_and_ratings_are_called_by_their_names():
    rating = {"name": "distilled", "split": "codeforces", "metric": "rating", "unit": "rating",
              "value": 1203.4, "low": 1100.2, "high": 1310.0, "percentile": 41.3}  # fmt: skip
    vote = {"name": "distilled", "split": "aime24", "metric": "cons_at_64", **interval(0.5, 30)}
    follows = {
        "name": "distilled",
        "split": "ifeval",
        "metric": "prompt_strict",
        **interval(0.5, 30),
    }
    page = render(Report(name="r", title="t", results=[rating, vote, follows]))
    check(page)
    assert "1203 (1100–1310), above 41 % of contestants" in page and "cons@64" in page
    assert "all instructions" in page and "a tie counts as" in page
    table = results_table([vote, follows, rating], [])
    assert " 1203  (1100-1310)" in table and "cons@64" in table
    test = {"a": "distilled", "b": "b", "split": "codeforces", "metric": "rating", "unit": "rating",
            "difference": 240.0, "low": 60.0, "high": 400.0, "p": 0.01}  # fmt: skip
    told = (
        "distilled is rated above b on codeforces, by 240 points of rating (+60 to +400, p = 0.01)"
    )
    assert told in results_table([rating], [test])
    assert headline([rating], []).startswith(
        "rating on `codeforces` problems: `distilled` 1203 (1100"
    )


# -- what it cost, what was forgotten, what the paper has ----------------------------------------


def test_units_have_their_cost_and_where_it_comes_from():
    page = render(full())
    cost = page.partition('<section id="cost">')[2].partition("</section>")[0]
    assert "A trace that was kept" in cost and "11.4 ms" in cost and "4.00 MFLOP" in cost
    assert "sample, verify, curate" in cost and "its own making" in cost
    assert "60.1 (55.0 to 64.2)" in cost and ">−3.0<" in cost and cost.count("no clear gain") == 1
    assert "device time" not in cost and ">energy<" not in cost and "1.50 millionths" in cost


def test_the_ledger_shows_what_was_measured_only():
    known = [
        {**row, "device_seconds": 8 * row["wall_seconds"], "joules": 1200.0, "joules_of": "RAPL", "money": None}
        for row in full().ledger
    ]  # fmt: skip
    page = render(replace(full(), ledger=known, costs={}))
    check(page)
    cost = page.partition('<section id="cost">')[2].partition("</section>")[0]
    assert "device time" in cost and "8.4 kJ" in cost and "Energy by RAPL." in cost
    assert ">money<" not in cost and "device memory" not in cost


def test_what_one_stage_does_not_tell_has_no_sum():
    spent = {"verb": "evaluate", "wall_seconds": 1.0, "cpu_seconds": 1.0, "flops": 0.0}
    ledger = [{**spent, "stage": "a", "joules": 1200.0}, {**spent, "stage": "b", "joules": None}]
    page = render(Report(name="r", title="t", ledger=ledger))
    total = page.partition("<tfoot>")[2].partition("</tfoot>")[0]
    assert "1.2 kJ" in page and "kJ" not in total
    assert "0 FLOP" not in page  # a server's: nobody knows them


def test_the_journey_names_whom_it_has_not_introduced():
    result = {"split": "aime24", "metric": "pass_at_1", "value": 0.3, "low": 0.1, "high": 0.5}
    test = {"a": "one", "b": "two", "split": "aime24", "difference": 0.0, "low": -0.1, "high": 0.1}
    results = [{**result, "name": name} for name in ("one", "two")]
    page = render(Report(name="r", title="t", results=results, tests=[test]))
    assert "of aime24 problems solved by one" in page


def test_what_was_forgotten_is_told_with_both_scores():
    page = render(full()).partition('<section id="forgetting">')[2].partition("</section>")[0]
    assert "1.1 % (0.3–1.9)" in page and "61.2 % (57.3–65.1)" in page
    assert '<td class="lost">worse than before</td>' in page and "−2.8 (−5.0 to −0.6)" in page
    assert "cannot be told" in page and page.count(">–<") == 4  # scores that nobody has


def test_the_paper_stands_beside_what_was_measured():
    page = render(full()).partition('<section id="published">')[2]
    assert "61.2 % (56.9–65.5)" in page and "83.9 %" in page and "v1, Table 5" in page
    assert "<li>4 samples a problem here, 16 in the paper</li>" in page
    assert "812 (640–990)" in page and ">954<br>" in page


def test_the_journey_says_what_the_filters_were():
    def kept(*names: str) -> str:
        funnel = {"stage": "curate", "sampled": 9, "kept": 9, "dropped": {},
                  "funnel": [{"filter": name, "reasons": {}, "left": 9} for name in names]}  # fmt: skip
        page = render(Report(name="r", title="t", funnel=[funnel]))
        return page.partition("of them kept")[2].partition("</li>")[0]

    assert kept("correct", "finished", "deduplicate") == ": right, finished and new"
    assert kept("correct", "near_duplicates", "exact_duplicates") == ": right and new"
    assert kept("mine:rule") == ": mine:rule"
    assert kept() == ": no filter was set"


def test_what_there_was_to_gain_fits_a_line():
    assert gain(LEARNED["gain"][0]) == (
        "heldout pass@1 34 to 61 %, greedy 41 to 64 %, pass@16 78 %; there were 44 points to gain"
    )


def test_many_series_can_be_told_apart_by_colour_and_shape():
    looks = [(svg.colour(series), svg.sign(series)) for series in range(36)]
    assert len(set(looks)) == 36
    # What looks alike but for its colour is apart for those who see red and green alike, too.
    sure = {frozenset(pair) for pair in (("s0", "s3"), ("s1", "s4"), ("s2", "s5"))}
    shapes: dict[str, set[str]] = {}
    for colour, sign in looks[:24]:
        shapes.setdefault(sign, set()).add(colour)
    assert len(shapes) == 12 and all(frozenset(pair) in sure for pair in shapes.values())


def test_no_two_of_many_models_share_a_mark_in_the_families():
    names = [f"model_{number}" for number in range(20)]
    rows = [
        {"name": name, "split": "heldout", "metric": "greedy", "domain": domain, **interval(0.5, 9)}
        for domain in ("x", "y")
        for name in names
    ]
    page = render(Report(name="r", title="t", families=rows))
    section = page.partition('<section id="families">')[2]
    legend = re.findall(r'<li class="(s\d)">(<svg.*?</svg>)(\w+)</li>', section)
    assert [name for *_, name in legend] == names
    assert len({(colour, mark) for colour, mark, _ in legend}) == 20
    marks = re.findall(r'<g class="(s\d)">.*?<path (.*?) transform', section)
    assert len(marks) == 40 and len(set(marks)) == 20


def test_a_long_name_leaves_room_for_its_score():
    name = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    result = {"name": name, "split": "aime24", "metric": "pass_at_1", "value": 0.289}
    page = render(Report(name="r", title="t", results=[{**result, "low": 0.2, "high": 0.4}]))
    assert ">DeepSeek-…till-Qwen-1.5B</text>" in page
    assert f'<th scope="row">{name}</th>' in page
