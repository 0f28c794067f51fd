"""What results and tests say, in words and as a plain table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
METRICS = {
    "f1": "F1",
    "prompt_strict": "all instructions",
    "prompt_loose": "all instructions, loosely",
    "instruction_strict": "instructions",
    "instruction_loose": "instructions, loosely",
    "kl": "KL to the teacher",
    "nll": "NLL of the gold answers",
}
# of a row's unit; what has none is in per cent
DIGITS = {
    "nats": 3,
    "perplexity": 1,
    "reward": 2,
    "rating": 0,
}  # of a row's unit; else it is in per cent
BETTER = {  # how a clear difference in a metric is told, where it is not of problems solved
    "kl": ("is closer to the teacher than", "is farther from the teacher than"),
    "nll": ("finds the gold answers likelier than", "finds the gold answers less likely than"),
    "f1": ("shares more words with the gold answers than", "shares fewer words with them than"),
    "rating": ("is rated above", "is rated below"),
    "language": ("keeps to the question's language better than", "mixes languages more than"),
    "format": ("is well-formed more often than", "is well-formed less often than"),
}
UNANSWERED = {  # columns of a result: shares of answers that count as wrong, as they hold none
    "truncated": "truncated",
    "unparsed": "unparsed",
    "timed_out": "timed out",
    "failed": "failed",
}
DRAWN = ("pass_at_1", "greedy")  # metrics that stand for answers drawn in a way of their own
SOLVING = re.compile(r"pass_at_\d+|greedy")  # metrics that say what share of problems is solved


def headline(results: Sequence[Row], tests: Sequence[Row]) -> str:
    """The run in one sentence, which claims a difference only where the first test found one."""
    if not results:
        return "Nothing has been evaluated yet."
    split, metric = main_split(results)
    scores = {
        row["name"]: row for row in results if (row["split"], row["metric"]) == (split, metric)
    }
    here = [t for t in tests if t["split"] == split and t.get("metric", metric) == metric]
    test = next((t for t in here if {t["a"], t["b"]} <= set(scores)), None)
    names = [test["a"], test["b"]] if test else list(scores)[:3]
    asked = "held-out problems" if is_heldout(split) else f"`{split}` problems"
    solved = [f"`{name}` {_score(scores[name])}" for name in names]
    solved[0] = f"`{names[0]}` solves {_score(scores[names[0]], f' of {asked}')}"
    if unit := scores[names[0]].get("unit"):
        per = " nats per token" if unit == "nats" else ""
        solved[0] = f"{label(metric)} on {asked}: `{names[0]}` {_score(scores[names[0]])}{per}"
    sentence = ", ".join(solved)
    if not test:
        more = "; no paired test has compared them" if len(names) > 1 else ""
        return f"{sentence}{more}."
    sentence += f" {test['note']}" if test.get("note") else ""
    size, chance = _size(test), probability(test.get("p"))
    if _clear(test):
        worse = "" if _is_better(test) else f" against `{test['a']}`"
        aside = f" ({chance})" if chance else ""
        return f"{sentence}: the difference of {size}{worse} is clear{aside}."
    return f"{sentence}: the difference of {size} cannot be told from chance ({_range(test)})."


def seeds(row: Row) -> str:
    """What each seed of a pooled row has reached, in per cent or in the row's unit."""
    each = ", ".join(number({**row, "value": value}, "value") for value in row["seeds"])
    return f"`{row['name']}` on {row['split']} ({label(row['metric'])}): {each}"


def label(metric: str) -> str:
    """What a metric is called: pass@16 of `pass_at_16`, cons@64 of `cons_at_64`."""
    return METRICS.get(metric, metric.replace("pass_at_", "pass@").replace("cons_at_", "cons@"))


def cell(row: Row) -> str:
    if row.get("low") is None or row.get("high") is None:
        return f"{number(row, 'value'):>5}"
    to = " to " if row["low"] < 0 else "-"
    return f"{number(row, 'value'):>5}  ({number(row, 'low')}{to}{number(row, 'high')})"


