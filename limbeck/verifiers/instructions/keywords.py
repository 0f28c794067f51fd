"""Words and letters that a text has to have, or must not have. Capitals are as good as others."""

from __future__ import annotations

import re
from string import ascii_lowercase

from limbeck.verifiers.instructions.relation import Relation, holds

DRAWN = "e"  # the commonest letter


def existence(text: str, *, keywords: list[str]) -> bool:
    """Every keyword stands somewhere, be it inside a word."""
    return all(num_times(text, keyword) for keyword in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """The keyword stands there so often, be it inside words."""
    return holds(num_times(text, keyword.strip()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    """None of the words stands there as a word of its own."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """The letter stands there so often.

    Two prompts of IFEval ask for `#` and `!` in place of a letter. The reference then draws a
    letter at random and counts that; here it is always the same, so that the figures are those
    that others publish, and the verdict on such a prompt says nothing.
    """
    letter = letter.strip().lower()
    counted = letter if len(letter) == 1 and letter in ascii_lowercase else DRAWN
    return holds(text.lower().count(counted), let_relation, let_frequency)


def num_times(text: str, keyword: str) -> int:
    """How often a keyword stands in a text, overlaps not counted."""
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))
