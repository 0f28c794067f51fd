"""What every training stage can be told. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from limbeck.config import DatasetPath, HowRun, ModelPath, StageConfig

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(StageConfig):
    model: ModelPath
    """The student: a model of this run, a folder or a Hub name."""
    data: DatasetPath
    """What to learn: rows of `messages` whose last is the assistant's."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """The highest learning rate, reached after warm-up."""
    final_lr_ratio: Share = 0.1
    """The cosine ends at this share of it (the paper: one tenth)."""
    warmup_ratio: Share = 0.03
    """The share of all steps in which the rate climbs."""
    batch_size: PositiveInt = 64
    """Examples per step, however they are packed."""
    num_epochs: PositiveFloat | None = None
    """How often each example is seen (the paper: 2 to 3), or"""
    num_tokens: PositiveInt | None = None
    """a budget: stop once so many tokens, prompts included, have been trained on, or"""
    num_flops: PositiveFloat | None = None
    """once so many FLOPs have been spent on training, and on whatever wrote or scored for it."""
    context: PositiveInt | None = None
    """Stretches the student's context to so many tokens, and"""
    rope_theta: PositiveFloat | None = None
    """its rotary base with it."""
    max_length: PositiveInt = 32_768
    """Longer examples are left out whole and counted; nothing is cut silently."""
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    """AdamW's."""
    weight_decay: Share = 0.0
    clip: PositiveFloat = 1.0
    """The gradient's norm at most."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 computes in it and keeps weights in float32; it pays from about 10M parameters."""
    seed: int = 0
    """Orders the data."""
    micro_batch_tokens: HowRun[PositiveInt] = 16_384
    """Tokens that are computed at once; a step is accumulated over as many pieces as it needs."""
    checkpoint_steps: HowRun[PositiveInt] = 200
    """Steps between checkpoints; a killed training goes on at the newest, exactly."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        budgets = [self.num_epochs, self.num_tokens, self.num_flops]
        if sum(budget is not None for budget in budgets) != 1:
            raise ValueError("needs one of num_epochs, num_tokens and num_flops; give one of them")
        return self