def number(row: Row, key: str) -> str:
    """A row's value or end of interval: in per cent, or in its unit."""
    digits = DIGITS.get(row.get("unit", ""))
    return f"{100 * row[key]:.1f}" if digits is None else f"{row[key]:.{digits}f}"


def unanswered(results: Sequence[Row], name: str) -> str:
    """What a model's answers were besides right and wrong, split by split, in per cent."""
    told: dict[str, str] = {}
    for row in without_answers(results):
        if row["name"] == name:
            words = (f"{word} {100 * share:.1f}" for word, share in reasons(row).items())
            told.setdefault(row["split"], f"{row['split']} {', '.join(words)}")
    return f"`{name}`: {'; '.join(told.values())}" if told else ""


def without_answers(results: Sequence[Row]) -> list[Row]:
    """The rows some of whose answers are none, one for each way of drawing answers.

    What else is counted over the same answers, pass@k or F1, has the same shares.
    """
    ways = {(row["name"], row["split"]) for row in results if row["metric"] in DRAWN}
    return [
        row
        for row in results
        if reasons(row)
        and (row["metric"] in DRAWN or (row["name"], row["split"]) not in ways)
        and "unit" not in row
    ]


def again(row: Row) -> str:
    """By how much a score would move if the same model answered the same problems again."""
    return "" if row.get("rerun") is None else f"±\u202f{number(row, 'rerun')}"


def reasons(row: Row) -> dict[str, float]:
    """Why answers are no answers, and what share of them, where there are any."""
    found = {word: row.get(key) or 0.0 for key, word in UNANSWERED.items()}
    if found["failed"] <= found["timed out"]:
        found.pop("failed")  # those that took too long to check, once more
    return {word: share for word, share in found.items() if share >= 0.0005}


def main_split(results: Sequence[Row]) -> tuple[str, str]:
    """The split and metric that stand for the run: the first split, by pass@1 where it has it."""
    split = results[0]["split"]
    metrics = [row["metric"] for row in results if row["split"] == split]
    return split, "pass_at_1" if "pass_at_1" in metrics else metrics[0]


def shares(results: Sequence[Row]) -> list[Row]:
    """The rows that are a share: of problems solved, or of something else."""
    return [row for row in results if "unit" not in row]


def solved(results: Sequence[Row]) -> list[Row]:
    """The rows that say what share of problems was solved."""
    return [row for row in shares(results) if SOLVING.fullmatch(row["metric"])]


def is_heldout(split: str) -> bool:
    return split.replace("_", "").replace("-", "") == "heldout"


def gain(row: Row) -> str:
    """What there was to gain on a split, and what of it was gained."""
    ways = {name: value for name, value in row.items() if SOLVING.fullmatch(name)}
    others = [f"{100 * value:.0f} % {_asked(name)}" for name, value in ways.items()][1:]
    told = (
        f"On {row['split']} the base is right in {100 * row['pass_at_1']:.0f} % of its samples "
        f"(pass@1), {', '.join(others)}: {points(row['reach'])} within its reach."
    )
    after = row.get("after", {})
    reached = [f"{label(name)} {100 * after[name]:.0f} %" for name in ways if name in after]
    return f"{told} After learning: {', '.join(reached)}." if reached else told


def _asked(metric: str) -> str:
    if metric == "greedy":
        return "in its greedy answers"
    return f"if one of {metric.rpartition('_')[2]} samples has to be ({label(metric)})"


