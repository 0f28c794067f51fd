"""A byte-level tokenizer as llama.cpp reads it: tokens, their types, merges, special ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck import chat
from limbeck.errors import UserError
from limbeck.export import splitting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
NO_MERGES = ["no merges"]  # llama.cpp wants a list that is not empty; no piece is ever "no"
TRIMMING = ("lstrip", "rstrip", "single_word")
ELSEWHERE = "create the model with a tokenizer that llama.cpp has, or keep to `--to hf`"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer. `special` is a name in llama.cpp -> token id."""

    splitting: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    template: str


def read(
    tokenizer: PreTrainedTokenizerBase, num_rows: int, texts: Sequence[str] = ()
) -> Vocabulary:
    """The tokenizer of a model with so many rows in its embedding; `texts` must split alike.

    UserError for a tokenizer that llama.cpp does not have.
    """
    where = f"tokenizer {tokenizer.name_or_path}"
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(where, "has no tokenizer.json", ELSEWHERE)
    own = json.loads(tokenizer.backend_tokenizer.to_str())
    for what in _obstacles(own):
        raise UserError(where, what, ELSEWHERE)
    name = splitting.find(tokenizer, texts)
    if name is None:
        what = "it splits texts before its merges in a way that llama.cpp does not have"
        raise UserError(where, what, ELSEWHERE)
    tokens, types = _tokens(tokenizer, num_rows)
    empty = tokenizer("")["input_ids"]
    return Vocabulary(
        splitting=name,
        tokens=tokens,
        types=types,
        merges=tuple(_merges(own)) or tuple(NO_MERGES),
        special=special_ids(tokenizer),
        adds_bos=bool(empty) and empty[0] == tokenizer.bos_token_id,
        adds_eos=bool(empty) and empty[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id,
        template=template(tokenizer),
    )


def _obstacles(own: dict[str, Any]) -> Iterator[str]:
    model, normalizer = own["model"], own.get("normalizer")
    if model["type"] != "BPE" or not _is_byte_level(own.get("pre_tokenizer")):
        yield f"it is no byte-level BPE but a {model['type']} of another kind"
    if normalizer is not None and normalizer["type"] != "NFC":  # what people type is NFC
        yield f"it changes texts before it reads them ({normalizer['type']})"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        yield "it marks where words begin or end"
    for token in own["added_tokens"]:
        for flag in TRIMMING:
            if token[flag]:
                yield f"its token {token['content']!r} has {flag}, which llama.cpp does not know"


def _is_byte_level(split: dict[str, Any] | None) -> bool:
    inner = (split or {}).get("pretokenizers", [split or {}])
    return any(each.get("type") == "ByteLevel" and not each["add_prefix_space"] for each in inner)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, num_rows: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(tokens, types); rows of the embedding that no token has are told to be unused."""
    by_id = {id: text for text, id in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    texts, types = [], []
    for id in range(num_rows):
        if id in added:
            texts.append(added[id].content)
            types.append(CONTROL if added[id].special else USER_DEFINED)
        else:
            texts.append(by_id.get(id, f"[PAD{id}]"))
            types.append(NORMAL if id in by_id else UNUSED)
    return tuple(texts), tuple(types)


def _merges(own: dict[str, Any]) -> Iterator[str]:
    for merge in own["model"]["merges"]:
        yield merge if isinstance(merge, str) else " ".join(merge)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """llama.cpp's names for special tokens; the one that ends a turn is `eot`.

    Where the tokenizer begins no text, or ends none, the end of a turn stands in: llama.cpp would
    take token 11 instead.
    """
    end = chat.end_of_turn(tokenizer)
    found = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "eot": end,
    }
    eos = end if found["eos"] is None else found["eos"]
    bos = eos if found["bos"] is None else found["bos"]
    told = {**found, "eos": eos, "bos": bos}
    return {name: id for name, id in told.items() if id is not None}


def template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template; of one that asks for a token that there is none of, that is said first.

    transformers leaves such a name undefined, llama.cpp always has a token for it.
    """
    text = tokenizer.get_chat_template()
    missing = [
        name
        for name in ("bos_token", "eos_token")
        if getattr(tokenizer, name) is None and name in text
    ]
    return "".join(f"{{%- set {name} = '' -%}}" for name in missing) + text
