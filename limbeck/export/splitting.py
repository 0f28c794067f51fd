"""How a tokenizer splits a text before its merges, and which of llama.cpp's ways is the same.

llama.cpp knows splittings by name alone. One is taken because it splits alike, never because of
what a model is called: candidates are tried on the tokenizer itself.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

NUM_TRIALS = 2000
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACE = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
OTHER = r"[^\r\n\p{L}\p{N}]?"
CASED = (rf"{OTHER}{UPPER}*{LOWER}+", rf"{OTHER}{UPPER}+{LOWER}*")
MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
DEEPSEEK = (
    rf"{PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*{SPACE}"
)


@dataclass(frozen=True)
class Splitting:
    """Regular expressions that cut a text one after another; what they leave is a piece, too.

    With `whole_words` a piece that is a token as it stands is not merged from its letters.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False


# Read off llama.cpp's src/llama-vocab.cpp, in the words of the tokenizers that they were made for.
KNOWN = {
    "gpt-2": Splitting((GPT2,)),
    "smollm": Splitting((r"\p{N}", GPT2)),
    "qwen2": Splitting((rf"{SHORT}|{OTHER}\p{{L}}+|\p{{N}}|{MARKS}{SPACE}",)),
    "qwen35": Splitting(
        (rf"{SHORT}|{OTHER}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{SPACE}",)
    ),
    "llama-bpe": Splitting((rf"{SHORT}|{OTHER}\p{{L}}+|\p{{N}}{{1,3}}|{MARKS}{SPACE}",), True),
    "dbrx": Splitting((rf"{SHORT}|{OTHER}\p{{L}}+|\p{{N}}{{1,3}}|{MARKS}{SPACE}",)),
    "deepseek-v3": Splitting((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK)),
    "tekken": Splitting((rf"{CASED[0]}|{CASED[1]}|\p{{N}}|{SLASHED}{SPACE}",), True),
    "gpt-4o": Splitting(
        (rf"{CASED[0]}{SHORT}?|{CASED[1]}{SHORT}?|\p{{N}}{{1,3}}|{SLASHED}{SPACE}",)
    ),
    "superbpe": Splitting((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
}


def find(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str | None:
    """The name of a splitting that gives the tokenizer's own tokens for `texts` and for trials
    drawn from its vocabulary; None where there is none."""
    own = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = [*texts, *trials(tokenizer, NUM_TRIALS)]
    wanted = _encode(tokenizer.backend_tokenizer, texts)
    alike = Splitting(patterns(own), bool(own["model"].get("ignore_merges")))
    for name in sorted(KNOWN, key=lambda name: KNOWN[name] != alike):  # the same one first
        if _encode(_split_so(own, KNOWN[name]), texts) == wanted:
            return name
    return None


def patterns(own: dict[str, Any]) -> tuple[str, ...]:
    """The regular expressions by which a tokenizer.json splits; empty where it does otherwise."""
    try:
        return tuple(_patterns(own.get("pre_tokenizer") or {}))
    except ValueError:
        return ()


def _patterns(split: dict[str, Any]) -> Iterator[str]:
    kind = split.get("type")
    if kind == "Sequence":
        for inner in split["pretokenizers"]:
            yield from _patterns(inner)
    elif kind == "Split" and "Regex" in split["pattern"]:
        if (split["behavior"], split["invert"]) not in (("Isolated", False), ("Removed", True)):
            raise ValueError("splits otherwise")
        yield split["pattern"]["Regex"]
    elif kind == "Digits":
        yield r"\p{N}" if split["individual_digits"] else r"\p{N}+"
    elif kind == "ByteLevel" and not split["add_prefix_space"]:
        if split["use_regex"]:
            yield GPT2
    else:
        raise ValueError("splits otherwise")


def trials(tokenizer: PreTrainedTokenizerBase, num: int) -> list[str]:
    """Texts drawn from the vocabulary: tokens in a row that no merge has seen side by side."""
    rng = random.Random(0)
    special = set(tokenizer.all_special_ids)
    ids = [id for id in sorted(tokenizer.get_vocab().values()) if id not in special]
    rows = [rng.choices(ids, k=rng.randint(1, 8)) for _ in range(num)]
    return [text.replace("\ufffd", "") for text in tokenizer.batch_decode(rows)]


def _split_so(own: dict[str, Any], splitting: Splitting) -> Tokenizer:
    """The same tokenizer with another splitting."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    other = Tokenizer.from_str(json.dumps(own))
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in splitting.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    other.model.ignore_merges = splitting.whole_words
    return other


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [each.ids for each in encoded]
