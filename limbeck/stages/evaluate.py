"""evaluate: pass@1 over several samples, pass@k, greedy and its partial credit, rewards.

On one or more splits; every metric with its value for each problem.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from statistics import fmean
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck import ledger, metrics, tables
from limbeck.config import Extent, ProblemsPath
from limbeck.engines.asking import JudgeConfig
from limbeck.engines.sampling import SamplingConfig, requests_for, write_missing
from limbeck.folder import StageFolder
from limbeck.plugins import EngineChoice, RewardChoice
from limbeck.rewards.weighted import WeightedReward
from limbeck.rewards.weighted import score as reward
from limbeck.types import Generator, Problem, Sampling, Trace, Verdict
from limbeck.verifiers.judging import check_model, judge_all, needs_model, verifier_of

WRITES = {"scores": "scores", "pass_at_1": "traces", "greedy": "traces", "judgements": "traces"}
RESUMES = True
EXTENDS = True
USES = ("limbeck.verifiers",)


class Config(SamplingConfig, JudgeConfig):
    engine: EngineChoice
    """The model under test."""
    problems: Annotated[dict[str, ProblemsPath], Field(min_length=1)]
    """Splits by name, `heldout: ./collect/heldout` for instance."""
    num_samples: Extent[Annotated[int, Field(ge=0)]] = 4
    """Samples per problem for pass@1, which is their mean; 0 leaves it out."""
    pass_at: list[Annotated[int, Field(ge=2)]] = []
    """For which k to tell pass@k, the chance that one of k samples is right, too."""
    rewards: list[RewardChoice] = []
    """What else to measure of the answers: a metric of each reward's name."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.6
    """As in the paper; greedy decoding is reported beside it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_tokens: PositiveInt = 32_768
    greedy: bool = True
    """Also one answer per problem at temperature 0."""
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.num_samples and not self.greedy:
            raise ValueError("neither samples nor greedy is left; set one of the two")
        if self.pass_at and max(self.pass_at) > self.num_samples:
            what = f"pass_at: {max(self.pass_at)} is more than num_samples"
            raise ValueError(f"{what}, {self.num_samples}; draw as many")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes the answers of each metric, and `scores`, one row per split, metric and problem."""
    splits = {name: tables.read_problems(path) for name, path in config.problems.items()}
    asked = {problem.id: problem for problems in splits.values() for problem in problems}
    ask = config.asker(out)
    check_model(asked.values(), ask)
    engine: Generator = config.engine()
    drawn = config.sampling()
    greedy = Sampling(0.0, max_tokens=config.max_tokens, stop=tuple(config.stop))
    rounds = [("pass_at_1", drawn, config.num_samples), ("greedy", greedy, int(config.greedy))]
    answers: dict[str, list[Trace]] = {}
    for metric, sampling, num_samples in rounds:
        if num_samples:
            requests = requests_for([*asked.values()], num_samples, config.seed, out, metric)
            write_missing(engine, requests, sampling, out.path / metric, out)
            traces = tables.read_traces(out.path / metric)
            answers[metric] = [trace for trace in traces if trace.index < num_samples]
    pairs = [(asked[t.problem_id], t) for traces in answers.values() for t in traces]
    with out.progress(len(pairs), "verdicts") as advance:
        judged = judge_all(pairs, out, ask, advance)
    verdicts = {verdict.trace_id: verdict for verdict in judged}
    rows = [
        score_row
        for metric, traces in answers.items()
        for score_row in score(splits, metric, traces, verdicts, engine)
    ]
    rows += pass_at_k(rows, config.pass_at)
    rows += rewarded(rows, config.rewards, asked, next(iter(answers.values())), verdicts)
    shutil.rmtree(out.path / "scores", ignore_errors=True)  # of before an extension
    tables.write_part(out.path / "scores", tables.to_table("scores", rows))
    results = metrics.summarise(rows, ("split", "metric"))
    for row in results:
        out.log(_in_words(row))
    return {
        "model": engine.name,
        "num_parameters": engine.num_parameters,
        "results": results,
        "judged_by_model": sum(needs_model(verifier_of(problem)) for problem, _ in pairs),
    }