def _score(row: Row, of: str = "") -> str:
    if "unit" in row:
        return cell(row).strip().replace("  ", " ")
    if row.get("low") is None or row.get("high") is None:
        return f"{100 * row['value']:.0f} %{of}"
    return f"{100 * row['value']:.0f} %{of} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def _clear(test: Row) -> bool:
    """Whether a test tells its two apart: by its interval, its p and its own verdict, all three."""
    doubt = str(test.get("verdict") or "").lower().startswith(("un", "in", "no", "same", "tie"))
    if test["low"] is None or test["high"] is None:
        return False
    apart = test["low"] > 0 or test["high"] < 0
    return apart and not doubt and (test.get("p") is None or test["p"] < 0.05)


def sentence(test: Row) -> str:
    a, b, where = f"`{test['a']}`", f"`{test['b']}`", f"on {test['split']}"
    metric = test.get("metric", "pass_at_1")
    if not _clear(test):
        by = f" by {label(metric)}" if metric != "pass_at_1" else ""
        told = f"{a} and {b} cannot be told apart{by} {where} (difference {_range(test)})."
        return f"{told} {needed(test)}".rstrip()
    better, worse = BETTER.get(metric, ("solves more than", "solves less than"))
    if test.get("unit") == "reward":
        better, worse = f"earns more of {metric} than", f"earns less of {metric} than"
    if metric != "pass_at_1" and SOLVING.fullmatch(metric):
        where += f" ({label(metric)})"
    verb = better if _is_better(test) else worse
    return f"{a} {verb} {b} {where}, by {_size(test)} ({_range(test)})."


def needed(test: Row) -> str:
    """How much more would tell two apart, if the difference is what was seen."""
    more = test.get("needed") or {}
    if not more.get("num_problems"):
        return ""
    told = f"About {_rounded(more['num_problems'])} problems"
    if more.get("num_samples"):
        return f"{told}, or {_rounded(more['num_samples'])} samples of each, would settle it."
    drawn = test.get("metric", "pass_at_1") == "pass_at_1"
    return f"{told} would settle it{'; more samples of these alone may not' if drawn else ''}."


def _rounded(count: float) -> str:
    """To two digits: what is needed is an estimate."""
    digits = max(0, len(f"{count:.0f}") - 2)
    return f"{math.ceil(count / 10**digits) * 10**digits:,}"


def _is_better(test: Row) -> bool:
    """Whether a is better than b: of nats, less is."""
    return bool((test["difference"] < 0) == (test.get("unit") == "nats"))


def _size(test: Row) -> str:
    size = abs(test["difference"])
    told = {"nats": f"{size:.3f} nats per token", "reward": f"{size:.2f}"}
    told["rating"] = f"{size:.0f} points of rating"
    return told.get(test.get("unit", ""), points(size))


def difference(test: Row) -> str:
    """A test's difference with its interval: `-2.8 (-5.0 to -0.6)`, in points or in its unit."""
    return f"{_signed(test, 'difference')} ({_signed(test, 'low')} to {_signed(test, 'high')})"


def _range(test: Row) -> str:
    chance = probability(test.get("p"))
    told = f"{_signed(test, 'low')} to {_signed(test, 'high')}"
    return told + (f", {chance}" if chance else "") + _over_seeds(test)


def _signed(test: Row, key: str) -> str:
    digits = 0 if test.get("unit") == "rating" else 3
    if test[key] is None:
        return "unknown"
    return f"{test[key]:+.{digits}f}" if "unit" in test else f"{100 * test[key]:+.1f}"


def _over_seeds(test: Row) -> str:
    """That a test holds for other seeds, too; or that just these very trainings differ."""
    if not (each := test.get("seeds")):
        return ""
    alone = test.get("p_of_these", 1.0)
    only_these = not _clear(test) and alone < 0.05
    more = f"; these trainings themselves differ, {probability(alone)}" if only_these else ""
    return f", over {len(each)} seeds{more}"


def points(share: Any) -> str:
    points = f"{100 * share:.0f}" if abs(share) >= 0.0995 else f"{100 * share:.1f}"
    return f"{points} point{'' if points in ('1', '1.0') else 's'}"


def probability(p: Any) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
