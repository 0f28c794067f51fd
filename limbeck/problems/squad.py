"""Questions on a paragraph, whose answers are words of it: SQuAD, and whatever is laid out like it.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from limbeck import guard
from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.guard import jsons
from limbeck.problems import file, hub, is_text, make_problem, source_name
from limbeck.problems.protocol import Protocol
from limbeck.types import Problem

# A sentence ends at . ! or ?, with what closes behind it, before white space and whatever may begin
# another one. It does not end behind an initial, a title or a shortened word (J. Dr. e.g.), nor
# behind a short word before a number (No. 5, Op. 58).
END = re.compile(r"[.!?]+[\"'”’)\]]*(?:\[\d+\])*\s+(?=[\"'“‘(\[]*[A-Z0-9À-Þ])")
SHORT = re.compile(
    r"(?:(?:[A-Za-z]\.)*[A-Za-z]|Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Lt|Sgt|Capt|Rep|Sen|Rev|Hon|Jr|Sr"
    r"|Mt|Ft|No|Nos|vs|cf|ca|etc|approx|Inc|Ltd|Co|Corp|Fig|Vol|pp|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov"
    r"|Dec)\."
)
ANSWER = ("text", "answer_start")
REPEAT = "Repeat the text."
PROTOCOL = Protocol(
    num_samples=1,
    num_problems=10_570,
    greedy=True,
    knobs={"split": "validation"},
    differs=(
        "The dev set is the test: that of its authors is not given out.",
        "All gold answers count, the best for each; evaluations with the first alone are lower.",
        "An empty answer is wrong; checks by inclusion take it for right.",
        "Of questions that stand twice on a paragraph, one counts: 10,552 of 10,570.",
        "Chat models answer in sentences: F1 forgives that in part, exact match does not.",
    ),
)


def read(
    *,
    dataset: str = "rajpurkar/squad",
    split: str = "train",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = "{context}\n\n{question}",
    sentences: PositiveInt | None = None,
    questions_per_context: PositiveInt | None = None,
    repeat: bool = False,
    licence: str | None = "CC BY-SA 4.0",
) -> Iterator[Problem]:
    """One problem a question, in the source's order; judged by `squad`, with all its gold answers.

    From the Hugging Face hub, or from a file on this machine at `path`, which goes before it: a
    table with the hub's columns (id, title, context, question, answers), or the official
    `dev-v1.1.json[.gz]`. `sentences` cuts the context to so many, around the answer; the same is
    done to held-out questions, which are so much easier than SQuAD's. `questions_per_context`
    leaves out further questions on a context: those of one are not independent. `repeat` asks for
    the whole context in place of the question: before a miniature can answer in words of a text, it
    has to learn to copy them. An article is
    never split between what is learned and what is held out. A question without an answer, as
    SQuAD 2.0 has them, is left out. Raises UserError that names the row.
    """
    if "{question}" not in prompt:
        raise UserError("prompt", "has no {question}", "write {question} into `prompt`")
    asked = Counter[str]()
    source = source_name(path or dataset)
    for where, row in _rows(path, dataset, split, revision):
        context, question, answers = _checked(row, where)
        asked[context] += 1
        if not answers or asked[context] > (questions_per_context or asked[context]):
            continue
        first, start = answers[0]
        if sentences:
            context = around(context, start, start + len(first), sentences)
        if repeat:
            question, answers = REPEAT, [(context, 0)]
        yield make_problem(
            _filled(prompt, {"{context}": context, "{question}": question}),
            answers[0][0],
            verifier="squad",
            meta={
                "source": source,
                **({"licence": licence} if licence else {}),
                "id": str(row.get("id", "")),
                "answers": list(dict.fromkeys(text for text, _ in answers)),
                "group": str(row.get("title", "")),
            },
        )


def check(**knobs: Any) -> None:
    """Raises UserError if the prompt asks nothing, or the file at `path` is of another layout."""
    if "{question}" not in knobs["prompt"]:
        raise UserError("prompt", "has no {question}", "write {question} into `prompt`")
    if knobs["path"] and next(read(**knobs), None) is None:
        raise UserError(knobs["path"], "holds no question with an answer", "give another file")


def _filled(prompt: str, texts: Mapping[str, str]) -> str:
    """In one go: a context may speak of {question}."""
    return re.sub(r"\{context\}|\{question\}", lambda mark: texts[mark[0]], prompt)


def around(context: str, begin: int, end: int, num: int) -> str:
    """The sentences that hold context[begin:end], and more on both sides until there are `num`."""
    bounds = sentence_bounds(context)
    first = max(i for i, (start, _) in enumerate(bounds) if start <= begin)
    last = min(i for i, (_, stop) in enumerate(bounds) if stop >= end)
    last = max(first, last)
    while last - first + 1 < min(num, len(bounds)):
        if first > 0:
            first -= 1
        if last - first + 1 < num and last + 1 < len(bounds):
            last += 1
    return context[bounds[first][0] : bounds[last][1]].strip()


def sentence_bounds(text: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends; together they are the whole text."""
    ends = [match.end() for match in END.finditer(text) if not _is_short(text, match)]
    edges = [0, *ends, len(text)]
    return [(begin, end) for begin, end in pairwise(edges) if begin < end] or [(0, 0)]


def _is_short(text: str, end: re.Match[str]) -> bool:
    """Whether what looks like a sentence's end only ends a shortened word."""
    begin = max(text.rfind(mark, 0, end.start()) for mark in " (\n") + 1
    word = text[begin : end.start() + 1]
    before_number = text[end.end()].isdigit() and len(word) <= 4 and word[:-1].isalpha()
    return before_number or SHORT.fullmatch(word) is not None


def _rows(
    path: str | None, dataset: str, split: str, revision: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    if path is None:
        yield from hub.rows(dataset=dataset, split=split, revision=revision)
    elif path.endswith((".json", ".json.gz")):
        yield from _official_rows(Path(path))
    else:
        yield from file.rows(path=path)


def _official_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of each question of a file of the official layout, as the hub has it."""
    try:
        for number, article in enumerate(_whole(path)["data"]):
            where = f"{path}:data[{number}]"
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    told = {key: [a[key] for a in question["answers"]] for key in ANSWER}
                    row = {"title": article["title"], "context": paragraph["context"]}
                    yield where, {**question, **row, "answers": told}
    except (KeyError, TypeError) as error:
        what = f"is not laid out as SQuAD is ({type(error).__name__}: {error})"
        raise UserError(str(path), what, "give data[].paragraphs[].qas[]") from error


def _whole(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(str(path), "no such file", "mend `path`")
    try:
        content = b"".join(guard.lines(path))
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read ({error})", "fetch it again") from error
    return jsons.parse(path, content)


def _checked(row: Mapping[str, Any], where: str) -> tuple[str, str, list[tuple[str, int]]]:
    """(context, question, [(answer, where it begins)]); UserError for a row of another layout."""
    try:
        context, question, answers = row["context"], row["question"], row["answers"]
        pairs = [*zip(*(answers[key] for key in ANSWER), strict=True)]
        if not is_text(context + question + f"{row.get('id')}{row.get('title')}"):
            raise ValueError("half a character")
        for text, start in pairs:
            if context[start : start + len(text)] != text:
                what = f"the answer {text[:40]!r} does not stand at {start}"
                raise UserError(where, what, "mend the row, or drop it")
        return context, question, pairs
    except (KeyError, TypeError, ValueError) as error:
        what = f"is no question of SQuAD's layout ({type(error).__name__}: {error})"
        way_out = "give context, question and answers {text, answer_start}"
        raise UserError(where, what, way_out) from error
