"""An ordinary model of smaller sizes, out of weights that were cut to them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


def resized(config: PretrainedConfig, **sizes: Any) -> PretrainedConfig:
    """A copy of a config with other sizes; ValueError where the architecture forbids them."""
    config = deepcopy(config)
    for name, size in sizes.items():
        setattr(config, name, size)
    config.validate()
    return config


def built(
    model: PreTrainedModel, config: PretrainedConfig, weights: Mapping[str, Tensor]
) -> PreTrainedModel:
    """A model of the same class with another config, made as a loader of its folder would make it.

    So what is in memory and what others will load are the same. Tied weights are tied again. What
    was not cut it shares with `model`.
    """
    small = type(model).from_pretrained(
        None, config=config, state_dict=dict(weights), dtype=model.dtype
    )
    small.generation_config = deepcopy(model.generation_config)
    small.config.name_or_path = model.config.name_or_path
    return small.to(model.device)  # type: ignore[arg-type]  # its decorator hides self
