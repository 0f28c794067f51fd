"""Answers whose worth is known: real texts with labels, one reader a set.

The folder is laid out as the data sets' own files: `gsm8k/model_solutions.jsonl.gz`,
`verifier_pairs/pairs.jsonl` and so on. Every reader yields (problem, trace, label); a label is
None where nobody could tell.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from limbeck.types import Message, Problem, Trace
from limbeck.verifiers import final_answer

FOUND_A_LETTER = re.compile(r"answer is \(?[A-J]\)?|[aA]nswer:\s*[A-J]")  # MMLU-Pro's own rule
GROUPING = re.compile(r"(?<=\d)(?:\{,\}|,\\!)(?=\d{3}(?!\d))")
SPACING = re.compile(r"\s|\\[,;:! ]|\$")
TAGS = {
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
    "<|begin_of_solution|>": "",
    "<|end_of_solution|>": "",
}


Labelled = tuple[Problem, Trace, bool | None]
"""A problem, a text that answers it, and whether the text is right; None: nobody knows."""


def labelled(
    id: str,
    question: str,
    gold: str,
    text: str,
    label: bool | None,
    verifier: str = "math",
    meta: dict[str, Any] | None = None,
) -> Labelled:
    """One row of a set."""
    problem = Problem(id, (Message("user", question),), gold, verifier, meta=meta or {})
    return problem, Trace(id, id, 0, text, "stop", "labelled"), label


def is_disputed(problem: Problem, trace: Trace, label: bool | None) -> bool:
    """Whether a text is labelled wrong though its final answer is the gold answer as written.

    Spacing and the commas between groups of digits aside; the graders that made the labels
    stumbled over those.
    """
    answer, _ = final_answer(trace)
    return label is False and answer is not None and _bare(answer) == _bare(problem.answer)


def _bare(answer: str) -> str:
    return SPACING.sub("", GROUPING.sub("", answer))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, gzipped or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def pairs(folder: Path) -> Iterator[Labelled]:
    """The test cases of four verifiers, each by its own convention; texts as they are."""
    for row in rows(folder / "verifier_pairs" / "pairs.jsonl"):
        yield labelled(row["id"], "", row["gold"], row["pred"], row["equal"])


def math500_gpt_answers(folder: Path) -> Iterator[Labelled]:
    """MATH-500's gold answers against the same in another notation, some broken by it."""
    for row in rows(folder / "verifier_pairs" / "math500_gpt_answers.jsonl"):
        id = f"gpt/{row['unique_id']}"
        yield labelled(id, "", row["gold"], row["prediction"], row["equal_checked"])


def model_answers(folder: Path) -> Iterator[Labelled]:
    """Pairs of a gold answer and what a model put in its box."""
    for row in rows(folder / "verifier_pairs" / "model_answers.jsonl"):
        text = rf"\boxed{{{row['prediction']}}}"
        yield labelled(row["trace_id"], "", row["gold"], text, row["equal"])


def reasoning_traces(name: str) -> Callable[[Path], Iterator[Labelled]]:
    """Whole texts of reasoning models, thinking and all."""

    def read(folder: Path) -> Iterator[Labelled]:
        for row in rows(folder / "reasoning_traces" / f"{name}.jsonl.gz"):
            label = row["correct_checked"]
            yield labelled(row["id"], row["problem"], row["gold"], _think(row["response"]), label)

    return read


def _think(text: str) -> str:
    """A text in `<think>` tags, whichever it was written in.

    How a text ended is not on record; one without its closing tag is unfinished by itself.
    """
    for tag, ours in TAGS.items():
        text = text.replace(tag, ours)
    return text


def gsm8k(folder: Path) -> Iterator[Labelled]:
    """Solutions of small models, which end in `A: 18`."""
    for row in rows(folder / "gsm8k" / "model_solutions.jsonl.gz"):
        id, gold = f"gsm8k/{row['idx']}/{row['model']}", row["ground_truth"].rpartition("A: ")[2]
        yield labelled(id, row["question"], gold, row["solution"], row["is_correct"])


def mmlu_pro_outputs(folder: Path) -> Iterator[Labelled]:
    """Free text that ends in a letter; unlabelled where its authors found none or drew one."""
    for row in rows(folder / "mmlu_pro_outputs" / "outputs.jsonl.gz"):
        text, pred = row["generated_text"], row["pred"]
        known = pred is not None and FOUND_A_LETTER.search(text) is not None
        yield labelled(
            f"{row['model']}/{row['question_id']}",
            row["question"],
            row["answer"],
            text,
            pred == row["answer"] if known else None,
            verifier="choice",
            meta={"choices": row["options"]},
        )
