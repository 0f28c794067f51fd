"""Capitals and small letters."""

from __future__ import annotations

import re
from collections.abc import Iterator

from limbeck.verifiers.instructions.language import response_language
from limbeck.verifiers.instructions.relation import Relation, holds

# What never is part of a word in the Penn Treebank's way of writing: white space, quotes, brackets,
# marks; a colon or comma unless a digit follows it; two periods and more; dashes.
APART = re.compile(r"[\s?!;@#$%&*()\[\]{}<>«»“”„‘’`\"‒–—―]+|[:,](?=\D|$)|\.{2,}|--|''")
CLITIC = re.compile(r"(?<=[^'])(?='[SsMmDd]$|'(?:ll|LL|re|RE|ve|VE)$|(?:n't|N'T)$)")
TWO_WORDS = re.compile(r"(?i)\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")


def english_capital(text: str) -> bool:
    """English, without a small letter."""
    return text.isupper() and response_language(text, language="en")


def english_lowercase(text: str) -> bool:
    """English, without a capital letter."""
    return text.islower() and response_language(text, language="en")


def capital_word_frequency(
    text: str, *, capital_frequency: int, capital_relation: Relation
) -> bool:
    """So many words all in capitals, `I` and `A` among them; `DON'T` is two, `DO` and `N'T`."""
    return holds(sum(word.isupper() for word in words(text)), capital_relation, capital_frequency)


def words(text: str) -> Iterator[str]:
    """The words of a text as the Penn Treebank parts them, punctuation left out."""
    for piece in APART.split(TWO_WORDS.sub(_parted, text)):
        yield from CLITIC.split(piece)


def _parted(match: re.Match[str]) -> str:
    return " ".join(part for part in match.groups() if part)
