"""IFEval's 25 kinds of instructions, each a function `(text, *, knobs) -> bool`.

Zhou et al. 2023, https://arxiv.org/abs/2311.07911. A function's keyword-only parameters are the
`kwargs` of IFEval's data; here an instruction's id finds its function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import validate_call

from limbeck.verifiers.instructions import (
    case,
    combination,
    content,
    ends,
    format,
    keywords,
    language,
    length,
)

FUNCTIONS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": case.capital_word_frequency,
    "change_case:english_capital": case.english_capital,
    "change_case:english_lowercase": case.english_lowercase,
    "combination:repeat_prompt": combination.repeat_prompt,
    "combination:two_responses": combination.two_responses,
    "detectable_content:number_placeholders": content.number_placeholders,
    "detectable_content:postscript": content.postscript,
    "detectable_format:constrained_response": content.constrained_response,
    "detectable_format:json_format": format.json_format,
    "detectable_format:multiple_sections": format.multiple_sections,
    "detectable_format:number_bullet_lists": format.number_bullet_lists,
    "detectable_format:number_highlighted_sections": format.number_highlighted_sections,
    "detectable_format:title": format.title,
    "keywords:existence": keywords.existence,
    "keywords:forbidden_words": keywords.forbidden_words,
    "keywords:frequency": keywords.frequency,
    "keywords:letter_frequency": keywords.letter_frequency,
    "language:response_language": language.response_language,
    "length_constraints:nth_paragraph_first_word": length.nth_paragraph_first_word,
    "length_constraints:number_paragraphs": length.number_paragraphs,
    "length_constraints:number_sentences": length.number_sentences,
    "length_constraints:number_words": length.number_words,
    "punctuation:no_comma": ends.no_comma,
    "startend:end_checker": ends.end_checker,
    "startend:quotation": ends.quotation,
}
CHECKED = {name: validate_call(function) for name, function in FUNCTIONS.items()}


def is_followed(text: str, name: str, knobs: Mapping[str, Any]) -> bool:
    """Whether a text follows an instruction; ValueError if there is none of that id or knobs.

    Knobs that are None are left out: tables name all that any instruction has.
    """
    if name not in CHECKED:
        raise ValueError(f"no instruction {name!r}")
    return CHECKED[name](text, **{key: knob for key, knob in knobs.items() if knob is not None})
