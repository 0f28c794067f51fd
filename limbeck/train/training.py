"""A student in training and its books: what every training stage's loop does at each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import models, processes, sharding, store
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.train import adapters, zeros
from limbeck.train.batch import TokenBatch
from limbeck.train.checkpoint import load_best, load_newest, save_checkpoint
from limbeck.train.config import TrainingConfig
from limbeck.train.examples import Lessons
from limbeck.train.head import TokenLoss, TokenModel
from limbeck.train.policy_loss import PolicyLoss
from limbeck.train.step import Columns, NotFinite, StepResult, cosine_lr, make_optimizer, train_step


def load_student(config: TrainingConfig, out: StageFolder) -> PreTrainedModel:
    """The student as it is to be trained: in float32, or frozen as `lora.base` says, adapters in.

    A base of few bits is made on the CPU, and so is what several processes share: a GPU never
    holds more than it will.
    """
    _refuse_to_share(config)
    lora, device, dtype = config.lora, out.machine.device, "float32"
    quantized = lora is not None and lora.base in adapters.QUANTIZED
    if lora is not None and lora.base != "float32":
        dtype = config.dtype if quantized else lora.base
    place = "cpu" if quantized or processes.num() > 1 else device
    student = models.load_model(config.model, dtype, place, config.context, config.rope_theta)
    if lora is not None:
        if quantized:
            adapters.quantize(student, lora.base, student.dtype, device)
        adapters.attach(student, lora, store.seed_of(config.seed, out.name, "adapters"))
        learning = sum(p.numel() for p in student.parameters() if p.requires_grad)
        out.log(f"adapters: {learning:,} parameters learn, the others are frozen in {lora.base}")
    if config.gradient_checkpointing:
        sharding.recompute_activations(student)
    return student


class Training:
    """The student, its optimizer, and how far it has come; resumes exactly where it was.

    `num_steps` is how many steps there will be; None where a budget of FLOPs, or of tokens that
    nobody knows before they are written, says when to stop.
    `state` is kept in every checkpoint: `step`, `loss_tokens`, `prompt_tokens`, `flops` (which
    begin with what is charged), and whatever else a stage puts there (plain JSON values); `looks`
    are what `remember` knows of validations, and `stopped` ends the training early. `kind` is how
    the student is called.
    """

    def __init__(
        self,
        config: TrainingConfig,
        out: StageFolder,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        num_steps: int | None,
        kind: type[TokenModel] = TokenModel,
    ) -> None:
        self.config, self.out, self.student, self.tokenizer = config, out, student, tokenizer
        self.num_steps = num_steps
        assert adapters.has_adapters(student) == (config.lora is not None), "see load_student"
        self.model = kind(student)
        sharding.shard(self.model)
        self.num_parameters = adapters.num_parameters(student)
        self.lr, told = config.peak_lr(self.num_parameters)
        if config.lr is None:
            out.log(f"lr {self.lr:g}: {told}")
        self.optimizer = _optimizer(self.model, config, self.lr)
        if config.keep_zeros:
            zeros.keep(student, self.optimizer)
        elif config.lora is None and (share := zeros.share(student)) > zeros.MANY:
            way_out = "keep_zeros: true keeps them"
            out.log(f"{share:.0%} of the student's matrices are zeros, to be filled; {way_out}")
        self.checkpoints = out.path / "checkpoints"
        self.charged = config.charged_flops()
        begun = {"step": 0, "loss_tokens": 0, "prompt_tokens": 0, "flops": self.charged}
        torch.manual_seed(store.seed_of(config.seed, out.name, "dropout", processes.rank()))
        self.state: dict[str, Any] = load_newest(self.checkpoints, self.model, self.optimizer) or (
            begun
        )
        self.autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
        self.books = ExitStack()
        self.numbers: dict[str, Any] = {}

    def __enter__(self) -> Self:
        total = 1.0 if self.num_steps is None else self.num_steps
        self.shown = self.done
        self.advance = self.books.enter_context(
            self.out.progress(total - self.done * total, "steps" if self.num_steps else "budget")
        )
        self._begin_account()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.account.__exit__(kind, error, trace)
        self.books.close()

    @property
    def done(self) -> float:
        """How much of the whole training is behind us, 0 to 1."""
        if self.num_steps is not None:
            return float(self.state["step"] / self.num_steps)
        if self.config.num_tokens is not None:
            tokens = self.state["loss_tokens"] + self.state["prompt_tokens"]
            return min(1.0, float(tokens / self.config.num_tokens))
        assert self.config.num_flops is not None
        budget = self.config.num_flops - self.charged
        return min(1.0, float((self.state["flops"] - self.charged) / budget))

    def steps(self) -> Iterator[int]:
        """The numbers of the steps that are still to be made.

        What the loop's body did with a step is written down when it asks for the next.
        """
        while not self.is_last:
            yield self.state["step"]
            self._end_step()

    def step(
        self,
        batches: Sequence[TokenBatch],
        token_loss: TokenLoss | PolicyLoss,
        columns: Columns | None = None,
        total_weight: float | None = None,
    ) -> StepResult:
        """One update, as `train_step` makes it; `tell` adds to what `metrics.jsonl` says of it."""
        before, name = self.done, f"{self.out.name} step {self.state['step'] + 1}"
        whole = self.num_steps or 10_000  # of a budget: as finely as anybody would look
        warmup = round(self.config.warmup_ratio * whole)
        lr = cosine_lr(before * whole, whole, self.lr, warmup, self.config.final_lr_ratio)
        try:
            result = train_step(
                self.model,
                batches,
                self.optimizer,
                lr=lr,
                clip=self.config.clip,
                token_loss=token_loss,
                columns=columns,
                autocast=self.autocast,
                total_weight=total_weight,
            )
        except NotFinite as error:
            raise _stopped(name, error, batches) from error
        self.state["step"] += 1
        self.state["loss_tokens"] += result.num_loss_tokens
        self.state["prompt_tokens"] += result.num_tokens - result.num_loss_tokens
        self.row["tokens_in"] += result.num_tokens
        self.spend(self.config.training_flops(self.num_parameters, result.num_tokens))
        self.tell(loss=result.loss, lr=lr, grad_norm=result.grad_norm)
        self.advance((self.done - self.shown) * (self.num_steps or 1), f"loss {result.loss:.3f}")
        self.shown = self.done
        return result

    def told(self, lessons: Lessons, teacher_parameters: int = 0) -> str:
        """What is about to be done, in a line."""
        step = self.state["step"]
        taught = f" taught by {teacher_parameters:,}" if teacher_parameters else ""
        steps = f"{self.num_steps:,} steps" if self.num_steps else "as far as the budget goes"
        going_on = f", going on at step {step:,}" if step else ""
        return (
            f"{self.num_parameters:,} parameters{taught}, {len(lessons.examples):,} examples"
            f"{lessons.left_out}, {steps}{going_on}"
        )

    def tell(self, **numbers: Any) -> None:
        """Adds to what `metrics.jsonl` will say of this step."""
        self.numbers |= numbers

    @property
    def is_last(self) -> bool:
        """Whether no step will follow."""
        return self.done >= 1 or bool(self.state.get("stopped"))

    @property
    def best_step(self) -> int | None:
        """The step whose validation was the best yet."""
        looks = self.state.get("looks")
        return None if looks is None else looks["best"]["step"]

    def _end_step(self) -> None:
        step = self.state["step"]
        self.out.metric(step=step, **self.numbers)
        self.numbers = {}
        if step % self.config.checkpoint_steps == 0 or self.is_last or step == self.best_step:
            self.keep()
        store.failpoint(f"{self.out.name}.step-{step}")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Something else than training, which has its own account."""
        self.account.__exit__(None, None, None)
        try:
            yield
        finally:
            self._begin_account()

    def _begin_account(self) -> None:
        self.account = self.out.account("train")
        self.row = self.account.__enter__()

    def spend(self, flops: float) -> None:
        """Counts what was computed, in training or for it."""
        self.state["flops"] += flops
        self.row["flops"] += flops

    def keep(self) -> None:
        """Writes a checkpoint, and begins a new account: a kill forgets no cost but its own."""
        self.account.__exit__(None, None, None)
        self._begin_account()
        step = self.state["step"]
        is_best = step == self.best_step
        save_checkpoint(self.checkpoints, step, self.model, self.optimizer, self.state, is_best)

    def save(self) -> dict[str, Any]:
        """Writes `model`, and `adapter` where there is one; gives what a manifest tells of both.

        Where there were validations, it is the best student that they saw.
        """
        best = self.best_step
        if best not in (None, self.state["step"]):
            self._return_to(best)
        student = self.student
        if self.config.lora is not None:
            adapters.save_adapter(student, self.config.model, self.out.path / "adapter")
            student = adapters.plain_copy(student)
        if self.out.leads or sharding.is_sharded(student):
            student.set_attn_implementation("sdpa")
            models.save_model(student, self.tokenizer, self.out.path / "model")
        looks = {} if best is None else {"best": self.state["looks"]["best"]}
        told = {
            "num_parameters": self.num_parameters,
            "num_steps": self.state["step"],
            "loss_tokens": self.state["loss_tokens"],
            "prompt_tokens": self.state["prompt_tokens"],
            "flops": self.state["flops"] - self.charged,
        }
        return looks | told | ({"charged_flops": self.charged} if self.config.charge else {})

    def _return_to(self, step: int | None) -> None:
        kept = load_best(self.checkpoints, self.model)
        if kept is None or kept["step"] != step:
            what = f"no longer holds step {step}, which was the best"
            raise UserError(str(self.checkpoints), what, "start the stage anew with --redo")


