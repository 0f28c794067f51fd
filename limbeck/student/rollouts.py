"""Rounds of reinforcement learning: what an examiner brings home, kept, and read by the steps.

All that a round needs lies on disk before its first step: whoever resumes reads it back, and learns
from it what an undisturbed training does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck import chat, ledger, processes, tables
from limbeck.rewards.weighted import check_domains
from limbeck.student.examiner import Examiner, RolloutConfig, has_answers, learned_from
from limbeck.student.round_parts import WRITTEN, RoundParts
from limbeck.train.signals import Answered, signals
from limbeck.verifiers.judging import check_model

if TYPE_CHECKING:
    from limbeck.train.advantages import Table
    from limbeck.train.old_logprobs import Own
    from limbeck.train.training import Training

COUNTED = ("questions", "texts", "tokens", "learned", "failed")


@dataclass(frozen=True)
class Round:
    """What was written at once: all `groups`, and of these the ones that are `learned` from.

    `prompts` are the tokens of their questions by problem, `own` the trainer's own
    log-probabilities by trace, where they are needed.
    """

    number: int
    groups: list[Answered]
    learned: list[Answered]
    prompts: Mapping[str, list[int]]
    own: Mapping[str, Own]

    @property
    def rewards(self) -> Table:
        """What the answers that are learned from earned, (groups, G)."""
        import numpy as np

        return np.array([group.rewards for group in self.learned], np.float64)


class Rounds:
    """The rounds of a training, one after another; `told` is what the present one says of itself.

    The training's state `rollouts` counts what they came to.
    """

    def __init__(self, config: RolloutConfig, training: Training, needs_own: bool) -> None:
        self.config, self.training, self.needs_own = config, training, needs_own
        self.out, self.problems = training.out, tables.read_lessons(config.problems)
        check_model(self.problems, None)
        check_domains(config.rewards, self.problems, f"{training.out.name}.rewards")
        self.parts = RoundParts(training.out, self.problems, config.num_samples)
        self.num_questions = config.questions_per_step * config.steps_per_round
        self.examiner = Examiner(config, training, self.parts)
        self.round: Round | None = None
        self.told: dict[str, Any] = {}
        training.state.setdefault("rollouts", dict.fromkeys(COUNTED, 0))

    def plan(self) -> str:
        """What is about to be done, in a line."""
        training, config = self.training, self.config
        num, step = training.num_steps, training.state["step"]
        steps = f"{num:,} steps" if num else "as far as the budget goes"
        problems = f"{len(self.parts.problems):,} problems"
        going_on = f", going on at step {step:,}" if step else ""
        return (
            f"{training.num_parameters:,} parameters, {problems}, {steps}; "
            f"rounds of {self.num_questions:,} x {config.num_samples} answers for "
            f"{config.steps_per_round} steps{going_on}"
        )

    def account(self) -> dict[str, Any]:
        """How the answers ended, for a stage's summary."""
        counts = self.training.state["rollouts"]
        num, learned, failed = counts["texts"], counts["learned"], counts["failed"]
        balance = self.out.balance(num, learned, num - learned - failed, failed)
        return {"accounts": balance, "rollouts": counts}

    def at(self, step: int) -> Round:
        """The round that a step learns from: written before its first step, else read back."""
        number, place = divmod(step, self.config.steps_per_round)
        if self.round is None or self.round.number != number:
            if place == 0:
                self._write(number)
            self.round = self._read(number)
            answered = [group for group in self.round.groups if has_answers(group)]
            self.told = {"round": number + 1, **signals(answered)}
            self.told["refilled"] = len(self.round.groups) - self.num_questions
            if place == 0:
                self._count(self.round)
        return self.round

    def _write(self, number: int) -> None:
        """Makes what is not there of a round, or not whole."""
        with self.training.aside():
            if self.out.leads:
                self.parts.mend(number)
            if not processes.agreed(all(self.parts.has(name, number) for name in WRITTEN)):
                self.examiner.refresh()
                if self.out.leads:
                    groups = self._examined(number)
                    self.parts.write(number, groups, learned_from(groups, self.config))
                processes.gather(None)  # nobody reads before it is there
            if self.needs_own and not processes.agreed(self.parts.has("own", number)):
                self._measure(number)
                processes.gather(None)

    def _examined(self, number: int) -> list[Answered]:
        """A new round, or one whose answers lie there: a kill came behind them."""
        if not self.parts.has("rollouts", number):
            first = self.training.state["rollouts"]["questions"]
            return self.examiner.examine(first, self.num_questions)
        verdicts = self.parts.verdicts(number) if self.parts.has("verdicts", number) else None
        return self.examiner.reward(self.parts.traces(number), verdicts)

    def _measure(self, number: int) -> None:
        """Keeps the trainer's own log-probabilities of what is learned."""
        from limbeck.train.batch import Group, Output, pack_groups
        from limbeck.train.old_logprobs import own_logprobs

        training, groups = self.training, self.parts.read(number)[1]
        prompts = self._prompts(groups)
        packed = [
            Group(
                prompts[group.problem.id],
                [Output([*(trace.token_ids or ())], name=trace.id) for trace in group.traces],
            )
            for group in groups
        ]
        room, device = training.config.micro_batch_tokens, self.out.machine.device
        batches = pack_groups(packed, room, device)
        with self.out.account("old log-probabilities") as account:
            account["tokens_in"] = _num_tokens(groups)
            account["flops"] = ledger.forward_flops(training.num_parameters, account["tokens_in"])
            sampling = self.config.learned_sampling()
            own = own_logprobs(training.model, batches, sampling, training.autocast)
        if self.out.leads:
            self.parts.write_own(number, own)

    def _read(self, number: int) -> Round:
        groups, learned = self.parts.read(number)
        own = self.parts.own(number) if self.needs_own else {}
        return Round(number, groups, learned, self._prompts(learned), own)

    def _prompts(self, groups: Sequence[Answered]) -> dict[str, list[int]]:
        problems = {group.problem.id: group.problem for group in groups}
        tokenizer = self.training.tokenizer
        return {
            name: chat.prompt_ids(tokenizer, problem.messages) for name, problem in problems.items()
        }

    def _count(self, round: Round) -> None:
        """What a new round has come to, and has cost: the same, whoever wrote it and when."""
        state = self.training.state
        traces = [trace for group in round.groups for trace in group.traces]
        written = sum(trace.completion_tokens for trace in traces)
        found = {
            "questions": len(round.groups),
            "texts": len(traces),
            "tokens": written,
            "learned": sum(len(group.traces) for group in round.learned),
            "failed": sum(not trace.token_ids for trace in traces),
        }
        if found["failed"]:
            num = sum(not has_answers(group) for group in round.groups)
            self.out.log(f"round {round.number + 1}: {num:,} questions have no room, left out")
        before = state["rollouts"]
        state["rollouts"] = {name: before[name] + num for name, num in found.items()}
        tokens = written + sum(trace.prompt_tokens for trace in traces)
        tokens += _num_tokens(round.learned) if self.needs_own else 0
        state["flops"] += ledger.forward_flops(self.training.num_parameters, tokens)


def _num_tokens(groups: Sequence[Answered]) -> int:
    """Of the answers, and of each question once."""
    return sum(
        group.traces[0].prompt_tokens + sum(trace.completion_tokens for trace in group.traces)
        for group in groups
    )
