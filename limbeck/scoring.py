"""From verdicts to score rows: what a problem's answers come to in each metric.

A metric is a value per problem; what must be counted over several answers at once (pass@k, cons@k)
is counted per problem first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from limbeck import ledger, metrics, tables
from limbeck.errors import UserError
from limbeck.plugins import RewardChoice
from limbeck.rewards.weighted import WeightedReward
from limbeck.rewards.weighted import score as reward
from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers.judging import judge, verifier_of

VOTELESS = ("code", "ifeval", "judge", "preference")  # verifiers that read no short answer
INSTRUCTIONS = "ifeval"  # the verifier whose problems are scored by their instructions

Row = dict[str, Any]


def read_scores(path: str, metric: str) -> list[Row]:
    """A metric's rows of a table of scores, in the order of their problems.

    UserError where there are none, for a problem that has several, and for figures that cannot be.
    """
    rows = [row for row in tables.read_table(path).to_pylist() if row["metric"] == metric]
    if not rows:
        raise UserError(path, f"holds no {metric}", "evaluate it so, or ask for another metric")
    rows.sort(key=problem_of)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        if after is not None and problem_of(row) == problem_of(after):
            what = f"holds problem {row['problem_id']} of {row['split']} twice"
            raise UserError(path, what, "give what one evaluation wrote")
        if not _can_be(row):
            what = f"has figures for problem {row['problem_id']} that cannot be"
            raise UserError(path, what, "evaluate it anew")
    return rows


def problem_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Which problem a score row is of."""
    return row["split"], row["problem_id"]


def _can_be(row: Row) -> bool:
    counts = [row["num_samples"], row["num_correct"], row["completion_tokens"], row["flops"]]
    if any(count is None or not 0 <= count < math.inf for count in counts):
        return False
    value = row["value"]
    is_number = value is None or math.isfinite(value)
    return is_number and 0 < row["num_samples"] >= row["num_correct"]


@dataclass(frozen=True)
class Answered:
    """A problem of a split with its answers and what was said of each, in the same order."""

    split: str
    problem: Problem
    traces: Sequence[Trace]
    verdicts: Sequence[Verdict]
    num_parameters: int | None = None

    @property
    def credit(self) -> float | None:
        """The partial credit of the first answer, where there is a verifier that gives any."""
        return self.verdicts[0].score

    def row(self, metric: str, value: float, weight: float = 1.0) -> Row:
        """How many answers, how many of them right, and what they cost, beside a metric's value."""
        tokens_in = sum(trace.prompt_tokens for trace in self.traces)
        tokens_out = sum(trace.completion_tokens for trace in self.traces)
        reasons = [verdict.reason for verdict in self.verdicts]
        return {
            "split": self.split,
            "metric": metric,
            "problem_id": self.problem.id,
            "domain": self.problem.domain,
            "num_samples": len(self.traces),
            "num_correct": sum(_right(self.verdicts)),
            "num_failed": sum(map(_has_failed, self.traces, self.verdicts)),
            "num_truncated": reasons.count("truncated"),
            "num_unparsed": reasons.count("unparsed"),
            "num_timeout": reasons.count("timeout"),
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "flops": ledger.forward_flops(self.num_parameters or 0, tokens_in + tokens_out),
            "value": value,
            "weight": weight,
        }


def _right(verdicts: Iterable[Verdict]) -> list[bool]:
    return [verdict.correct is True for verdict in verdicts]


def _has_failed(trace: Trace, verdict: Verdict) -> bool:
    return trace.finish == "error" or verdict.correct is None


def gathered(
    splits: Mapping[str, Iterable[Problem]],
    traces: Iterable[Trace],
    verdicts: Mapping[str, Verdict],
    num_parameters: int | None,
) -> list[Answered]:
    """Every split's problems, each with its answers."""
    answers: dict[str, list[Trace]] = {}
    for trace in traces:
        answers.setdefault(trace.problem_id, []).append(trace)
    return [
        Answered(split, problem, own, [verdicts[trace.id] for trace in own], num_parameters)
        for split, problems in splits.items()
        for problem in problems
        for own in [answers[problem.id]]
    ]


def right(answered: Iterable[Answered], metric: str) -> list[Row]:
    """The share of a problem's answers that are right: pass@1 of samples, or greedy."""
    return [each.row(metric, fmean(_right(each.verdicts))) for each in answered]


def pass_at_k(answered: Iterable[Answered], ks: Iterable[int]) -> list[Row]:
    """The chance that one of k samples is right."""
    counted = [(each, len(each.verdicts), sum(_right(each.verdicts))) for each in answered]
    return [
        each.row(f"pass_at_{k}", metrics.pass_at_k(num_samples, num_correct, k))
        for k in ks
        for each, num_samples, num_correct in counted
    ]


def partial_credit(answered: Iterable[Answered]) -> list[Row]:
    """`f1`: the partial credit of greedy answers, 0 for one that failed.

    Of the problems whose verifier gives some to any of them; instructions have rows of their own.
    """
    known = [each for each in answered if _verifier(each.problem) != INSTRUCTIONS]
    giving = {str(each.problem.verifier) for each in known if each.credit is not None}
    return [
        each.row("f1", each.credit or 0.0) for each in known if str(each.problem.verifier) in giving
    ]


