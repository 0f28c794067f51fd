"""evaluate: pass@1 over several samples, pass@k, cons@k, greedy and its partial credit, rewards.

On one or more splits; every metric with its value for each problem, and all that the numbers
depend on in `evaluation/manifest.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck import metrics, pins, prompting, scoring, store, tables
from limbeck.config import DatasetPath, Extent, ProblemsPath
from limbeck.engines.asking import JudgeConfig
from limbeck.engines.sampling import SamplingConfig, requests_for, write_missing
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import EngineChoice, PromptingChoice, RewardChoice
from limbeck.prompting import Example
from limbeck.scoring import Answered
from limbeck.types import Generator, Problem, Sampling, Trace
from limbeck.verifiers.judging import check_model, judge_all, needs_model, verifier_of

WRITES = {
    "scores": "scores",
    "pass_at_1": "traces",
    "greedy": "traces",
    "judgements": "traces",
    "evaluation": "evaluation",
}
RESUMES = True
EXTENDS = True
USES = ("limbeck.verifiers",)
MOST_EXAMPLES = 64  # more fit into no prompt
MOST_VOTES = 1000  # the ways to draw from more are too many for a float
SHARES = ("failed", "truncated", "unparsed", "timed_out")


class Config(SamplingConfig, JudgeConfig):
    engine: EngineChoice
    """The model under test."""
    problems: Annotated[dict[str, ProblemsPath], Field(min_length=1)]
    """Splits by name, `heldout: ./collect/heldout` for instance."""
    num_samples: Extent[Annotated[int, Field(ge=0)]] = 4
    """Samples per problem for pass@1, which is their mean; 0 leaves it out."""
    pass_at: Extent[list[Annotated[int, Field(ge=2)]]] = []
    """For which k to tell pass@k, the chance that one of k samples is right, too;"""
    cons_at: Extent[list[Annotated[int, Field(ge=2)]]] = []
    """and for which cons@k, the chance that the answer that most of k samples give is right."""
    prompting: PromptingChoice | None = None
    """How the problems are put: a function of `limbeck/prompting.py`; else as they are."""
    examples: DatasetPath | None = None
    """Worked examples to put before each problem, where `prompting` shows some."""
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
        for name, ks in (("pass_at", self.pass_at), ("cons_at", self.cons_at)):
            if ks and max(ks) > self.num_samples:
                what = f"{name}: {max(ks)} is more than num_samples"
                raise ValueError(f"{what}, {self.num_samples}; draw as many")
        if self.cons_at and self.num_samples > MOST_VOTES:
            what = f"cons_at counts the votes of at most {MOST_VOTES:,} samples"
            raise ValueError(f"{what}; draw fewer, or leave it out")
        shows = self.prompting and self.prompting.function is prompting.few_shot_cot
        if shows and not self.examples:
            raise ValueError("few_shot_cot has no examples to show; set `examples`")
        if self.examples and not self.prompting:
            raise ValueError("nobody shows the examples; set prompting: few_shot_cot")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes the answers of each metric, `scores`, one row per split, metric and problem, and what
    the numbers depend on."""
    splits = {name: tables.read_problems(path) for name, path in config.problems.items()}
    asked = by_id(splits)
    ask = config.asker(out)
    check_model(asked.values(), ask)
    if config.cons_at:
        scoring.check_votes(asked.values())
    prompted = put(config, asked.values())
    engine: Generator = config.engine()
    answers = answer(config, engine, prompted, out)
    pairs = [(asked[t.problem_id], t) for traces in answers.values() for t in traces]
    with out.progress(len(pairs), "verdicts") as advance:
        judged = judge_all(pairs, out, ask, advance)
    verdicts = {verdict.trace_id: verdict for verdict in judged}
    answered = {
        metric: scoring.gathered(splits, traces, verdicts, engine.num_parameters)
        for metric, traces in answers.items()
    }
    rows = score(config, answered)
    shutil.rmtree(out.path / "scores", ignore_errors=True)  # of before an extension
    tables.write_part(out.path / "scores", tables.to_table("scores", rows))
    results = metrics.summarise(rows, ("split", "metric"))
    for row in results:
        out.log(in_words(row))
    store.write_json(
        out.path / "evaluation" / "manifest.json", manifest(config, out, engine, answers, results)
    )
    return {
        "model": engine.name,
        "num_parameters": engine.num_parameters,
        "results": results,
        "judged_by_model": sum(needs_model(verifier_of(problem)) for problem, _ in pairs),
    }


