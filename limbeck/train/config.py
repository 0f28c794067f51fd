"""What every training stage can be told. Imports no torch."""

from __future__ import annotations

from math import log
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from limbeck import ledger
from limbeck.config import DatasetPath, HowRun, ModelPath, ProblemsPath, StageConfig, TracesPath
from limbeck.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]
"""Of a distribution that is learned; beyond, float32 no longer tells tokens apart."""

PAPER_LRS = {1.5e9: 1e-4, 7.6e9: 8e-5, 8.0e9: 5e-5, 14.8e9: 7e-5, 32.8e9: 6e-5, 70.6e9: 2e-5}
"""Initial learning rates of DeepSeek-R1's students by their parameters (Nature 645, supplement)."""
LORA_LR_FACTOR = 10.0
"""What adapters want of the rate of full training (Schulman et al. 2025, LoRA Without Regret)."""


class LoraConfig(StageConfig):
    """Low-rank adapters (arXiv:2106.09685): the base is frozen, W + alpha / rank * B A learns."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of an adapter's inputs that a step leaves out."""
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Which linear layers get one: all but the head, or names such as q_proj, v_proj."""
    base: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """How the frozen base is held, and bfloat16 computed, while adapters train; what is saved is
    merged in float32 whichever it was."""


class ValidationConfig(StageConfig):
    """What is looked at meanwhile; the best checkpoint becomes the model."""

    every_steps: PositiveInt
    """Steps between two looks; the last step is looked at, too."""
    data: DatasetPath | None = None
    """Rows that are not trained on, for the held-out loss in nats per token, or"""
    problems: ProblemsPath | None = None
    """problems for pass@1, which chooses the best where there is one; or both."""
    patience: PositiveInt | None = None
    """Stops after so many looks without a better loss (or pass@1, where there is no `data`)."""
    num_samples: PositiveInt = 1
    """Answers to each problem."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.6
    """As in the paper's evaluation; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_tokens: PositiveInt = 1024
    """A longer answer is truncated, and wrong."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.data is None and self.problems is None:
            raise ValueError("has nothing to look at; give it data, problems or both")
        return self


class TrainingConfig(StageConfig):
    """A student and how it is trained, whatever it learns from."""

    BUDGETS: ClassVar[tuple[str, ...]] = ("num_tokens", "num_flops")
    """The fields that say when to stop, exactly one of which is given."""

    model: ModelPath
    """The student: a model of this run, a folder or a Hub name."""
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """The highest learning rate, reached after warm-up; by default the paper's for this size."""
    final_lr_ratio: Share = 0.1
    """The cosine ends at this share of it (the paper: one tenth)."""
    warmup_ratio: Share = 0.03
    """The share of all steps in which the rate climbs."""
    num_tokens: PositiveInt | None = None
    """A budget: stop once so many tokens, prompts included, have been trained on, or"""
    num_flops: PositiveFloat | None = None
    """once so many FLOPs have been spent on training, and on whatever wrote or scored for it; the
    reading of a reward model and looks at validation problems are not counted."""
    charge: list[TracesPath] = []
    """Tables of traces whose writing the budget num_flops pays for, too."""
    context: PositiveInt | None = None
    """Stretches the student's context to so many tokens, and"""
    rope_theta: PositiveFloat | None = None
    """its rotary base with it."""
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    """AdamW's."""
    weight_decay: Share = 0.0
    clip: PositiveFloat = 1.0
    """The gradient's norm at most."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps AdamW's moments in a quarter of the memory (arXiv:2110.02861)."""
    lora: LoraConfig | None = None
    """Trains adapters in place of all weights."""
    keep_zeros: bool = False
    """What is zero in the student's matrices, since it was pruned, stays zero."""
    validation: ValidationConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 computes in it and keeps weights in float32; it pays from about 10M parameters."""
    seed: int = 0
    """Orders the data."""
    micro_batch_tokens: HowRun[PositiveInt] = 16_384
    """Tokens that are computed at once; a step is accumulated over as many pieces as it needs."""
    gradient_checkpointing: HowRun[bool] = False
    """Computes each layer twice in place of remembering it: less memory, a third more time."""
    checkpoint_steps: HowRun[PositiveInt] = 200
    """Steps between checkpoints; a killed training goes on at the newest, exactly."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if sum(getattr(self, name) is not None for name in self.BUDGETS) != 1:
            *others, last = self.BUDGETS
            raise ValueError(f"needs one of {', '.join(others)} and {last}; give one of them")
        if self.charge and self.num_flops is None:
            raise ValueError("charge takes from a budget of FLOPs; give num_flops, or drop it")
        if self.keep_zeros and self.lora is not None:
            what = "merging adapters fills every zero, so keep_zeros takes full training"
            raise ValueError(f"{what}; drop lora, or keep_zeros")
        return self

    def charged_flops(self) -> float:
        """What the tables in `charge` took. UserError where that leaves nothing to train with."""
        charged = 0.0
        for traces in self.charge:
            if (flops := ledger.flops_of(traces)) is None:
                what = "is from no stage that tells its FLOPs"
                raise UserError(traces, what, "charge what a stage sample has written")
            charged += flops
        if self.num_flops is not None and charged >= self.num_flops:
            what = f"took {charged:.3g} of {self.num_flops:.3g} FLOPs, which leaves nothing"
            raise UserError(", ".join(self.charge), what, "raise num_flops, or sample less")
        return charged

    def peak_lr(self, num_parameters: int) -> tuple[float, str]:
        """(the highest learning rate, where it is from) for a student of this size."""
        if self.lr is not None:
            return self.lr, "the recipe's"
        size, lr = min(PAPER_LRS.items(), key=lambda pair: abs(log(pair[0] / num_parameters)))
        told = f"DeepSeek-R1's for {size / 1e9:g}B parameters, the nearest size it was told for"
        if self.lora is None:
            return lr, told
        return LORA_LR_FACTOR * lr, f"{LORA_LR_FACTOR:g} times {told}, as adapters are trained"

    def training_flops(self, num_parameters: int, num_tokens: int) -> float:
        """6·N·D, or 4·N·D where the weights are frozen: they need no gradient of their own."""
        if self.lora is None:
            return ledger.training_flops(num_parameters, num_tokens)
        return 2.0 * ledger.forward_flops(num_parameters, num_tokens)


class LessonsConfig(TrainingConfig):
    """A student that learns the texts of a data set."""

    BUDGETS = ("num_epochs", "num_tokens", "num_flops")

    data: DatasetPath
    """What to learn: rows of `messages` whose last is the assistant's."""
    batch_size: PositiveInt = 64
    """Examples per step, however they are packed."""
    num_epochs: PositiveFloat | None = None
    """How often each example is seen (the paper: 2 to 3), in the place of a budget."""
    max_length: PositiveInt = 32_768
    """Longer examples are left out whole and counted; nothing is cut silently."""