def score(
    splits: dict[str, list[Problem]],
    metric: str,
    traces: list[Trace],
    verdicts: dict[str, Verdict],
    engine: Generator,
) -> list[dict[str, Any]]:
    """One row per split and problem: how many samples, how many right, what they cost.

    Greedy answers have a second one, `f1`, if their verifier gives partial credit; its value is
    that, and 0 for an answer that failed.
    """
    answers: dict[str, list[Trace]] = {}
    for trace in traces:
        answers.setdefault(trace.problem_id, []).append(trace)
    rows = []
    credited: list[tuple[Problem, dict[str, Any], float | None]] = []
    for split, problems in splits.items():
        for problem in problems:
            said = [verdicts[trace.id] for trace in answers[problem.id]]
            about = {"split": split, "metric": metric, "problem_id": problem.id}
            row = about | {"domain": problem.domain} | _count(answers[problem.id], said, engine)
            rows.append(row)
            credited.append((problem, row, said[0].score))
    if metric == "greedy":
        giving = {str(problem.verifier) for problem, _, credit in credited if credit is not None}
        rows += [
            {**row, "metric": "f1", "value": credit or 0.0}
            for problem, row, credit in credited
            if str(problem.verifier) in giving
        ]
    return rows


def pass_at_k(rows: list[dict[str, Any]], ks: list[int]) -> list[dict[str, Any]]:
    """The rows of pass@k that follow from those of pass@1."""
    drawn = [row for row in rows if row["metric"] == "pass_at_1"]
    return [
        {
            **row,
            "metric": f"pass_at_{k}",
            "value": metrics.pass_at_k(row["num_samples"], row["num_correct"], k),
        }
        for k in ks
        for row in drawn
    ]


def rewarded(
    rows: list[dict[str, Any]],
    rewards: list[RewardChoice],
    asked: Mapping[str, Problem],
    traces: list[Trace],
    verdicts: Mapping[str, Verdict],
) -> list[dict[str, Any]]:
    """A row per reward and problem: the mean of what its answers earn.

    Those are the samples of pass@1, or the greedy ones without any.
    """
    problems = [asked[trace.problem_id] for trace in traces]
    judged = [verdicts[trace.id] for trace in traces]
    chosen = [WeightedReward(reward=each) for each in rewards]
    _, parts = reward(chosen, problems, traces, judged)
    found = []
    for name, values in parts.items():
        earned: dict[str, list[float]] = {}
        for problem, value in zip(problems, values, strict=True):
            earned.setdefault(problem.id, []).append(value or 0.0)
        means = {problem: fmean(of) for problem, of in earned.items()}
        found += [
            {**row, "metric": name, "value": means[row["problem_id"]]}
            for row in rows
            if row["metric"] == rows[0]["metric"]
        ]
    return found


def _in_words(row: dict[str, Any]) -> str:
    form = ".3f" if "unit" in row else ".1%"
    told = f"{row['split']:<10} {row['metric']:<10} {row['value']:6{form}}"
    if row["low"] is not None:
        told += f"  ({row['low']:{form}} to {row['high']:{form}})"
    failed = f"; {row['failed']:.1%} failed and count as wrong" if row["failed"] else ""
    return told + failed


def _count(traces: list[Trace], said: list[Verdict], engine: Generator) -> dict[str, Any]:
    """What all answers to a problem come to."""
    failures = [
        trace.finish == "error" or verdict.correct is None
        for trace, verdict in zip(traces, said, strict=True)
    ]
    tokens_in = sum(trace.prompt_tokens for trace in traces)
    tokens_out = sum(trace.completion_tokens for trace in traces)
    num_correct = sum(verdict.correct is True for verdict in said)
    return {
        "num_samples": len(traces),
        "num_correct": num_correct,
        "num_failed": sum(failures),
        "num_truncated": sum(verdict.reason == "truncated" for verdict in said),
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "flops": ledger.forward_flops(engine.num_parameters or 0, tokens_in + tokens_out),
        "value": num_correct / len(traces),
        "weight": 1.0,
    }
