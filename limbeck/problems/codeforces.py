"""Codeforces: contest problems with the ratings at which half of the participants solve them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.problems import make_problem, public, source_name
from limbeck.problems.protocol import Protocol
from limbeck.types import Problem

PROMPT = (
    "Solve this problem with a Python 3 program that reads its input from stdin and prints its"
    " output to stdout. Think first; then give the whole program in one block of Python, and"
    " nothing behind it.\n\n{question}"
)
TIME_S, MEMORY_MB = 2.0, 256  # where a problem does not say
SECTIONS = (
    ("description", ""),
    ("input_format", "Input\n\n"),
    ("output_format", "Output\n\n"),
    ("examples", ""),
    ("note", "Note\n\n"),
)
PROTOCOL = Protocol(
    num_samples=16,
    num_problems=468,
    paper="codeforces",
    differs=(
        "The paper asks ten Div. 2 rounds, judged by tests that experts wrote; these are the test"
        " split's rounds, of any division, judged by the site's own tests.",
        "Left out is what printed output alone cannot judge: interactive problems, those with"
        " several right outputs, without a rating, or whose tests the site shows in part.",
        "Programs are Python, under limits of time that were set for C++.",
        "The rating is that of solved problems by maximum likelihood, without the penalties for"
        " time and wrong attempts that the site's own counts.",
    ),
)


def read(
    *,
    dataset: str = "open-r1/codeforces",
    complete: bool = True,
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = PROMPT,
) -> Iterator[Problem]:
    """Columns `description`, `official_tests`, `rating`, `contest_id` and what describes a problem.

    `meta["rating"]` is the problem's, its domain the contest. Unless all tests must be `complete`,
    problems count whose long tests the site does not show: there are more, and slow programs pass.
    """
    source = source_name(path or dataset)
    rows = public.read_table(path=path, dataset=dataset, config="default", revision=revision)
    for where, row in rows:
        if _is_judged_by_output(row) and (row.get("official_tests_complete") or not complete):
            yield _problem(row, where, source, prompt)


def _is_judged_by_output(row: Mapping[str, Any]) -> bool:
    return bool(
        row.get("rating")
        and row.get("description")
        and row.get("official_tests")
        and row.get("input_mode") == "stdio"
        and not row.get("generated_checker")
        and not row.get("interaction_format")
    )


def _problem(row: Mapping[str, Any], where: str, source: str, prompt: str) -> Problem:
    try:
        tests = [{"stdin": t["input"], "stdout": t["output"]} for t in row["official_tests"]]
        question = statement(row)
        limits = {
            "time_s": float(row["time_limit"] or TIME_S),
            "memory_mib": int(row["memory_limit"] or MEMORY_MB),
        }
        contest, index = str(row["contest_id"]), str(row.get("index") or "")
        rating = int(row["rating"])
    except (KeyError, TypeError, ArithmeticError, ValueError, AttributeError) as error:
        what = f"is no row of the layout of open-r1/codeforces ({type(error).__name__}: {error})"
        raise UserError(where, what, "fetch the set again") from error
    return make_problem(
        public.asked(prompt, question),
        "",
        verifier={"name": "code", **limits},
        domain=contest,
        meta={"source": source, "id": f"{contest}/{index}", "rating": rating, "tests": tests},
    )


def statement(row: Mapping[str, Any]) -> str:
    """What the site shows: title, limits, the problem, its formats, examples and note."""
    title = str(row.get("title") or "").strip()
    time_s, memory_mb = row["time_limit"] or TIME_S, row["memory_limit"] or MEMORY_MB
    limits = f"Time limit: {time_s:g} s. Memory limit: {memory_mb:g} MB."
    texts = {**row, "examples": _examples(row.get("examples") or ())}
    told = [f"{head}{str(texts[name]).strip()}" for name, head in SECTIONS if texts.get(name)]
    return "\n\n".join([title, limits, *told]).strip()


def _examples(examples: Any) -> str:
    shown = (f"Input:\n{e['input'].strip()}\nOutput:\n{e['output'].strip()}" for e in examples)
    return "\n\n".join(f"Example {number}\n{text}" for number, text in enumerate(shown, 1))