def by_id(splits: Mapping[str, Iterable[Problem]]) -> dict[str, Problem]:
    """The problems of all splits, of which one may stand in several, but once in each.

    UserError for an id that two problems share: the answers to one would count as the other's.
    """
    found: dict[str, Problem] = {}
    for split, problems in splits.items():
        seen = set()
        for problem in problems:
            first = found.setdefault(problem.id, problem)
            is_same = (first.messages, first.answer) == (problem.messages, problem.answer)
            if problem.id in seen or not is_same:
                what = "another problem has this id"
                raise UserError(f"{split}: problem {problem.id}", what, "give each its own, once")
            seen.add(problem.id)
    return found


def put(config: Config, problems: Iterable[Problem]) -> list[Problem]:
    """The problems as they are asked."""
    if config.prompting is None:
        return [*problems]
    examples: list[Example] = []
    if config.examples:
        batches = tables.iter_batches(config.examples)
        rows = (row for batch in batches for row in batch.to_pylist())
        examples = [Example.of(row) for row in islice(rows, MOST_EXAMPLES)]
    found = [config.prompting(problem, examples) for problem in problems]
    if strange := [a.id for a, b in zip(problems, found, strict=True) if a.id != b.id]:
        what = f"changes the id of problem {strange[0]}"
        raise UserError(f"prompting {config.prompting.name}", what, "leave ids as they are")
    return found


def answer(
    config: Config, engine: Generator, problems: list[Problem], out: StageFolder
) -> dict[str, list[Trace]]:
    """What the model answers, sampled and greedy; what was there before is not asked for again."""
    drawn = config.sampling()
    greedy = Sampling(0.0, max_tokens=config.max_tokens, stop=tuple(config.stop))
    rounds = [("pass_at_1", drawn, config.num_samples), ("greedy", greedy, int(config.greedy))]
    answers: dict[str, list[Trace]] = {}
    for metric, sampling, num_samples in rounds:
        if num_samples:
            requests = requests_for(problems, num_samples, config.seed, out, metric)
            write_missing(engine, requests, sampling, out.path / metric, out)
            traces = tables.read_traces(out.path / metric)
            answers[metric] = [trace for trace in traces if trace.index < num_samples]
    return answers


def score(config: Config, answered: dict[str, list[Answered]]) -> list[dict[str, Any]]:
    """The score rows of every metric; instructions, ratings and rewards are of the samples, or of
    the greedy answers without any."""
    samples, greedy = answered.get("pass_at_1", []), answered.get("greedy", [])
    return [
        *scoring.right(samples, "pass_at_1"),
        *scoring.right(greedy, "greedy"),
        *scoring.partial_credit(greedy),
        *scoring.pass_at_k(samples, config.pass_at),
        *scoring.cons_at_k(samples, config.cons_at),
        *scoring.instructions(samples or greedy),
        *scoring.rating(samples or greedy),
        *scoring.rewarded(samples or greedy, config.rewards),
    ]


def manifest(
    config: Config,
    out: StageFolder,
    engine: Generator,
    answers: dict[str, list[Trace]],
    results: list[dict[str, Any]],
) -> dict[str, Any]:
    """All that the numbers depend on, and the numbers: what `limbeck evaluate --from` asks for."""
    begun = store.read_sealed(out.path / "started.json")
    knobs = config.engine.knobs
    return {
        "kind": pins.KIND,
        "stage": out.name,
        "key": out.key,
        "model": {"name": engine.name, "url": knobs.get("base_url")},
        "dtype": knobs.get("dtype"),
        "sampling": asdict(config.sampling()),
        "seeds": {"seed": config.seed, "rule": pins.SEEDS},
        "config": pins.complete(pins.within(config, out.path.parent)),
        "inputs": pins.of_inputs(config),
        "sources": begun["identity"]["source of"],
        "machine": begun["machine"],
        "versions": begun["versions"],
        "answers": pins.of_answers(answers),
        "results": results,
    }


def in_words(row: dict[str, Any]) -> str:
    """A result in a line, with the answers that are none."""
    form = ".3f" if "unit" in row else ".1%"
    told = f"{row['split']:<10} {row['metric']:<10} {row['value']:6{form}}"
    if row["low"] is not None:
        told += f"  ({row['low']:{form}} to {row['high']:{form}})"
    shares = [f"{row[name]:.1%} {name.replace('_', ' ')}" for name in SHARES if row.get(name)]
    return told + (f"; counted as wrong: {', '.join(shares)}" if shares else "")
