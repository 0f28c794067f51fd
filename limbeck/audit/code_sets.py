"""Programs with known labels: (problem, answer, whether it is right), from public sets as files."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.problems import make_problem
from limbeck.types import Problem, Trace

Labelled = tuple[Problem, Trace, bool]
STOP = re.compile(r"\n(?:class|def|#|if|print|assert|@|import|from)")  # what ends a completion


def humaneval(folder: Path) -> Iterator[Labelled]:
    """8,300 completions of a model, cut where the next top-level statement begins.

    Chen et al. 2021, arXiv:2107.03374; the completions are CodeT's (arXiv:2207.10397).
    """
    problems = humaneval_problems(folder)
    rows = _rows(folder / "humaneval" / "codegen16b_completions.jsonl.gz")
    for number, row in enumerate(rows):
        text = STOP.split(row["completion"], maxsplit=1)[0]
        yield _labelled(problems[row["task_id"]], f"{row['task_id']}-{number}", text, row["passed"])


def humaneval_problems(folder: Path) -> dict[str, Problem]:
    """The 164 problems by name; each answer is the body that follows the prompt."""
    return {
        row["task_id"]: make_problem(
            row["prompt"],
            row["canonical_solution"],
            verifier="code",
            domain="code",
            meta={
                "tests": [{"asserts": row["test"], "entry": row["entry_point"]}],
                "prefix": row["prompt"],
            },
        )
        for row in _rows(folder / "humaneval" / "HumanEval.jsonl.gz")
    }


def humaneval_references(folder: Path) -> Iterator[Labelled]:
    """Each problem's own solution, which is right."""
    for name, problem in humaneval_problems(folder).items():
        yield _labelled(problem, name, problem.answer, True)


def mbpp(folder: Path) -> Iterator[Labelled]:
    """974 problems with their own solutions, which are right (Austin et al. 2021)."""
    for row in _rows(folder / "mbpp" / "mbpp.jsonl"):
        test = {
            "asserts": "\n".join(row["test_list"]),
            "setup": row["test_setup_code"],
            "entry": _called(row["code"], row["test_list"][0]),
        }
        problem = make_problem(
            row["text"], row["code"], verifier="code", domain="code", meta={"tests": [test]}
        )
        yield _labelled(problem, f"mbpp-{row['task_id']}", row["code"], True)


def p3(folder: Path) -> Iterator[Labelled]:
    """Every solution of 1,715 puzzles that has one (Schuster et al. 2021, arXiv:2106.05784)."""
    for row in _rows(folder / "p3" / "puzzles.jsonl.gz"):
        imports = "from typing import *\n"
        for number, body in enumerate(row["sol_bodies"]):
            program = f"{imports}{row['sol_header']}\n{body}\n"
            problem = make_problem(
                f"{row['sat']}\n{row['sol_header']}\n{row['sol_docstring']}",
                program,
                verifier="code",
                domain="code",
                meta={"tests": [{"sat": row["sat"]}]},
            )
            yield _labelled(problem, f"{row['name']}-{number}", program, True)


def _called(program: str, test: str) -> str | None:
    """The function of a program that a test calls; it may be named like one of Python's own."""
    names = re.findall(r"^def (\w+)", program, re.MULTILINE)
    return next((name for name in names if re.search(rf"\b{name}\(", test)), None)


def _labelled(problem: Problem, name: str, text: str, label: bool) -> Labelled:
    return problem, Trace(name, problem.id, 0, text, "stop", "reference"), label


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        for line in file:
            yield json.loads(line)
