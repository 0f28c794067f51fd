"""Tests of programs as public data sets write them, into the shapes that the verifier `code` reads.

A test is one of `{"stdin", "stdout"}`, `{"call", "args", "kwargs", "returns"}`,
`{"asserts", "entry", "setup"}` and `{"sat"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from limbeck.errors import UserError

SHAPES = ({"stdin", "stdout"}, {"call", "returns"}, {"asserts"}, {"sat"})


def tests_of(row: Mapping[str, Any], column: str, where: str) -> dict[str, Any]:
    """What a row's tests add to a problem's `meta`: `tests`, and a `prefix` where it has one.

    The column holds our own shapes, as JSON or as a list; Open-R1's `verification_info`; MBPP's
    `test_list` (with `test_setup_code` or `test_imports` beside it); HumanEval's `test` (with
    `prompt` and `entry_point`); or P3's `sat`. UserError for anything else.
    """
    cell = _parsed(row.get(column))
    if isinstance(cell, Mapping) and isinstance(cell.get("test_cases"), list | str):
        tests = _of_open_r1(cell)
    elif isinstance(cell, str) and "def sat(" in cell:
        tests = [{"sat": cell}]
    elif isinstance(cell, str) and "def check(" in cell:
        tests = [{"asserts": cell, "entry": row.get("entry_point")}]
    elif isinstance(cell, list) and all(isinstance(line, str) for line in cell):
        tests = [{"asserts": "\n".join(cell), "entry": None, "setup": _setup(row)}] if cell else []
    else:
        tests = cell if isinstance(cell, list) else [cell]
    if not tests or not all(_is_test(test) for test in tests):
        what = f"{column!r} holds no tests in a layout known here"
        raise UserError(where, what, "see limbeck/problems/programs.py for those that are")
    is_body = {"prompt", "entry_point"} <= row.keys() and "asserts" in tests[0]
    return {"tests": tests, **({"prefix": str(row["prompt"])} if is_body else {})}


def reference_of(row: Mapping[str, Any], column: str, prefix: str = "") -> str:
    """A right program, whole, or "" where the row has none; P3 has several bodies and a header."""
    cell = row.get(column) or ""
    body = str(cell[0]) if isinstance(cell, list) else str(cell)
    header = f"{row['sol_header']}\n" if "sol_header" in row else ""
    return f"{prefix}{header}{body}" if body else ""


def _of_open_r1(info: Mapping[str, Any]) -> list[Any]:
    """`{language, test_cases: [{type, input, output, fn_name?}]}`; nothing if it is not Python."""
    if info.get("language", "python") != "python":
        return []
    return [_of_case(case) for case in _parsed(info["test_cases"])]


def _of_case(case: Any) -> dict[str, Any]:
    """A text in and a text out, or a call whose arguments and value are JSON; else nothing."""
    if not isinstance(case, Mapping) or not {"input", "output"} <= case.keys():
        return {}
    if not case.get("fn_name"):
        return {"stdin": case["input"], "stdout": case["output"]}
    args = _parsed(case["input"])
    return {
        "call": case["fn_name"],
        "args": args if isinstance(args, list) else [args],
        "kwargs": {},
        "returns": _parsed(case["output"]),
    }


def _setup(row: Mapping[str, Any]) -> str:
    """What MBPP runs before its assertions; the sanitized half calls it otherwise."""
    return str(row.get("test_setup_code") or "\n".join(row.get("test_imports") or ()))


def _is_test(test: Any) -> bool:
    return isinstance(test, Mapping) and any(shape <= test.keys() for shape in SHAPES)


def _parsed(cell: Any) -> Any:
    """What a JSON text says; anything else as it is."""
    try:
        return json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return cell
