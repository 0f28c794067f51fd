"""A model on this machine as an engine: any Hugging Face causal language model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from limbeck.config import HowRun, ModelPath

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.engines.decoder.quantized import Stored
    from limbeck.engines.foreign import ForeignEngine
    from limbeck.engines.local_engine import LocalEngine

logger = logging.getLogger(__name__)

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


def connect(
    *,
    model: ModelPath,
    batch_rows: HowRun[PositiveInt] = 512,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: HowRun[Device] = "auto",
) -> LocalEngine | ForeignEngine:
    """The model in the folder `model`, writing up to `batch_rows` texts at once.

    `device` is torch's word for it; "auto" takes a GPU where there is one. A folder whose matrices
    are codes computes with them where it rounds their inputs, too; all else is of `dtype`.
    """
    from limbeck import models, sharding
    from limbeck.engines.decoder.weights import cannot_read
    from limbeck.engines.foreign import ForeignEngine
    from limbeck.engines.local_engine import LocalEngine

    place = sharding.pick_device(device)
    tokenizer, name = models.load_tokenizer(model), signature(model)
    loaded, stored = _load(model, dtype)
    if reason := cannot_read(loaded.config):
        told = "%s is written with transformers' own generate, several times slower: %s"
        logger.warning(told, name, reason)
        return ForeignEngine(loaded, tokenizer, name=name, batch_rows=batch_rows, device=place)
    return LocalEngine(
        loaded, tokenizer, name=name, batch_rows=batch_rows, device=place, stored=stored
    )


def _load(model: str, dtype: str) -> tuple[PreTrainedModel, Stored | None]:
    """The model on the CPU, so that a GPU holds the weights once; codes as they are, if it can."""
    import torch

    from limbeck import models, packed
    from limbeck.engines.decoder import quantized, weights

    folder = models.fetch(model)
    if packed.read_scheme(folder):
        if weights.can_read_codes(quantized.read_config(folder)):
            return quantized.read_folder(folder, getattr(torch, dtype))
        logger.warning("%s is written with the dense weights that its codes stand for", model)
    return models.load_model(model, dtype), None


def signature(model: str) -> str:
    """What a model's traces are signed with: `teacher/model`, or a Hub name.

    Not the whole path, so that a run is the same wherever its folder lies.
    """
    return "/".join(Path(model).parts[-2:]) if Path(model).exists() else model
