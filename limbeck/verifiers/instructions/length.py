"""How many words, sentences and paragraphs a text has, and how one of these begins."""

from __future__ import annotations

import re

from limbeck.verifiers.instructions.relation import Relation, holds
from limbeck.verifiers.instructions.sentences import num_sentences as count_sentences

WORD = re.compile(r"\w+")
DIVIDER = re.compile(r"\s?\*\*\*\s?")
ENDS_WORD = re.compile(r"[.,?!'\"]")


def number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    """So many words, each a run of letters, digits and underscores: `don't` is two."""
    return holds(len(WORD.findall(text)), relation, num_words)


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    """So many sentences, as `sentences` parts them."""
    return holds(count_sentences(text), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """So many paragraphs between dividers `***`, none empty but the first and the last."""
    first, *inner = DIVIDER.split(text)
    last = inner.pop() if inner else ""
    filled = [bool(part.strip()) for part in (first, *inner, last)]
    return all(filled[1:-1]) and sum(filled) == num_paragraphs


def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """So many paragraphs between empty lines, the nth of which begins with a word.

    Empty paragraphs do not count, but are in their place when the nth is looked for.
    """
    paragraphs = text.split("\n\n")
    num_filled = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if num_filled != num_paragraphs or not 1 <= nth_paragraph <= num_filled:
        return False
    words = paragraphs[nth_paragraph - 1].split(None, 1)
    return bool(words) and _bare(words[0]) == first_word.lower()


def _bare(word: str) -> str:
    """In lower case, without quotes before it and whatever follows its letters."""
    return ENDS_WORD.split(word.lstrip("'").lstrip('"'), maxsplit=1)[0].lower()
