"""Looks at a student while it trains: its held-out loss, how often its answers are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from limbeck import ledger, processes, tables
from limbeck.errors import UserError
from limbeck.student.author import Author, pass_at_1
from limbeck.train.config import LessonsConfig
from limbeck.types import Sampling
from limbeck.verifiers.judging import check_model

if TYPE_CHECKING:
    from limbeck.train.batch import TokenBatch
    from limbeck.train.config import ValidationConfig
    from limbeck.train.examples import Lessons
    from limbeck.train.training import Training


def validation(training: Training, lessons: Lessons | None = None) -> Callable[[], None]:
    """What looks at the student after each step of a training, where that is to be validated.

    `lessons` are what held-out data is compared with. UserError where it holds what they teach, and
    for problems that only a model can judge.
    """
    config = training.config.validation
    return (lambda: None) if config is None else Validation(training, config, lessons)


class Validation:
    """Looks at the student every so many steps, and stops the training when it learns no more.

    What was seen goes to `metrics.jsonl`, and with the training's state into its checkpoints.
    """

    def __init__(
        self, training: Training, config: ValidationConfig, lessons: Lessons | None
    ) -> None:
        self.training, self.config = training, config
        self.batches = _heldout(training, config.data, lessons) if config.data and lessons else []
        self.problems = tables.read_problems(config.problems) if config.problems else []
        check_model(self.problems, None)
        self.author: Author | None = None

    def __call__(self) -> None:
        """Looks, if it is time to."""
        from limbeck.train.validation import remember

        training, step = self.training, self.training.state["step"]
        if step % self.config.every_steps and not training.is_last:
            return
        with training.aside():
            numbers = processes.agreed(self._look())
        looks = remember(training.state.get("looks"), {"step": step, **numbers})
        training.state["looks"] = looks
        training.tell(**numbers)
        told = ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        is_best = looks["best"]["step"] == step
        training.out.log(f"step {step:,}: {told}{', the best yet' if is_best else ''}")
        if self.config.patience is not None and looks["since"] >= self.config.patience:
            training.state["stopped"] = True
            training.out.log(f"step {step:,}: no better for {looks['since']} looks; stops here")

    def _look(self) -> dict[str, float]:
        from limbeck.train.validation import heldout_loss

        training, numbers = self.training, {}
        if self.batches:
            with training.out.account("held-out loss") as row:
                row["tokens_in"] = sum(batch.num_tokens for batch in self.batches)
                row["flops"] = ledger.forward_flops(training.num_parameters, row["tokens_in"])
                loss = heldout_loss(training.model, self.batches, training.autocast)
                numbers["heldout_loss"] = loss
        if self.problems:
            numbers["pass_at_1"] = self._ask()
        return numbers

    def _ask(self) -> float:
        training, config = self.training, self.config
        if self.author is None:
            self.author = Author(training.student, training.tokenizer, training.out.name)
        else:
            self.author.refresh()
        if not training.out.leads:
            return 0.0  # the leader's word counts
        sampling = Sampling(config.temperature, config.top_p, config.max_tokens)
        return pass_at_1(
            self.author,
            self.problems,
            sampling,
            config.num_samples,
            training.config.seed,
            training.out,
        )


def _heldout(training: Training, data: str, lessons: Lessons) -> list[TokenBatch]:
    from limbeck.train.examples import pack_batches, read_lessons

    config = training.config
    assert isinstance(config, LessonsConfig), "only lessons are compared with held-out data"
    longest = min(config.max_length, training.student.config.max_position_embeddings)
    heldout = read_lessons(data, training.tokenizer, longest)
    taught = {tuple(example.ids) for example in lessons.examples}
    if num := sum(tuple(example.ids) in taught for example in heldout.examples):
        what = f"{num:,} of its {len(heldout.examples):,} examples are trained on"
        raise UserError(data, what, "hold rows out: take another split")
    for why, num in heldout.refused.items():
        training.out.log(f"{data}: {num:,} {why}, left out")
    return pack_batches(heldout.examples, config.micro_batch_tokens, training.out.machine.device)
