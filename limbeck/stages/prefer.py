"""prefer: pairs of answers to one question, the better one first: what a reward model learns from.

As DeepSeek-R1's helpfulness pairs were made (2501.12948v2, 3.1): a judge compares two answers four
times with their positions randomised, the scores are averaged, a pair is kept where they differ by
more than 1, and the lengths of chosen and rejected answers are balanced.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from limbeck import store, tables
from limbeck.config import ProblemsPath, TracesPath, VerdictsPath
from limbeck.engines.asking import Asker, JudgeConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import EngineChoice, RewardChoice
from limbeck.rewards.reading import Reads, reading
from limbeck.rewards.weighted import WeightedReward, score
from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers.preference import compare, preference

WRITES = {"pairs": "pairs", "heldout": "pairs", "judgements": "traces"}
RESUMES = True
USES = ("limbeck.verifiers", "limbeck.rewards")
PAIRS_AT_ONCE = 4096  # that a judge is asked about
UNCLEAR = "the judge was unclear"


class Config(JudgeConfig):
    problems: ProblemsPath
    """What was asked."""
    traces: TracesPath
    """The answers, several to each problem."""
    judge: EngineChoice | None = None
    """The model that compares two answers, or"""
    rule: RewardChoice | None = None
    """a reward in its place: of two answers the one that it gives more is better."""
    verdicts: VerdictsPath | None = None
    """What `rule` may know of each answer; by default nobody has judged them."""
    reads: Reads = "summary"
    """What is compared, and whose length is balanced: what follows the thinking, or all of it."""
    num_pairs: PositiveInt = 1
    """Pairs of each problem's answers, drawn at random."""
    num_times: Annotated[PositiveInt, Field(multiple_of=2)] = 4
    """How often a judge compares a pair: each answer stands in front half of the times."""
    min_difference: NonNegativeFloat = 1.0
    """A pair is kept where its scores differ by more; a judge's mean lies between -2 and 2."""
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of problems whose pairs nobody learns from."""
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.judge is None) == (self.rule is None):
            raise ValueError("somebody must say which answer is better; set one of judge and rule")
        return self


@dataclass(frozen=True)
class Pair:
    """Two answers to one problem, the better one first once `margin` is known."""

    problem: Problem
    answers: tuple[Trace, Trace]
    lengths: tuple[int, int]
    margin: float = field(default=0.0)

    @property
    def favours(self) -> int:
        """1 where the longer answer is the better one, -1 where the shorter is, else 0."""
        better, worse = self.lengths
        return (better > worse) - (better < worse)


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `pairs` and `heldout`. Every pair that was drawn is in one of them, or was dropped.

    Of the pairs that are learned from, the longer answer is the better one in as many as the
    shorter is. Held-out ones stay as they fell: how far length alone leads is measured on them.
    """
    for name in ("pairs", "heldout"):
        store.remove_tree(out.path / name)
    answers, passed_over = _answers(config)
    pairs = [pair for problem, traces in answers for pair in draw(problem, traces, config)]
    if not pairs:
        what = "no problem has two answers that differ"
        raise UserError(config.traces, what, "sample more of them, at a higher temperature")
    dropped: Counter[str] = Counter()
    with out.account("compare"):
        kept = list(_decided(config, pairs, out, dropped))
    heldout = [pair for pair in kept if is_held_out(pair.problem, config)]
    learned = [pair for pair in kept if not is_held_out(pair.problem, config)]
    learned = balanced(learned, store.seed_of(config.seed, out.name, "balance"), dropped)
    told = " · ".join(f"{num:,} {why}" for why, num in dropped.most_common())
    if not learned:
        way_out = "lower min_difference, or sample answers that differ more"
        raise UserError(out.name, f"has no pairs left ({told})", way_out)
    for name, chosen in {"pairs": learned, "heldout": heldout}.items():
        rows = [_row(pair, out) for pair in chosen]
        tables.write_part(out.path / name, tables.to_table("pairs", rows))
    out.log(f"{len(learned):,} pairs, {len(heldout):,} held out{told and ' · '}{told}")
    ok, failed = len(learned) + len(heldout), dropped[UNCLEAR]
    return {
        "accounts": out.balance(len(pairs), ok, dropped.total() - failed, failed),
        "dropped": dict(dropped.most_common()),
        "answers_passed_over": dict(passed_over.most_common()),
        "pairs": about(learned),
        "heldout": about(heldout),
    }


def _answers(config: Config) -> tuple[list[tuple[Problem, list[Trace]]], Counter[str]]:
    """Each problem's answers that can be compared, each text once; why the others are none."""
    answers: dict[str, dict[str, Trace]] = {}
    passed_over: Counter[str] = Counter()
    for trace in tables.read_traces(config.traces):
        text, known = reading(trace.text, config.reads), answers.setdefault(trace.problem_id, {})
        if trace.finish != "stop":
            passed_over["unfinished"] += 1
        elif not text:
            passed_over["nothing to read"] += 1
        elif text in known:
            passed_over["said before"] += 1
        else:
            known[text] = trace
    problems = tables.read_lessons(config.problems)
    return [(p, [*answers.get(p.id, {}).values()]) for p in problems], passed_over


