"""A model's folder as far as it can be read without its weights, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import models
from limbeck.errors import UserError
from limbeck.guard import folders, weights
from limbeck.guard.weights import Stored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Model:
    """A folder and what its files say; `stored` are its tensors, by their headers alone.

    `generation` is generation_config.json, `settings` tokenizer_config.json; empty where there is
    none. `name` is what a recipe or a person calls it.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    settings: Mapping[str, Any]
    stored: Mapping[str, Stored]
    tokenizer: PreTrainedTokenizerBase

    @property
    def rows(self) -> int | None:
        """Those of its embedding matrix."""
        return self.config.get("vocab_size")

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt and its answer together."""
        return self.config.get("max_position_embeddings") or self.config.get("n_positions")

    @property
    def num_tokens(self) -> int:
        """One more than the largest id of its tokenizer."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1


def open_model(name: str, folder: Path) -> Model:
    """UserError for what is no model, and for what `guard` or the tokenizer's library refuses."""
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        way_out = f"take {inner}" if inner.is_dir() else "give a Hugging Face folder"
        raise UserError(f"model {name}", "is no model: it has no config.json", way_out)
    configs = folders.read_configs(folder)
    return Model(
        name,
        folder,
        configs["config.json"],
        configs.get("generation_config.json", {}),
        configs.get("tokenizer_config.json", {}),
        weights.read_weights(folder),
        models.load_tokenizer(folder),
    )


def read_jinja(folder: Path) -> str | None:
    """The chat template that lies in a file of its own."""
    path = folder / "chat_template.jinja"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def stops_of(model: Model) -> Iterator[int]:
    """The tokens at which other engines stop: generation_config.json's, else config.json's."""
    ends = model.generation.get("eos_token_id", model.config.get("eos_token_id"))
    yield from ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else []
