"""The answer is the gold letter of a multiple-choice question: exactly one letter, said plainly."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import (
    BOX,
    MAX_LETTERS,
    AnswerIn,
    answer_text,
    compatible,
    judged,
    last_boxed,
    no_answer,
    without_hidden,
)

MAX_BEFORE, MAX_BEHIND = 30, 1000  # letters around an answer in which it may be taken back

_FRAME = re.compile(r"\\(?:text|math|mbox)(?:bf|rm|it|sf|tt)?\s*\{([^{}]*)\}")
_SPACING = re.compile(r"(?:[*$`⟦⟧]|__|\\[,;: ()\[\]]|\\q?quad\b|\\(?:left|right)\b|[^\S\n])+")
_LETTER = (  # but no article, pronoun, variable or D-glucose
    r"[(\[] ?([{any}]) ?[)\]]"
    r"|(?<![\w'])(?:([{capital}])(?![\w'’]| ?[=+^<>]|-\w|\.\d)"
    r"(?!(?<=[AI]) (?!(?:because|since|as|with|which|and|or|but|for|due|is|given)\b)[a-z])"
    r"|(?m:^)([{any}])(?=\) )|(?:\A|(?<=[ :]))([{any}])(?= ?[.)]* ?(?:\n|\Z)))"
)
_BEST = r"(?:correct|right|best|final|closest|only|remaining|chosen)"
_FILLED = (  # "the answer should therefore be option …"
    r"(?: |\n|[:=–—-]|(?:is|was|be|would|should|must|will|has|to|therefore|thus|hence|then|so"
    rf"|clearly|simply|indeed|option|choice|letter|one|the|{_BEST})\b){{0,24}}"
)
_DECLARED = re.compile(
    rf"\b(?:answer|ans|{_BEST} (?:option|choice|letter|one))\b{_FILLED}⟦(.)⟧"
    rf"|\b(?:option|choice|letter)(?: is|:| :| =){_FILLED}⟦(.)⟧"
    rf"|⟦(.)⟧\)?,?(?: which)? (?:is|as) (?:(?:the|our|my|{_BEST}) )*(?:answer|option|choice|one)\b"
    r"|⟦(.)⟧\)?,?(?: which)? is (?:correct|right)\W*\Z"
    r"|\b(?:is|be|are) ?:? ?⟦(.)⟧\)\W*\Z",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?:(?:option|choice|answer) ?:? ?)?⟦(.)⟧([).:]*) ?(.*)", re.IGNORECASE)
_LEAD = re.compile(r"\b(?:answer|ans|option|choice)\b(?: is)? ?[:=]? ?", re.IGNORECASE)
_JOIN = r"(?:[ ,;/&+]|(?:and|or|but|also|maybe|perhaps|possibly|both|option|choice)\b)"
_ANOTHER = re.compile(rf"\)?{_JOIN}*⟦(.)⟧", re.IGNORECASE)  # "(A) and (C)"
_BEFORE = re.compile(rf"⟦(.)⟧\)?{_JOIN}+\Z", re.IGNORECASE)
_AGAIN = re.compile(r"(?:\W|(?:the|my|our|and|or|so|final|correct)\b)*", re.IGNORECASE)
_DOUBT = re.compile(  # "(A). Or wait, perhaps (C)"
    r"\b(?:or|but|also|maybe|perhaps|possibly|alternatively|actually|wait|instead|rather|might"
    r"|could|second thoughts?|correction|sorry|hmm|no)\b([^\n]{0,40}?)⟦(.)⟧",
    re.IGNORECASE,
)
_NOT = re.compile(r"(?:\b(?:not|never|neither|nor|doubt|wrong|incorrect)|n't)\b", re.IGNORECASE)


class Options(NamedTuple):
    """What may be chosen: its letters, and the text behind each where it is known."""

    letters: str
    texts: tuple[str, ...]


def verify(
    problem: Problem,
    trace: Trace,
    *,
    answer_in: AnswerIn = "after_thinking",
    letters: str = "ABCDEFGHIJ",
) -> Verdict:
    """The letter in the last box, else of the last "the answer is B", else of a line of its own.

    An option's text stands for its letter where `problem.meta["choices"]` lists the texts. Several
    letters, or one that is taken back, are no answer.
    """
    choices = problem.meta.get("choices") or ()
    letters = letters[: len(choices) or None]
    options = Options(letters, tuple(_marked(str(choice), letters) for choice in choices))
    gold = read_option(_marked(problem.answer, letters), options)
    if gold is None:
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = answer_text(trace, answer_in)
    if answer is None:
        return no_answer(trace, reason or "unparsed")
    found = read_answer(without_hidden(answer), options)
    return judged(trace, found == gold, found) if found else no_answer(trace, "unparsed")


def read_answer(answer: str, options: Options) -> str | None:
    """The one letter that a final answer gives."""
    boxed = last_boxed(answer)
    if boxed is not None:
        text = _marked(boxed, options.letters)
        found = read_option(text, options)
        if found or "⟦" in text:
            return found
        *_, mark = BOX.finditer(answer)
        answer = answer[mark.end() :]  # \boxed{42}, so the answer is (B)
    text = _marked(answer[-MAX_LETTERS:], options.letters)
    declared = [match for match in _DECLARED.finditer(text) if not _denied(text, match)]
    return _last_declared(text, declared) if declared else _of_a_line(text, options)


def read_option(text: str, options: Options) -> str | None:
    """The letter of a marked text that is an option and no more: `B`, `(b)`, `B) 12` or `12`."""
    match = _ALONE.fullmatch(text)
    if match is None:
        return _with_text(text, options)
    letter, close, rest = match.groups()
    if rest and options.texts:
        return letter if _with_text(rest, options) == letter else None
    return letter if not rest or (")" in close and _is_one_text(rest)) else None


def _is_one_text(rest: str) -> bool:
    return "⟦" not in rest and not _NOT.search(rest)


def _with_text(text: str, options: Options) -> str | None:
    """The letter of the only option that has this text."""
    wanted = text.casefold().strip(" .")
    pairs = zip(options.letters, options.texts, strict=False)
    found = [letter for letter, own in pairs if own.casefold().strip(" .") == wanted]
    return found[0] if len(found) == 1 else None


def _last_declared(text: str, declared: list[re.Match[str]]) -> str | None:
    """The last letter that is said to be the answer; None where others join or replace it."""
    last = declared[-1]
    before = text[max(0, last.start() - MAX_BEFORE) : last.start()]
    behind = text[last.end() : last.end() + MAX_BEHIND]
    others = [match for match in _DOUBT.finditer(behind) if not _NOT.search(match[1])]
    others += [match for match in (_ANOTHER.match(behind), _BEFORE.search(before)) if match]
    others += [m for m in declared[-2:-1] if _AGAIN.fullmatch(text, m.end(), last.start())]
    return None if {_named(match) for match in others} - {_named(last)} else _named(last)


def _named(match: re.Match[str]) -> str:
    return match[match.lastindex or 0]


def _denied(text: str, match: re.Match[str]) -> bool:
    """`I do not think that the answer is B`."""
    before = text[max(0, match.start() - MAX_BEFORE) : match.start()]
    return _NOT.search(re.split(r"[.\n]", before)[-1]) is not None


def _of_a_line(text: str, options: Options) -> str | None:
    """The letter of the first or last line, where it is an option and no line is another."""
    lines = [line.strip(" .#>") for line in text.splitlines() if line.strip(" .#>")]
    if not lines:
        return None
    found = [read_option(line, options) for line in lines]
    letter = found[-1] or found[0] or _of_a_sentence(lines[-1], options)
    return letter if {letter, None} >= set(found) else None


def _of_a_sentence(line: str, options: Options) -> str | None:
    """`The answer is 12 cm`."""
    *_, lead = [None, *_LEAD.finditer(line)]
    return read_option(line[lead.end() :], options) if lead and not _NOT.search(line) else None


def _marked(text: str, letters: str) -> str:
    """A text without LaTeX frames and markup, its letters marked: `The answer is ⟦B⟧`.

    White space becomes one space or one newline; a letter in brackets keeps the closing one.
    """
    text = _SPACING.sub(" ", _FRAME.sub(r"\1", _FRAME.sub(r"\1", compatible(text))))
    text = re.sub(r" ?\n[ \n]*", "\n", text).strip()

    def mark(match: re.Match[str]) -> str:
        letter = _named(match)
        return f"⟦{letter if letter in letters else letter.upper()}⟧{')' if match[1] else ''}"

    return _letter(letters).sub(mark, text)


@cache
def _letter(letters: str) -> re.Pattern[str]:
    any_case, capital = re.escape(letters + letters.lower()), re.escape(letters)
    return re.compile(_LETTER.replace("{any}", any_case).replace("{capital}", capital))
