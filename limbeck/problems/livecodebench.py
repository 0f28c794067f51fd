"""LiveCodeBench: problems of programming contests, by the day on which they came out.

Jain et al. 2024, https://arxiv.org/abs/2403.07974.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveInt

from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.problems import make_problem, public, source_name
from limbeck.problems.conversations import cell_of
from limbeck.problems.protocol import Protocol
from limbeck.types import Problem

ASK = (
    "Solve this problem with a Python program. Think first; then give the whole program in one"
    " block of Python, and nothing behind it.\n\n{question}\n\n"
)
STDIN = "The program reads its input from stdin and prints its output to stdout."
STARTER = "Begin with this code and complete it:\n\n```python\n{starter}\n```"
MODULES = [  # what a program may use without importing it, as on the sites that it is written for
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json"),
]
PREFIX = "".join(
    [
        *(f"from {module} import *\n" for module in (*MODULES, "builtins", "typing")),
        *(f"import {module}\n" for module in MODULES),
        "sys.setrecursionlimit(50_000)\n\n",
    ]
)
FREED = "globals().pop({name!r}, None)\n\n"  # a module's function is not the Solution's: add, count
MAX_BYTES = 1 << 30  # of one problem's tests, unpacked
STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"}
PROTOCOL = Protocol(
    num_samples=8,
    num_problems=880,
    paper="livecodebench",
    differs=(
        "The window of dates decides most: this is the paper's, August 2024 to January 2025, both"
        " whole; older problems are easier, and models have read them.",
        "It is cut out of release v5 of the smaller set, which has fewer tests than the first.",
        "Each test has 6 seconds and 4 GiB, as the authors' have; a slower machine fails more.",
        "What is printed is compared line by line as text; theirs takes 1.0 for 1.00.",
        "The program is the last block of Python, set behind the same imports as theirs.",
    ),
)


def _day(value: Any) -> Any:
    """YAML reads a plain 2024-08-01 as a date."""
    day = date.fromisoformat(value) if isinstance(value, str) else value
    return day.isoformat() if type(day) is date else value


Day = Annotated[str, BeforeValidator(_day)]


def read(
    *,
    dataset: str = "lighteval/code_generation_lite",
    release: str = "release_v5",
    start: Day = "2024-08-01",
    end: Day = "2025-01-31",
    tests_per_problem: PositiveInt | None = None,
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = ASK,
) -> Iterator[Problem]:
    """Problems of contests from `start` to `end`, both days included.

    Columns `question_content`, `starter_code`, `contest_date`, `metadata`, `public_test_cases` and
    `private_test_cases`. The set on the hub is a copy without a loading script. `tests_per_problem`
    leaves out all further tests (there may be 100 MB of them), so that more programs pass. The code
    to begin with, or what is to be read and printed, follows the prompt.
    """
    source = source_name(path or dataset)
    rows = public.read_table(path=path, dataset=dataset, config=release, revision=revision)
    for where, row in rows:
        if start <= str(cell_of(row, where, "contest_date"))[:10] <= end:
            yield _problem(row, where, source, prompt, tests_per_problem)


def check(*, start: str, end: str, **_: Any) -> None:
    """Raises UserError for a window that nothing is in."""
    if start > end:
        raise UserError("start", f"{start} is after {end}", "mend `start` or `end`")


def _problem(
    row: Mapping[str, Any], where: str, source: str, prompt: str, num_tests: int | None
) -> Problem:
    try:
        cases = _cases(row["public_test_cases"]) + _cases(row["private_test_cases"])
        name = json.loads(row["metadata"]).get("func_name")
        tests = [_test(case, name) for case in cases[:num_tests]]
        question, starter = str(row["question_content"]).strip(), str(row["starter_code"]).rstrip()
        if not tests or not question:
            raise ValueError("there is no question, or no test")
        json.dumps(tests, ensure_ascii=False).encode()  # or half a character was packed in
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        what = f"is no row of LiveCodeBench's layout ({type(error).__name__}: {error})"
        raise UserError(where, what, "fetch the set again") from error
    return make_problem(
        public.asked(prompt, question)
        + (STARTER.replace("{starter}", starter) if starter else STDIN),
        "",
        verifier={"name": "code", "time_s": 6.0, "memory_mib": 4096},
        domain=str(row.get("difficulty") or ""),
        meta={
            "source": source,
            "id": str(row.get("question_id") or ""),
            "date": str(row["contest_date"])[:10],
            "prefix": PREFIX + (FREED.format(name=name) if name else ""),
            "tests": tests,
        },
    )


def _test(case: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """A text in and a text out, or a call: an argument in each line of its input, all JSON."""
    if case["testtype"] == "stdin":
        return {"stdin": case["input"], "stdout": case["output"]}
    if not name:
        raise ValueError("a test calls a function that has no name")
    args = [json.loads(line) for line in case["input"].split("\n")]
    return {"call": name, "args": args, "kwargs": {}, "returns": json.loads(case["output"])}


def _cases(cell: str) -> list[Mapping[str, Any]]:
    """Tests as JSON; what is no JSON is base64 of zlib of a pickle of a text that is."""
    try:
        cases = json.loads(cell)
    except ValueError:
        cases = json.loads(pickled_text(_unpacked(cell)))
    if not isinstance(cases, list):
        raise ValueError("the tests are no list")
    return cases


def _unpacked(cell: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(cell, validate=True), MAX_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"the tests cannot be unpacked ({error})") from error
    if not unpacker.eof:
        raise ValueError(f"the tests are torn, or unpack to more than {MAX_BYTES:,} bytes")
    return data


def pickled_text(data: bytes) -> str:
    """The text that a pickle is of, read and never run; ValueError if it is of anything else.

    To load a pickle is to run a program. That of a text says the text once and stops.
    """
    texts = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in STRINGS:
            texts.append(argument)
        elif opcode.name not in HARMLESS:
            raise ValueError(
                f"the tests are a pickle that does more than say a text: {opcode.name}"
            )
    if len(texts) != 1:
        raise ValueError(f"the tests are a pickle of {len(texts)} texts")
    return str(texts[0])
