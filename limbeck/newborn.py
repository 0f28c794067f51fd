"""A newborn model and its tokenizer: what miniatures need that begin with nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, trainers
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
        [pre_tokenizers.Split(Regex(isolate), "isolated"), _bytes()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _whole(tokenizer, chat_template)


def phrase_tokenizer(
    texts: Iterator[str],
    vocab_size: int,
    isolate: str = r"\d",
    chat_template: str = CHAT_TEMPLATE,
) -> PreTrainedTokenizerFast:
    """Bytes, and as tokens of their own the most frequent stretches between matches of `isolate`.

    A text is split by these phrases alone, whatever stands around them, and by no expression: so
    other programs that read its vocabulary (llama.cpp) split it as this does. Where phrases overlap
    in a text, transformers takes the one that begins first and llama.cpp the longest, so of two for
    which that may differ only the first is one; and as transformers decodes no other, they are
    ASCII.
    """
    special = "|".join(map(re.escape, SPECIAL_TOKENS))
    splitter = pre_tokenizers.Split(Regex(f"{special}|{isolate}"), "isolated")
    counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    # What a phrase saves is its bytes, one token each, but for one.
    saved = {piece: n * (len(piece.encode()) - 1) for piece, n in counts.items() if n > 1}
    known = {*SPECIAL_TOKENS, *(piece for piece in saved if not saved[piece])}
    ranked = sorted(saved.keys() - known, key=lambda piece: (-saved[piece], piece))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: place for place, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = _bytes()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    phrases: list[str] = []
    for piece in filter(str.isascii, ranked):
        clashes = any(_clash(piece, other) or _clash(other, piece) for other in phrases)
        if not clashes and len(ids) + len(phrases) < vocab_size:
            phrases.append(piece)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    return _whole(tokenizer, chat_template)


def _clash(first: str, second: str) -> bool:
    """Whether an end of the first is a beginning of the second, which is no shorter."""
    ends = (first[start:] for start in range(1, len(first)))
    return len(second) >= len(first) and any(second.startswith(end) for end in ends)


def _bytes() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _whole(tokenizer: Tokenizer, chat_template: str) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
