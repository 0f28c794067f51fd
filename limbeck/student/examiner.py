"""Asks a student in training, and tells what its answers earn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from limbeck import store
from limbeck.config import HowRun, ProblemsPath
from limbeck.engines.sampling import SamplingConfig
from limbeck.errors import UserError
from limbeck.plugins import EngineChoice
from limbeck.rewards.weighted import WeightedReward, score
from limbeck.student.author import Author
from limbeck.student.round_parts import RoundParts
from limbeck.train.signals import Answered, are_equal
from limbeck.types import Request, Sampling, Trace, Verdict
from limbeck.verifiers.judging import judge_all, no_one

if TYPE_CHECKING:
    from limbeck.train.training import Training


class RolloutConfig(SamplingConfig):
    """What a round is made of. The defaults are DeepSeek-R1's."""

    problems: ProblemsPath
    """What is asked, in random order, again and again."""
    rewards: Annotated[list[WeightedReward], Field(min_length=1)] = [
        WeightedReward.model_validate(name) for name in ("correct", "format")
    ]
    """What is wanted: functions of `limbeck/rewards`, with weights."""
    num_samples: PositiveInt = 16
    """Answers to each question, which are compared with each other."""
    questions_per_step: PositiveInt = 32
    """A round has so many questions for each of its steps."""
    steps_per_round: PositiveInt = 16
    """Steps that learn from what was written at once, each from a random share of it."""
    refill: Annotated[int, Field(ge=0)] = 0
    """Draws of questions, at most, in the place of those whose answers all earn the same (DAPO)."""
    max_tokens: PositiveInt = 32_768
    """A text that has not ended by then is truncated, and learned from as far as it goes."""
    engine: EngineChoice | None = None
    """Who writes with the student's weights, if not the local engine: one that can load them."""
    batch_rows: HowRun[PositiveInt] = 512
    """Texts that the local engine writes at once."""

    def learned_sampling(self) -> Sampling:
        """The distribution that learns: that of the texts, or, if these are greedy, as it is."""
        return self.sampling() if self.temperature else Sampling()


class Examiner:
    """Draws questions, has the student answer them, and its answers judged and rewarded.

    All processes refresh it together; the leader alone examines.
    """

    def __init__(self, config: RolloutConfig, training: Training, parts: RoundParts) -> None:
        self.config, self.training, self.parts = config, training, parts
        self.out = training.out
        self.author: Author | None = None

    def refresh(self) -> None:
        """Asks the student as it is now, from now on."""
        training, config = self.training, self.config
        if self.author is not None:
            return self.author.refresh()
        engine = config.engine() if config.engine and self.out.leads else None
        if engine and not hasattr(engine, "load_weights"):
            what = f"{engine.name} cannot take the weights of a student in training"
            raise UserError("engine", what, "leave it out, or take vllm")
        name, rows = self.out.name, config.batch_rows
        student, tokenizer, dtype = training.student, training.tokenizer, training.autocast
        self.author = Author(student, tokenizer, name, rows, engine, dtype)

    def examine(self, first: int, num: int) -> list[Answered]:
        """So many questions from number `first` on, answered.

        With `refill` as many are added as teach nothing, as often as that says.
        """
        groups: list[Answered] = []
        lacking, draws = num, 1 + self.config.refill
        while lacking and draws:
            groups += self.reward(self._answers(first + len(groups), lacking))
            lacking = num - sum(map(teaches, groups))
            draws -= 1
        return groups

    def reward(self, traces: list[Trace], verdicts: list[Verdict] | None = None) -> list[Answered]:
        """Traces with their rewards, and verdicts, if these are not there yet."""
        problems = [self.parts.problems[trace.problem_id] for trace in traces]
        if verdicts is None:
            pairs = [*zip(problems, traces, strict=True)]
            verdicts = judge_all(pairs, self.out, None, no_one)
        with self.out.account("rewards"):
            total, parts = score(self.config.rewards, problems, traces, verdicts)
        return self.parts.grouped(traces, verdicts, total, parts)

    def _answers(self, first: int, num: int) -> list[Trace]:
        """All samples of these questions."""
        assert self.author is not None, "refresh comes first"
        with self.out.account("rollouts part") as account:
            traces = self.author.write(self._requests(first, num), self.config.sampling())
            account["tokens_in"] = sum(trace.prompt_tokens for trace in traces)
            account["tokens_out"] = sum(trace.completion_tokens for trace in traces)
            account["flops"] = self.author.flops(traces)
        if any(len(trace.token_ids or ()) != len(trace.logprobs or ()) for trace in traces):
            what = "tells no log-probabilities of its tokens"
            raise UserError("engine", what, "leave it out, or take vllm")
        return traces

    def _requests(self, first: int, num: int) -> list[Request]:
        """Questions in random order, again and again; each time with further samples."""
        from limbeck.train.examples import endless

        problems, num_samples = [*self.parts.problems.values()], self.config.num_samples
        seed, name = self.training.config.seed, self.out.name
        order = endless(len(problems), store.seed_of(seed, name, "questions"))
        requests = []
        for place, row in enumerate(islice(order, first, first + num), first):
            problem, visit = problems[row], place // len(problems)
            for index in range(visit * num_samples, (visit + 1) * num_samples):
                own_seed = store.seed_of(seed, name, problem.id, index)
                row_id = self.out.row_id(problem.id, index)
                requests.append(Request(row_id, problem, index, own_seed))
        return requests


def has_answers(group: Answered) -> bool:
    """Whether its question had room in the student's context."""
    return all(trace.token_ids for trace in group.traces)


def teaches(group: Answered) -> bool:
    """Whether it has answers, and these earn different rewards."""
    return has_answers(group) and not are_equal(group.rewards)


def learned_from(groups: Sequence[Answered], config: RolloutConfig) -> list[Answered]:
    """Those that are learned from: with `refill` those that teach, unless they are too few.

    UserError where hardly a question could be answered.
    """
    answered = [group for group in groups if has_answers(group)]
    if len(answered) * config.num_samples < config.steps_per_round:
        what = f"of {len(groups):,} questions {len(answered):,} have room in the student's context"
        raise UserError(config.problems, what, "raise context, or ask shorter questions")
    teaching = [group for group in answered if teaches(group)] if config.refill else []
    has_enough = len(teaching) * config.num_samples >= config.steps_per_round
    return teaching if has_enough else answered