def instructions(answered: Iterable[Answered]) -> list[Row]:
    """IFEval's four (Zhou et al. 2023, https://arxiv.org/abs/2311.07911): prompts of which all
    instructions were followed, and single instructions, judged to the letter or forgivingly.

    A prompt weighs as many instructions as it has where these are counted one by one.
    """
    rows = []
    for each in answered:
        if _verifier(each.problem) == INSTRUCTIONS:
            for name, loose in (("strict", False), ("loose", True)):
                said = [*map(partial(_followed, each.problem, loose), each.traces, each.verdicts)]
                rows.append(each.row(f"prompt_{name}", fmean(map(all, said))))
                share = fmean(fmean(one) for one in said)
                rows.append(each.row(f"instruction_{name}", share, weight=len(said[0])))
    return rows


def rating(answered: Iterable[Answered]) -> list[Row]:
    """Of problems that have a rating: the share of answers that solve them, and as its weight how
    difficult they are. What rating that is, `metrics` finds out."""
    rated = [each for each in answered if isinstance(each.problem.meta.get("rating"), int | float)]
    return [
        each.row("rating", fmean(_right(each.verdicts)), weight=float(each.problem.meta["rating"]))
        for each in rated
    ]


def _followed(problem: Problem, loose: bool, trace: Trace, verdict: Verdict) -> list[bool]:
    """Of each instruction whether an answer follows it; one that is none follows none."""
    from limbeck.verifiers import ifeval

    if verdict.reason not in ("correct", "wrong"):
        return [False] * len(problem.meta.get("instructions") or [None])
    return ifeval.followed(problem, trace.text, loose)


def check_votes(problems: Iterable[Problem]) -> None:
    """Raises UserError if the answers to a problem cannot be held against each other."""
    for problem in problems:
        if (name := _verifier(problem)) in VOTELESS:
            what = f"verifier {name} reads no answer that others could agree with"
            raise UserError(f"problem {problem.id}", what, "leave out `cons_at`")


def cons_at_k(answered: Iterable[Answered], ks: Sequence[int]) -> list[Row]:
    """The chance that the answer that most of k samples give is right."""
    voted = [(each, votes(each.problem, each.verdicts)) for each in answered if ks]
    return [
        each.row(f"cons_at_{k}", metrics.cons_at_k(classes, _right(each.verdicts), k))
        for k in ks
        for each, classes in voted
    ]


def votes(problem: Problem, verdicts: Sequence[Verdict]) -> list[int | None]:
    """For each verdict the number of its class of equal answers; None where there is no answer.

    All that are right are one class, 0. Wrong ones are equal where the problem's own verifier finds
    one right with the other as the gold answer; each distinct text is asked about once, against the
    first of each class. What is unparsed, truncated or failed does not vote.
    """
    classes: dict[str, int] = {}
    firsts: list[str] = []
    found: list[int | None] = []
    for verdict in verdicts:
        text = verdict.extracted
        if verdict.correct:
            found.append(0)
        elif verdict.reason != "wrong" or text is None:
            found.append(None)
        else:
            if text not in classes:
                same = (i for i, first in enumerate(firsts) if _same(problem, text, first))
                place = next(same, len(firsts))
                firsts += [text] if place == len(firsts) else []
                classes[text] = place + 1
            found.append(classes[text])
    return found


def _same(problem: Problem, text: str, other: str) -> bool:
    """Whether the problem's verifier takes one answer for the other, given plainly or in a box."""
    meta = {key: value for key, value in problem.meta.items() if key != "answers"}  # other golds
    asked = replace(problem, answer=other, meta=meta)
    return any(
        judge(asked, Trace("vote", problem.id, 0, form, "stop", "vote")).correct is True
        for form in (text, f"\\boxed{{{text}}}")
    )


def rewarded(answered: Sequence[Answered], rewards: Sequence[RewardChoice]) -> list[Row]:
    """A row per reward and problem: the mean of what its answers earn."""
    distinct = {each.problem.id: each for each in answered}  # a problem may stand in two splits
    pairs = [
        (each.problem, trace, verdict)
        for each in distinct.values()
        for trace, verdict in zip(each.traces, each.verdicts, strict=True)
    ]
    problems, traces, verdicts = (list(of) for of in zip(*pairs, strict=True))
    chosen = [WeightedReward(reward=each) for each in rewards]
    _, parts = reward(chosen, problems, traces, verdicts)
    rows = []
    for name, values in parts.items():
        earned: dict[str, list[float]] = {}
        for problem, value in zip(problems, values, strict=True):
            earned.setdefault(problem.id, []).append(value or 0.0)
        rows += [each.row(name, fmean(earned[each.problem.id])) for each in answered]
    return rows


def _verifier(problem: Problem) -> str:
    return verifier_of(problem).name
