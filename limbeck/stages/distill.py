"""distill: a student learns a teacher's distribution, token by token.

The teacher is live beside the student, or what it said lies in `distributions`, which stage `score`
kept, and no teacher is in memory at all. The texts are those of a data set, or what the student
itself writes, `on_policy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from limbeck import chat, ledger, store
from limbeck.config import DistributionsPath, ModelPath, Plugin, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import DivergenceChoice
from limbeck.student.validation import validation
from limbeck.student.writer import OnPolicy, Writer
from limbeck.train.config import LessonsConfig, Share, Temperature
from limbeck.train.divergences import forward_kl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.train.batch import TokenBatch
    from limbeck.train.head import TokenLoss
    from limbeck.train.hidden import HiddenMatch
    from limbeck.train.step import Columns
    from limbeck.train.teaching import Teaching
    from limbeck.train.training import Training

WRITES = {"model": "model"}
RESUMES = True
DISTRIBUTED = True
SCRATCH = ("checkpoints",)  # until the manifest is there


class Hidden(StageConfig):
    """The student's last hidden states are drawn to the teacher's; both must be equally wide."""

    weight: PositiveFloat = 1.0
    """What their distance counts beside the rest of the loss."""
    distance: Literal["mse", "cosine"] = "mse"
    """mse: the mean square over the width (FitNets); cosine: 1 - cosine (DistilBERT)."""


class Config(LessonsConfig):
    teacher: ModelPath | None = None
    """Whose distribution is learned: a model of this run, a folder or a Hub name; or"""
    distributions: DistributionsPath | None = None
    """what stage `score` kept of it; a teacher beside it says whose it must be, no more."""
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"
    """What a live teacher computes in."""
    divergence: DivergenceChoice = Field(
        default_factory=lambda: Plugin("forward_kl", forward_kl, {})
    )
    """How far the student is from its teacher: a function of `limbeck/train/divergences.py`."""
    temperature: Temperature = 2.0
    """Divides the logits of both before they are compared; the divergence counts its square."""
    alpha: Share = 0.5
    """The share of the divergence; the rest is that of the hard labels."""
    on_policy: OnPolicy | None = None
    """The student learns from texts of its own, written to the prompts of the data set."""
    hidden: Hidden | None = None
    """It also learns the teacher's last hidden states."""

    @model_validator(mode="after")
    def _has_teacher(self) -> Self:
        if self.teacher is None and self.distributions is None:
            raise ValueError("needs a teacher or its distributions; give one of the two")
        live = [name for name in ("on_policy", "hidden") if getattr(self, name) is not None]
        if self.distributions is not None and live:
            what = f"{live[0]} needs a teacher in memory, distributions are in its place"
            raise ValueError(f"{what}; drop one of the two")
        ignored = sorted({"alpha", "divergence", "temperature"} & self.model_fields_set)
        if self.on_policy is not None and self.on_policy.reward and ignored:
            what = "on_policy.reward stands in the place of the divergence and its mix"
            raise ValueError(f"{what}; drop {', '.join(ignored)}")
        if self.alpha == 0 and self.hard_share == 0 and self.hidden is None:
            what = "alpha is 0, and texts of the student's own are no hard labels"
            raise ValueError(f"nothing is left to learn: {what}; raise alpha")
        return self

    @property
    def hard_share(self) -> float:
        """What the hard labels count; 0 also where every token is the student's own."""
        own = self.on_policy is not None and self.on_policy.student_share == 1
        return 0.0 if own else 1 - self.alpha


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`; resumes exactly at the newest checkpoint that verifies."""
    from limbeck import models
    from limbeck.train.adapters import num_parameters
    from limbeck.train.examples import pack_batches, read_lessons
    from limbeck.train.sums import means_of_all
    from limbeck.train.training import Training, load_student

    tokenizer = models.load_tokenizer(config.model)
    student = load_student(config, out)
    teaching = _teaching(config, student, tokenizer)
    longest = min(config.max_length, student.config.max_position_embeddings)
    longest = min(longest, teaching.longest or longest)
    lessons = read_lessons(config.data, tokenizer, longest)
    if told := teaching.start(lessons):
        out.log(told)
    out.log(chat.preflight(tokenizer, lessons.examples[0].ids, lessons.examples[0].loss_mask))
    seed = store.seed_of(config.seed, out.name)
    steps = _plan(config, lessons.lengths, seed, num_parameters(student))
    num_steps = None if steps is None else len(steps)
    training = Training(config, out, student, tokenizer, num_steps)
    validate = validation(training, lessons)
    loss, parts = _loss(config, teaching)
    match = _match(config, training, teaching)
    writer = Writer(config.on_policy, training, lessons, teaching, longest)

    out.log(training.told(lessons, teaching.num_parameters))
    order = _order(steps, len(lessons.examples), config.batch_size, seed, training.state["step"])
    with training:
        for step, rows in zip(training.steps(), order, strict=False):
            chosen = writer.examples(step, rows)
            batches = pack_batches(chosen, config.micro_batch_tokens, out.machine.device)
            if step % config.checkpoint_steps == 0:
                _weigh(config, training, teaching, batches[0], writer.columns, parts, match)
            num_tokens = sum(batch.num_tokens for batch in batches)
            training.spend(ledger.forward_flops(teaching.num_parameters, num_tokens))
            training.step(batches, loss, writer.columns)
            found = means_of_all({**loss.take(), **(match.take() if match else {})})
            training.state["taught"] = means_of_all(teaching.take())
            training.tell(**found, **writer.told, **training.state["taught"])
            validate()
    scales = training.state["scales"]
    return training.save() | {
        **lessons.account(out),
        "num_examples": len(lessons.examples),
        "teacher": {**teaching.told, **training.state["taught"]},
        "loss_scales": scales[:1] + scales[1:][-1:],
        "written": training.state.get("written", {}),
    }


def _teaching(
    config: Config, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Teaching:
    """The teacher, live or from disk. UserError where it cannot teach this student."""
    from limbeck.train import teaching

    if config.distributions is None:
        assert config.teacher is not None
        return teaching.live(
            config.teacher, config.teacher_dtype, student, tokenizer, config.temperature
        )
    return teaching.cached(
        config.distributions,
        config.temperature,
        config.divergence.name,
        config.teacher,
        tokenizer,
    )


def _plan(
    config: Config, lengths: Sequence[int], seed: int, num_parameters: int
) -> list[list[int]] | None:
    """Which examples each step learns, or None where that ends when the budget does.

    Teacher and author cost FLOPs of their own, and nobody knows how long the texts will be that
    are yet to be written.
    """
    from limbeck.train.examples import plan_steps

    if config.num_flops is not None or (config.num_tokens is not None and config.on_policy):
        return None
    return plan_steps(lengths, config, seed, num_parameters)


def _order(
    steps: list[list[int]] | None, num_examples: int, batch_size: int, seed: int, begin: int
) -> Iterator[list[int]]:
    """Which examples step `begin` and those behind it learn; without a plan they never end."""
    from limbeck.train.examples import endless

    if steps is not None:
        yield from steps[begin:]
        return
    examples = islice(endless(num_examples, seed), begin * batch_size, None)
    while True:
        yield list(islice(examples, batch_size))


def _loss(config: Config, teaching: Teaching) -> tuple[Any, dict[str, TokenLoss]]:
    """The loss of a token, and its parts, those that weigh nothing left out.

    UserError where the teacher cannot reward single tokens.
    """
    from limbeck.train.distillation import Mix
    from limbeck.train.on_policy import OwnTexts, rewarded

    mix = partial(
        Mix, divergence=config.divergence, temperature=config.temperature, alpha=config.alpha
    )
    view, on_policy = teaching.view, config.on_policy
    if on_policy is not None and on_policy.reward:
        if teaching.bucket_of is None:
            what = f"teacher {config.teacher} has other tokens, so it cannot reward the student's"
            raise UserError("on_policy.reward", what, "leave reward out, or take one tokenizer")
        reward = partial(rewarded, bucket_of=teaching.bucket_of)
        return OwnTexts(view, reward), {"reward": reward(view)}
    weights = {"soft": config.alpha, "hard": config.hard_share}
    parts = {name: part for name, part in mix(view).parts().items() if weights[name]}
    return mix(view) if on_policy is None else OwnTexts(view, mix), parts


def _match(config: Config, training: Training, teaching: Teaching) -> HiddenMatch | None:
    """Draws the hidden states together, if asked to."""
    from limbeck.train.hidden import HiddenMatch

    if config.hidden is None:
        return None
    knobs = config.hidden
    return HiddenMatch(training.model, teaching.width, knobs.weight, knobs.distance)


def _weigh(
    config: Config,
    training: Training,
    teaching: Teaching,
    batch: TokenBatch,
    columns: Columns,
    parts: Mapping[str, TokenLoss],
    match: HiddenMatch | None,
) -> None:
    """Tells how large each part of the loss is, and warns where one drowns the others."""
    from limbeck.train import scales
    from limbeck.train.sums import means_of_all

    with training.aside(), training.out.account("loss scales") as row:
        found = scales.weigh(training.model, batch, columns, parts, match)
        row["tokens_in"] = batch.num_tokens
        row["flops"] = ledger.forward_flops(training.num_parameters, batch.num_tokens)
    step = training.state["step"]
    training.state.setdefault("scales", []).append({"step": step, **found})
    training.tell(scales=found)
    training.out.log(f"step {step:,}: {scales.told(found)}")
    if mass := means_of_all(teaching.take()).get("shared_mass"):
        training.out.log(f"{mass:.2%} of the teacher's probability is on tokens that both have")
    hidden_weight = None if config.hidden is None else config.hidden.weight
    for warning in scales.one_sided(found, config.alpha, hidden_weight):
        training.out.log(f"warning: {warning}")
