"""create: a fresh small model, with a tokenizer trained on given texts or borrowed from a model.

Only miniature recipes need it: real ones start from a model that somebody pretrained.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from limbeck import chat, store, tables
from limbeck.config import DatasetPath, ModelPath, StageConfig
from limbeck.folder import StageFolder

WRITES = {"model": "model"}
MIN_TOKENS = 262  # a token for each byte and the special ones


class Config(StageConfig):
    architecture: Literal["qwen2", "qwen3", "llama", "gpt2"] = "qwen2"
    """The model's family, as transformers names it."""
    texts: DatasetPath | None = None
    """Trains a tokenizer on the messages of this data set."""
    vocab_size: Annotated[int, Field(ge=MIN_TOKENS)] = 1024
    """Tokens of that tokenizer at most."""
    isolate: str = r"\d"
    """Each match of this regular expression is a token of its own and merges with nothing."""
    tokens: Literal["merges", "phrases"] = "merges"
    """What becomes a token besides bytes: what merges often (BPE), or whole stretches between
    matches, which llama.cpp splits texts by, too: a model that shall become GGUF needs them."""
    tokenizer: ModelPath | None = None
    """Or: takes over the tokenizer of this model."""
    template: Literal["r1_zero"] | None = None
    """Prompts as DeepSeek-R1-Zero saw them: the paper's plain text instead of control tokens."""
    hidden_size: PositiveInt = 64
    """The rest are the fields of a transformers config of that name."""
    num_hidden_layers: PositiveInt = 2
    num_attention_heads: PositiveInt = 2
    num_key_value_heads: PositiveInt | None = None
    """None is as many as attention heads."""
    intermediate_size: PositiveInt | None = None
    """None is three times the hidden size."""
    tie_word_embeddings: bool = True
    max_position_embeddings: Annotated[int, Field(ge=2)] = 512
    """The most tokens that a prompt and its answer may have together."""
    initializer_range: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Standard deviation of fresh weights; small models learn sooner from larger ones."""
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.texts is None) == (self.tokenizer is None):
            raise ValueError("needs either texts or tokenizer; give one of the two")
        heads, key_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % (2 * heads):
            what = f"hidden_size {self.hidden_size} is not {heads} heads of an even width"
            raise ValueError(f"{what}; take a multiple of {2 * heads}")
        if key_heads and self.architecture == "gpt2":
            raise ValueError("gpt2 has no num_key_value_heads of its own; leave it out")
        if key_heads and heads % key_heads:
            what = f"num_key_value_heads {key_heads} does not divide the {heads} attention heads"
            raise ValueError(f"{what}; take a divisor of {heads}")
        return self

    @field_validator("isolate")
    @classmethod
    def _is_expression(cls, isolate: str) -> str:
        if find_spec("tokenizers"):
            from tokenizers import Regex

            try:
                Regex(isolate)
            except Exception as error:  # it has no kind of its own
                raise ValueError(f"is no regular expression ({error}); mend it") from None
        return isolate


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`, an ordinary Hugging Face folder with a chat template."""
    from limbeck import models, newborn

    with out.account("create"):
        if config.tokenizer is not None:
            tokenizer = models.load_tokenizer(config.tokenizer)
        else:
            texts = _texts(config)
            train = newborn.train_tokenizer
            if config.tokens == "phrases":
                train = newborn.phrase_tokenizer
            tokenizer = train(texts, config.vocab_size, config.isolate)
        if config.template is not None:
            tokenizer.chat_template = chat.R1_ZERO_TEMPLATE
        heads = config.num_key_value_heads or config.num_attention_heads
        key_heads = {} if config.architecture == "gpt2" else {"num_key_value_heads": heads}
        model = newborn.create_model(
            config.architecture,
            len(tokenizer),
            store.seed_of(config.seed, out.name),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            **key_heads,
            intermediate_size=config.intermediate_size or 3 * config.hidden_size,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            initializer_range=config.initializer_range,
        )
        models.save_model(model, tokenizer, out.path / "model")
    size = models.num_parameters(model)
    out.log(f"{size:,} parameters, {len(tokenizer):,} tokens")
    return {"num_parameters": size, "vocab_size": len(tokenizer)}


def _texts(config: Config) -> Iterator[str]:
    """What a tokenizer is trained on: the messages, and what the template writes around them."""
    rows = tables.read_table(config.texts or "", ["messages"])["messages"].to_pylist()
    preface = re.split("</?think>", chat.R1_ZERO_PREFACE) if config.template else []
    for messages in rows:
        yield from preface
        for message in messages:
            is_asked = config.template and message["role"] == "user"
            yield f" User: {message['content']}. Assistant:" if is_asked else message["content"]