def draw(problem: Problem, traces: Sequence[Trace], config: Config) -> list[Pair]:
    """At most `num_pairs` of a problem's answers, each two at most once, in random positions."""
    drawn = random.Random(store.seed_of(config.seed, problem.id))
    every = list(combinations(traces, 2))
    pairs = []
    for both in drawn.sample(every, min(config.num_pairs, len(every))):
        first, second = drawn.sample(both, 2)
        lengths = len(reading(first.text, config.reads)), len(reading(second.text, config.reads))
        pairs.append(Pair(problem, (first, second), lengths))
    return pairs


def _decided(
    config: Config, pairs: Sequence[Pair], out: StageFolder, dropped: Counter[str]
) -> Iterator[Pair]:
    """The pairs whose scores differ enough, the better answer first."""
    ask = config.asker(out)
    differences = _by_rule(config, pairs) if ask is None else _by_judge(ask, config, pairs, out)
    for pair, difference in zip(pairs, differences, strict=True):
        if difference is None:
            dropped[UNCLEAR] += 1
        elif abs(difference) <= config.min_difference:
            dropped["too close"] += 1
        elif difference > 0:
            yield replace(pair, margin=difference)
        else:
            yield Pair(pair.problem, pair.answers[::-1], pair.lengths[::-1], -difference)


def _by_rule(config: Config, pairs: Sequence[Pair]) -> Iterator[float | None]:
    """How much more the rule gives the first answer of each pair."""
    assert config.rule is not None
    verdicts = (
        {v.trace_id: v for v in tables.read_verdicts(config.verdicts)} if config.verdicts else {}
    )
    both = [(pair.problem, trace) for pair in pairs for trace in pair.answers]
    said = [verdicts.get(t.id) or Verdict(t.id, None, None, "unparsed") for _, t in both]
    problems, traces = [problem for problem, _ in both], [trace for _, trace in both]
    rewards, _ = score([WeightedReward(reward=config.rule)], problems, traces, said)
    yield from (first - second for first, second in zip(rewards[::2], rewards[1::2], strict=True))


def _by_judge(
    ask: Asker, config: Config, pairs: Sequence[Pair], out: StageFolder
) -> Iterator[float | None]:
    """How much better the judge finds the first answer of each pair, -2 to 2."""
    with out.progress(len(pairs), "pairs") as advance:
        for begin in range(0, len(pairs), PAIRS_AT_ONCE):
            asked = [_questions(pair, config) for pair in pairs[begin : begin + PAIRS_AT_ONCE]]
            replies = ask([question for questions in asked for question in questions])
            for questions in asked:
                yield preference(questions, replies)
                advance(1)


def _questions(pair: Pair, config: Config) -> list[Problem]:
    first, second = (reading(trace.text, config.reads) for trace in pair.answers)
    question, seed = pair.problem.question, config.seed
    return compare(question, first, second, num_times=config.num_times, seed=seed)


def balanced(pairs: Sequence[Pair], seed: int, dropped: Counter[str]) -> list[Pair]:
    """As many pairs whose longer answer is the better one as whose shorter is.

    The surplus of either is dropped at random; pairs of equal length stay.
    """
    surplus = sum(pair.favours for pair in pairs)
    many = 1 if surplus > 0 else -1
    candidates = [index for index, pair in enumerate(pairs) if pair.favours == many]
    out = set(random.Random(seed).sample(candidates, abs(surplus)))
    if out:
        dropped[f"balanced away: the {'longer' if many > 0 else 'shorter'} won"] += len(out)
    return [pair for index, pair in enumerate(pairs) if index not in out]


def is_held_out(problem: Problem, config: Config) -> bool:
    """Whether all pairs of a problem are."""
    share: float = store.seed_of(config.seed, "heldout", problem.id) / 2**64
    return share < config.heldout_share


def about(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What some pairs are like: their number, mean margin and lengths, and who won by length."""
    num = max(1, len(pairs))
    return {
        "num": len(pairs),
        "margin": sum(pair.margin for pair in pairs) / num,
        "chosen_length": sum(pair.lengths[0] for pair in pairs) / num,
        "rejected_length": sum(pair.lengths[1] for pair in pairs) / num,
        "longer_won": sum(pair.favours == 1 for pair in pairs) / num,
        "shorter_won": sum(pair.favours == -1 for pair in pairs) / num,
    }


def _row(pair: Pair, out: StageFolder) -> dict[str, Any]:
    better, worse = pair.answers
    return {
        "id": out.row_id(pair.problem.id, 0, f"{better.id} {worse.id}"),
        "problem_id": pair.problem.id,
        "messages": [{"role": m.role, "content": m.content} for m in pair.problem.messages],
        "chosen": better.text,
        "rejected": worse.text,
        "margin": pair.margin,
        "chosen_length": pair.lengths[0],
        "rejected_length": pair.lengths[1],
    }
