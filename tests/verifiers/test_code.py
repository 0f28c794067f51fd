"""Programs are judged by what they do, whatever they say."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from limbeck.audit import code_sets
from limbeck.errors import UserError
from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import code, sandbox
from limbeck.verifiers.code import extract_program, verify
from limbeck.verifiers.sandbox import trials
from limbeck.verifiers.sandbox.process import Trouble

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
REFUSALS = [sandbox.refusal(name) for name in sandbox.BACKENDS]
needs_sandbox = pytest.mark.skipif(all(REFUSALS), reason=f"no sandbox here: {REFUSALS}")
needs_data = pytest.mark.skipif(
    not (DATA / "humaneval").exists(), reason="set LIMBECK_TEST_DATA to the test data"
)
ADD = [{"call": "add", "args": [2, 3], "returns": 5}, {"call": "add", "args": [1, 1], "returns": 2}]
RIGHT = "def add(a, b):\n    return a + b\n"


def verdict(tests, text, finish="stop", gold="", prefix="", **knobs):
    problem = make_problem("?", gold, verifier="code", meta={"tests": tests, "prefix": prefix})
    return verify(problem, Trace("t", problem.id, 0, text, finish, "m"), **knobs)


def outcome(*args, **knobs):
    found = verdict(*args, **knobs)
    return found.correct, found.reason


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("x = 1\n", "x = 1\n"),
        ("    return 1\n", "    return 1\n"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```\n```\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nIt prints\n```\n1\n```", "x = 1\n"),
        ("```Python\nx = 1\n```\n```py\nx = 2\n```", "x = 2\n"),
        ("```java\nint x;\n```\n```\nx = 1\n```", "x = 1\n"),
        ("```python title='a.py'\nx = 1\n```", "x = 1\n"),
        ("1. Do\n   ```python\n   if x:\n       y()\n   ```", "if x:\n    y()\n"),
        ("```python\nx = 1\n", "x = 1\n\n"),
        ("````python\nx = '```'\n````", "x = '```'\n"),
        ("say ```x``` inline", "say ```x``` inline"),
    ],
)
def test_extraction(answer, program):
    assert extract_program(answer) == program


@needs_sandbox
@pytest.mark.parametrize(
    ("text", "finish", "found"),
    [
        (f"<think>{RIGHT}</think>```python\n{RIGHT}```", "stop", (True, "correct")),
        ("<think>x</think>def add(a, b):\n    return a * b", "stop", (False, "wrong")),
        ("def add(a, b) return", "stop", (False, "wrong")),
        ("1 / 0", "stop", (False, "wrong")),
        ("def sub(a, b):\n    return a + b", "stop", (False, "wrong")),
        (f"<think>{RIGHT}", "stop", (False, "truncated")),
        (RIGHT, "length", (False, "truncated")),
        ("<think>x</think>  ", "stop", (False, "unparsed")),
        ("```python\n```", "stop", (False, "unparsed")),
        ("", "error", (None, "error")),
    ],
)
def test_reasons(text, finish, found):
    assert outcome(ADD, text, finish) == found


@needs_sandbox
def test_a_slow_program_is_wrong_and_says_why():
    slow = "def add(a, b):\n    while True: pass"
    assert outcome(ADD, slow, time_s=0.5) == (False, "timeout")
    assert outcome([{"stdin": "", "stdout": ""}], "while 1: pass", time_s=0.5)[1] == "timeout"
    asserted = [{"asserts": "assert add(1, 2) == 3"}]
    assert outcome(asserted, slow, time_s=0.5) == (False, "timeout")


@needs_sandbox
def test_memory_is_a_knob():
    program = "def add(a, b):\n    x = bytearray(200 << 20)\n    return a + b"
    assert outcome(ADD, program) == (True, "correct")
    assert outcome(ADD, program, memory_mib=128) == (False, "wrong")


@pytest.mark.parametrize(
    "tests",
    [
        None,
        [],
        "assert add(1, 2) == 3",
        [{"stdin": "1"}],
        [{"call": "add"}],
        [{"asserts": "assert add(1, 2) == 3", "more": 1}],
        [{"returns": 3}],
    ],
)
def test_tests_that_are_none(tests):
    assert outcome(tests, RIGHT) == (None, "bad_gold")


@needs_sandbox
@pytest.mark.parametrize(
    "test",
    [
        {"asserts": "assert add(1, 2) =="},
        {"asserts": "assert True"},
        {"asserts": "def check(candidate):\n    assert candidate(1, 2) == 3"},
        {"asserts": "assert add(1, x) == 3", "setup": "import nowhere"},
        {"sat": "def sat(x"},
        {"sat": "x = 1"},
    ],
)
def test_tests_that_test_nothing(test):
    program = RIGHT + "def sol():\n    return 1\n"
    assert outcome([test], program) == (None, "bad_gold")


@needs_sandbox
def test_all_tests_must_pass():
    tests = [
        *ADD,
        {"asserts": "assert add(1, 2) == 3"},
        {"stdin": "", "stdout": "ready\n"},
    ]
    main = "if __name__ == '__main__':\n    print('ready')\n"
    assert outcome(tests, RIGHT + main) == (True, "correct")
    assert outcome(tests, RIGHT) == (False, "wrong")


@needs_sandbox
def test_the_prefix_belongs_to_the_program_and_its_helpers_to_the_test():
    prefix = 'def twice(x):\n    return 2 * x\n\ndef four(x):\n    """Four times."""\n'
    tests = [{"asserts": "def check(f):\n    assert f(3) == twice(6)", "entry": "four"}]
    assert outcome(tests, "    return twice(twice(x))\n", prefix=prefix) == (True, "correct")
    forged = "    return 0\ndef twice(x):\n    return 0\n"
    assert outcome(tests, forged, prefix=prefix) == (False, "wrong")


NODE = "class Node:\n    def __init__(self, x):\n        self.x = x\n"
OBJECTS = [{"asserts": "assert value(node) == 3", "setup": "node = Node(3)"}]
VALUE = NODE + "def value(node):\n    return node.x\n"


@needs_sandbox
@pytest.mark.parametrize(
    ("test", "gold"),
    [
        (OBJECTS[0], VALUE),
        ({"asserts": "assert apply(lambda x: x + 1, 2) == 3"}, "def apply(f, x):\n    return f(x)"),
        ({"asserts": "assert math.pi > 3"}, "import math"),
        (
            {"asserts": "assert isclose(half(3), 1.5)", "entry": "half"},
            "from math import isclose\ndef half(x):\n    return x / 2",
        ),
        ({"asserts": "x = [2, 1]\norder(x)\nassert x == [1, 2]"}, "def order(x):\n    x.sort()"),
    ],
)
def test_what_only_the_programs_own_process_can_test(test, gold):
    refused = verdict([test], gold, gold=gold)
    assert (refused.correct, refused.reason) == (None, "error")
    assert refused.extracted.startswith("forgeable: ")
    assert outcome([test], gold, gold=gold, forgeable="run") == (True, "correct")
    assert outcome([test], "x = 1", gold=gold, forgeable="run") == (False, "wrong")


@needs_sandbox
def test_a_program_cannot_make_a_test_forgeable():
    tests = [{"asserts": "assert add(1, 2) == 3"}]
    objects = "def add(a, b):\n    return object()"
    for gold in (RIGHT, ""):
        assert outcome(tests, objects, gold=gold) == (False, "wrong")
        assert outcome(tests, objects, gold=gold, forgeable="run") == (False, "wrong")


@needs_sandbox
def test_a_puzzle_wants_its_type():
    puzzle = [{"sat": "def sat(x: List[int], most=9):\n    return sum(x) == most"}]
    for value, right in (
        ("[4, 5]", True),
        ("(4, 5)", False),
        ("[4.0, 5]", False),
        ("[9.5]", False),
    ):
        assert outcome(puzzle, f"def sol():\n    return {value}")[0] is right
    assert (
        outcome([{"sat": "def sat(x: int):\n    return x"}], "def sol():\n    return 1")[0] is False
    )


@needs_sandbox
def test_arguments_are_copies():
    tests = [{"asserts": "x = [3, 1, 2]\nassert largest(x) == max(x)"}]
    forged = "def largest(x):\n    x[:] = [0]\n    return 0"
    assert outcome(tests, forged) == (False, "wrong")


def test_without_a_sandbox_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "refusal", lambda name: "not here")
    monkeypatch.setattr(sandbox, "backend", sandbox.backend.__wrapped__)
    with pytest.raises(UserError, match="no sandbox"):
        code.check()
    with pytest.raises(UserError, match="no sandbox"):
        verdict(ADD, RIGHT)


@needs_sandbox
def test_trouble_is_no_judgement(monkeypatch):
    def broken(*args, **kwargs):
        raise Trouble("out of processes")

    monkeypatch.setattr(trials.sandbox, "start", broken)
    found = verdict(ADD, RIGHT)
    assert (found.correct, found.reason) == (None, "error")
    assert "out of processes" in found.extracted


def wrongly_judged(rows):
    return [
        trace.id for problem, trace, right in rows if verify(problem, trace).correct is not right
    ]


@needs_sandbox
@needs_data
def test_real_completions_get_their_labels():
    rows = [row for row in code_sets.humaneval(DATA) if "while" not in row[1].text]
    assert wrongly_judged(rows[::260]) == []


@needs_sandbox
@needs_data
def test_real_solutions_pass():
    assert wrongly_judged(list(code_sets.humaneval_references(DATA))[::16]) == []
    assert wrongly_judged(islice(code_sets.mbpp(DATA), 0, 100, 9)) == []
    assert wrongly_judged(islice(code_sets.p3(DATA), 0, 100, 9)) == []


@needs_sandbox
def test_a_function_named_like_one_of_pythons_own_is_the_programs():
    tests = [{"asserts": "assert sum(10, 15) == 6", "entry": None, "setup": ""}]
    ours = "def sum(a, b):\n    return {}\n"
    assert outcome(tests, ours.format(6)) == (True, "correct")
    assert outcome(tests, ours.format(7)) == (False, "wrong")
    # Where the test calls anything else, the language's own stays: no program redefines `all`.
    tests = [{"asserts": "assert all(add(1, n) == n for n in [1])", "entry": None, "setup": ""}]
    assert outcome(tests, RIGHT + "def all(found):\n    return True\n") == (False, "wrong")


@needs_sandbox
@pytest.mark.parametrize(
    ("asserted", "program"),
    [
        ("all([abs(n) == 1 for n in [2]])", "def all(found):\n    return True\n"),
        ("bool(sum([1, 2]) == 4)", "def bool(found):\n    return True\n"),
        ("eval('add(1, 2) == 4')", "def eval(text):\n    return True\n"),
    ],
)
def test_no_program_says_itself_that_all_is_well(asserted, program):
    tests = [{"asserts": f"assert {asserted}", "entry": None, "setup": ""}]
    assert outcome(tests, program)[0] is not True
