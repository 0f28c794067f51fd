"""How a text has to begin and end, and the one punctuation mark that it must not have."""

from __future__ import annotations


def end_checker(text: str, *, end_phrase: str) -> bool:
    """It ends with a phrase, capitals and quotation marks around the text aside."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """All of it stands in double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(text: str) -> bool:
    """No comma anywhere."""
    return "," not in text
