"""A row of somebody's table as a problem: which columns say what, and how options are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from limbeck.errors import UserError
from limbeck.problems import is_text, make_problem, protocol
from limbeck.problems.programs import reference_of, tests_of
from limbeck.types import Problem

LETTER = re.compile(r"\(?([A-Z])(?:[).:]|$)\s*")  # of an option, or as an answer


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, and how a question is put; the knobs of `file` and `hub`.

    `question`, `answer`, `domain`, `choices` and `tests` name columns. `answer_after` is the mark
    behind which the answer stands in its column (GSM8K: `####`). `prompt` is what is asked,
    `{question}` in it the question, with its options where there are `choices`; `{tests}` the
    assertions that a program has to pass (MBPP shows them). `choices` holds the options' texts, or
    `text` and `label` (ARC); the answer is then a letter, an option's number from 0, its label or
    its text, and becomes the letter. `tests` holds a program's tests in one of the layouts of
    `programs.py`; the answer is then a program, and may be missing. `source` is the data set's
    name, `licence` its licence, where known.
    """

    question: str = "question"
    answer: str = "answer"
    answer_after: str | None = None
    verifier: str | dict[str, Any] = "number"
    prompt: str = "{question}"
    domain: str | None = None
    choices: str | None = None
    tests: str | None = None
    source: str = ""
    licence: str | None = None


def problem_from_row(row: Mapping[str, Any], where: str, columns: Columns) -> Problem:
    """Raises UserError at `where` if a column, the mark or the answer is missing."""
    if "{question}" not in columns.prompt:
        raise UserError(where, "the prompt has no {question}", "write {question} into `prompt`")
    asked, answered, known = _parts(row, where, columns)
    if not asked or not (answered or columns.tests):
        raise UserError(where, "an empty question or answer", "drop the row or name other columns")
    asserted = [test["asserts"] for test in known.get("tests", ()) if "asserts" in test]
    texts = {"{question}": asked, "{tests}": "\n".join(asserted)}
    licence = {"licence": columns.licence} if columns.licence else {}
    # What only says how to answer can give way to other words; another prompt may be the task.
    bare = {"question": asked} if columns.prompt in (protocol.BOXED, protocol.LETTER) else {}
    return make_problem(
        # In one go, and not str.format: questions and prompts speak of {tests} and \boxed{}.
        re.sub(r"\{question\}|\{tests\}", lambda mark: texts[mark[0]], columns.prompt),
        answered,
        verifier=columns.verifier,
        domain=_text(row, columns.domain, where) if columns.domain else "",
        meta={"source": columns.source, **licence, **bare, **known},
    )


def _parts(row: Mapping[str, Any], where: str, columns: Columns) -> tuple[str, str, dict[str, Any]]:
    """(question with its options, answer, what else `meta` should know)."""
    asked = _text(row, columns.question, where)
    if columns.tests:
        known = tests_of(row, columns.tests, where)
        return asked, reference_of(row, columns.answer, known.get("prefix", "")), known
    if columns.choices:
        texts, labels = _choices(row, columns.choices, where)
        letter = _letter(_cell(row, columns.answer, where), texts, labels, where)
        options = (f"{ascii_uppercase[i]}) {text}" for i, text in enumerate(texts))
        return asked and "\n".join([asked, "", *options]), letter, {"choices": texts}
    return asked, _short_answer(row, columns, where), {}


def _short_answer(row: Mapping[str, Any], columns: Columns, where: str) -> str:
    answered, mark = _text(row, columns.answer, where), columns.answer_after
    if mark is None:
        return answered
    if mark not in answered:
        what = f"no {mark!r} in {columns.answer!r}"
        raise UserError(where, what, f"write the answer behind {mark!r}")
    return answered.rpartition(mark)[2].strip()


def _choices(row: Mapping[str, Any], column: str, where: str) -> tuple[list[str], list[str]]:
    """(texts of the options without the letters that they may begin with, their labels)."""
    cell = _cell(row, column, where)
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            what = f"{column!r} is no JSON ({error})"
            raise UserError(where, what, "mend it, or name another column") from error
    labels = list(ascii_uppercase)
    if isinstance(cell, Mapping) and isinstance(cell.get("label"), list):
        labels, cell = [str(label) for label in cell["label"]], cell.get("text")
    if not isinstance(cell, list) or not 2 <= len(cell) <= len(ascii_uppercase):
        what = f"{column!r} holds no 2 to {len(ascii_uppercase)} options"
        raise UserError(where, what, "name the column with the list of options")
    texts = [str(text).strip() for text in cell]
    begun = [LETTER.match(text) for text in texts]
    if all(
        m and m[1] == ascii_uppercase[i] and m.end() < len(m.string) for i, m in enumerate(begun)
    ):
        texts = [text[m.end() :] for m, text in zip(begun, texts, strict=True) if m]
    return texts, labels[: len(texts)]


def _letter(answer: Any, texts: list[str], labels: list[str], where: str) -> str:
    """The letter of the right option, however the row names it."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        place = answer if 0 <= answer < len(texts) else None
    else:
        told = str(answer).strip()
        match = LETTER.fullmatch(told)
        names = [told, match[1] if match else told]
        found = [known.index(name) for name in names for known in (labels, texts) if name in known]
        place = found[0] if found else None
    if place is None:
        what = f"the answer {answer!r:.40} is none of the {len(texts)} options"
        raise UserError(where, what, "name the column with the right option's letter or number")
    return ascii_uppercase[place]


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    text = str(_cell(row, column, where)).strip()
    if not is_text(text):
        raise UserError(where, f"half a character in {column!r}", "mend it, or drop the row")
    return text


def _cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    if row.get(column) is None:
        raise UserError(where, f"no {column!r}", f"name one of {', '.join(map(str, row))}")
    return row[column]
