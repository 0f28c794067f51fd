"""A student in training and its books: what every training stage's loop does at each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import ledger, models, store
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.train.batch import TokenBatch
from limbeck.train.checkpoint import load_newest, save_checkpoint
from limbeck.train.config import TrainingConfig
from limbeck.train.head import TokenLoss, TokenModel
from limbeck.train.step import Columns, NotFinite, StepResult, cosine_lr, make_optimizer, train_step


class Training:
    """The student, its optimizer, and how far it has come; resumes exactly where it was.

    `num_steps` is how many steps there will be; None where a budget of FLOPs says when to stop.
    `state` is kept in every checkpoint: `step`, `loss_tokens`, `prompt_tokens`, `flops`, and
    whatever else a stage puts there (plain JSON values).
    """

    def __init__(
        self,
        config: TrainingConfig,
        out: StageFolder,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        num_steps: int | None,
    ) -> None:
        self.config, self.out, self.student, self.tokenizer = config, out, student, tokenizer
        self.num_steps = num_steps
        self.model = TokenModel(student)
        betas = (config.betas[0], config.betas[1])
        self.optimizer = make_optimizer(self.model, config.lr, betas, config.weight_decay)
        self.num_parameters = models.num_parameters(student)
        self.checkpoints = out.path / "checkpoints"
        begun = {"step": 0, "loss_tokens": 0, "prompt_tokens": 0, "flops": 0.0}
        self.state: dict[str, Any] = load_newest(self.checkpoints, self.model, self.optimizer) or (
            begun
        )
        self.autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
        self.books = ExitStack()

    def __enter__(self) -> Self:
        total = 1.0 if self.num_steps is None else self.num_steps
        self.advance = self.books.enter_context(
            self.out.progress(total - self.done * total, "steps" if self.num_steps else "budget")
        )
        self.account = self.out.account("train")
        self.row = self.account.__enter__()
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
        assert self.config.num_flops is not None
        return min(1.0, float(self.state["flops"] / self.config.num_flops))

    def steps(self) -> Iterator[int]:
        """The numbers of the steps that are still to be made."""
        while self.done < 1:
            yield self.state["step"]

    def step(
        self,
        batches: Sequence[TokenBatch],
        token_loss: TokenLoss,
        columns: Columns | None = None,
        **told: float,
    ) -> StepResult:
        """One update; `told` goes into `metrics.jsonl` beside loss, rate and gradient norm."""
        before, name = self.done, f"{self.out.name} step {self.state['step'] + 1}"
        whole = self.num_steps or 10_000  # of a budget: as finely as anybody would look
        warmup = round(self.config.warmup_ratio * whole)
        lr = cosine_lr(before * whole, whole, self.config.lr, warmup, self.config.final_lr_ratio)
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
            )
        except NotFinite as error:
            raise _stopped(name, error, batches) from error
        self.state["step"] += 1
        self.state["loss_tokens"] += result.num_loss_tokens
        self.state["prompt_tokens"] += result.num_tokens - result.num_loss_tokens
        self.row["tokens_in"] += result.num_tokens
        self.spend(ledger.training_flops(self.num_parameters, result.num_tokens))
        numbers = {"loss": result.loss, "lr": lr, "grad_norm": result.grad_norm, **told}
        self.out.metric(step=self.state["step"], **numbers)
        self.advance((self.done - before) * (self.num_steps or 1), f"loss {result.loss:.3f}")
        if self.state["step"] % self.config.checkpoint_steps == 0 or self.done >= 1:
            self.keep()
        store.failpoint(f"{self.out.name}.step-{self.state['step']}")
        return result

    def spend(self, flops: float) -> None:
        """Counts what was computed, in training or for it."""
        self.state["flops"] += flops
        self.row["flops"] += flops

    def keep(self) -> None:
        """Writes a checkpoint, and begins a new account: a kill forgets no cost but its own."""
        self.account.__exit__(None, None, None)
        self.account = self.out.account("train")
        self.row = self.account.__enter__()
        step = self.state["step"]
        save_checkpoint(self.checkpoints, step, self.model, self.optimizer, self.state)

    def save(self) -> dict[str, Any]:
        """Writes `model`; gives what a manifest tells of any training."""
        self.student.set_attn_implementation("sdpa")
        models.save_model(self.student, self.tokenizer, self.out.path / "model")
        return {
            "num_parameters": self.num_parameters,
            "num_steps": self.state["step"],
            "loss_tokens": self.state["loss_tokens"],
            "prompt_tokens": self.state["prompt_tokens"],
            "flops": self.state["flops"],
        }


def _stopped(where: str, error: NotFinite, batches: Sequence[TokenBatch]) -> UserError:
    rows = [name for index in error.batches for name in batches[index].document_names]
    what = f"{error.what} is not finite in the batch of rows {', '.join(rows[:8])}"
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    way_out = "nothing of this step was kept; lower the lr, or look at these rows"
    return UserError(where, what + more, way_out)
