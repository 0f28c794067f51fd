"""A newborn model and its tokenizer: what miniatures need that begin with nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from limbeck.errors import UserError

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = [PAD, USER, ASSISTANT, END, "<think>", "</think>"]

# A system message stands before the first turn, without a token of its own.
CHAT_TEMPLATE = """\
{% for message in messages %}
{% if message.role != 'system' %}{{ '<|' + message.role + '|>' }}{% endif %}{{ message.content }}
{%- if message.role == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def create_model(
    architecture: str,
    vocab_size: int,
    seed: int,
    *,
    eos_token_id: int,
    pad_token_id: int,
    **sizes: Any,
) -> PreTrainedModel:
    """A fresh model with the config's own initializer, from `seed` alone.

    `architecture` is a transformers model type (qwen2, qwen3, llama, gpt2), `sizes` are fields of
    its config; GPT-2's may be called by llama's names. There is no dropout unless `sizes` name
    one. torch's global random state is neither used nor changed. For a tokenizer of one's own take
    another than qwen2: transformers' AutoTokenizer, hence other programs, would replace its
    splitting rules.
    """
    if architecture not in CONFIG_MAPPING:
        raise UserError(
            "model",
            f"transformers knows no architecture {architecture!r}",
            "take qwen3, llama or another of its model types",
        )
    blank = AutoConfig.for_model(architecture)
    fields = blank.to_dict()
    own_names = dict(blank.attribute_map)
    if "n_inner" in fields:  # GPT-2's, which its map forgets
        own_names["intermediate_size"] = "n_inner"
    sizes = {own_names.get(name, name): size for name, size in sizes.items()}
    if unknown := sorted(set(sizes) - set(fields)):
        raise UserError(
            f"model {architecture}",
            f"its config has no {', '.join(unknown)}",
            f"fields are {', '.join(sorted(fields))}",
        )
    no_dropout = {name: 0.0 for name in fields if name.endswith(("dropout", "_pdrop"))}
    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocab_size,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        bos_token_id=None,
        **{**no_dropout, **sizes},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = eos_token_id
    model.generation_config.pad_token_id = pad_token_id
    return model


def train_tokenizer(
    texts: Iterator[str],
    vocab_size: int,
    isolate: str = r"\d",
    chat_template: str = CHAT_TEMPLATE,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose tokens may span words, but not what `isolate` matches.

    Boilerplate such as "Let me check" becomes a single token, arithmetic stays digit by digit.
    All 256 bytes are in the vocabulary, so any text comes back unchanged.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(isolate), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
