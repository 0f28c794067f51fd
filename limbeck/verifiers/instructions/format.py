"""What a text has to look like: lists, highlights, sections, a title, JSON."""

from __future__ import annotations

import json
import re

BULLETS = (re.compile(r"^[^\S\n]*\*[^*].*$", re.M), re.compile(r"^[^\S\n]*-.*$", re.M))
HIGHLIGHTED = re.compile(r"\*([^\n*]*)\*")
BOLD = re.compile(r"\*\*([^\n*]*)\*\*")
FENCES = ("```json", "```Json", "```JSON", "```")


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that begin with `*` or `-`; a rule `---` is one, too."""
    return sum(len(bullet.findall(text)) for bullet in BULLETS) == num_bullets


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many `*highlights*` on a line, or `**bold**` ones."""
    found = [*HIGHLIGHTED.findall(text), *BOLD.findall(text)]
    return sum(bool(inside.strip()) for inside in found) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many headings, a word and a number: `SECTION 1`."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def title(text: str) -> bool:
    """Something stands in double angular brackets on one line, `<<a title>>`."""
    return any(map(_has_title, text.split("\n")))


def _has_title(line: str) -> bool:
    """From the first opening brackets to the last closing ones, at least a letter between."""
    begin, end = line.find("<<"), line.rfind(">>")
    return 0 <= begin < end - 2 and bool(line[begin:end].lstrip("<").rstrip(">").strip())


def json_format(text: str) -> bool:
    """The whole is JSON, perhaps in a fence."""
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True
