"""What a text has to hold: placeholders, a postscript, one of some answers."""

from __future__ import annotations

import re

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many words in square brackets, `[address]`."""
    return sum(map(_num_brackets, text.split("\n"))) >= num_placeholders


def _num_brackets(line: str) -> int:
    """How many pairs of brackets a line has; counted by hand, since a regular expression would
    look through the rest of the line for each bracket that never closes."""
    count, end = 0, -1
    while (begin := line.find("[", end + 1)) >= 0 and (end := line.find("]", begin)) >= 0:
        count += 1
    return count


def postscript(text: str, *, postscript_marker: str) -> bool:
    """A postscript's mark stands somewhere; `P.S.` may be written `p. s.`"""
    mark = postscript_marker.strip()
    pattern = POSTSCRIPTS.get(mark) or re.escape(mark.lower())
    return re.search(pattern, text.lower()) is not None


def constrained_response(text: str) -> bool:
    """One of three answers stands there, letter for letter."""
    return any(answer in text for answer in ANSWERS)
