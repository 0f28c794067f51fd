"""A model on this machine as an engine: any Hugging Face causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from limbeck.config import HowRun, ModelPath

if TYPE_CHECKING:
    from limbeck.engines.decode import LocalEngine

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


def connect(
    *,
    model: ModelPath,
    batch_rows: HowRun[PositiveInt] = 512,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: HowRun[Device] = "auto",
) -> LocalEngine:
    """The model in the folder `model`, writing up to `batch_rows` texts at once.

    `device` is torch's word for it; "auto" takes a GPU where there is one.
    """
    from limbeck import models
    from limbeck.engines.decode import LocalEngine

    return LocalEngine(
        models.load_model(model, dtype=dtype, device=device),
        models.load_tokenizer(model),
        name=signature(model),
        batch_rows=batch_rows,
    )


def signature(model: str) -> str:
    """What a model's traces are signed with: `teacher/model`, or a Hub name.

    Not the whole path, so that a run is the same wherever its folder lies.
    """
    return "/".join(Path(model).parts[-2:]) if Path(model).exists() else model