def _refuse_to_share(config: TrainingConfig) -> None:
    """What is held in few bits is not spread over devices."""
    base = config.lora.base if config.lora else None
    if processes.num() > 1 and config.optimizer == "adamw_8bit":
        raise UserError("optimizer: adamw_8bit", "takes one process", "take optimizer: adamw")
    if processes.num() > 1 and base in adapters.QUANTIZED:
        raise UserError(f"lora.base: {base}", "takes one process", "take base: bfloat16")


def _optimizer(model: TokenModel, config: TrainingConfig, lr: float) -> Optimizer:
    betas = (config.betas[0], config.betas[1])
    plain = make_optimizer(model, lr, betas, config.weight_decay)
    if config.optimizer == "adamw":
        return plain
    try:
        from limbeck.train.eight_bit import AdamW8bit
    except ImportError as error:
        way_out = "pip install 'limbeck[quantized]'"
        raise UserError("optimizer: adamw_8bit", "needs torchao", way_out) from error
    return AdamW8bit(plain)


def _stopped(where: str, error: NotFinite, batches: Sequence[TokenBatch]) -> UserError:
    rows = [name for index in error.batches for name in batches[index].document_names]
    what = f"{error.what} is not finite in the batch of rows {', '.join(rows[:8])}"
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    way_out = "nothing of this step was kept; lower the lr, or look at these rows"
    return UserError(where, what + more, way_out)
