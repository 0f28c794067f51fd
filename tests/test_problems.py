"""Sources of problems, and the split that no look-alike crosses."""

from __future__ import annotations

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import UserError
from limbeck.problems import collision_key, file, heldout_fraction, hub, make_problem, reasoning_gym

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(
    not (DATA / "p3").exists(), reason="set LIMBECK_TEST_DATA to the test data"
)
TASKS = {"chain_sum": {"min_terms": 2, "max_terms": 3}, "spell_backward": {}, "leg_counting": {}}
ROWS = [
    {"question": "2 and 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4", "subject": "sums"},
    {"question": "3 and 3?", "answer": "3 + 3 = <<3+3=6>>6\n#### 6", "subject": "sums"},
]


def first(num, **knobs):
    return list(islice(reasoning_gym.read(**knobs), num))


def test_id_is_the_content():
    a = make_problem("2 + 2?", "4", verifier="exact")
    assert a.id == make_problem("2 + 2?", "4", verifier="number", meta={"x": 1}).id
    assert a.id != make_problem("2 + 2?", "5", verifier="exact").id
    assert len(a.id) == 16
    assert a.question == "2 + 2?"


def test_families_take_turns_and_the_same_seed_gives_the_same_problems():
    problems = first(600, tasks=TASKS, seed=3)
    assert [p.domain for p in problems[:4]] == [*sorted(TASKS), "chain_sum"]
    assert problems == first(600, tasks=TASKS, seed=3)
    for problem in problems:
        assert problem.verifier == "exact"
        assert problem.question == problem.question.strip()
        assert problem.meta["family"] == problem.meta["template"] == problem.domain
        json.dumps(problem.meta)


def test_close_seeds_share_no_more_problems_than_distant_ones():
    tasks = {"chain_sum": {"min_digits": 4, "max_digits": 4, "min_terms": 4}}
    here, there = (first(600, tasks=tasks, seed=seed) for seed in (0, 1))
    assert not {p.id for p in here} & {p.id for p in there}
    assert len({p.id for p in here}) == 600


def test_a_family_with_a_size_ends_and_the_others_go_on():
    tasks = {"chain_sum": {"size": 2}, "spell_backward": {"size": 4}}
    problems = list(reasoning_gym.read(tasks=tasks))
    assert [p.domain[0] for p in problems] == list("cscsss")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"chain_sums": {}}, "did you mean chain_sum"),
        ({"chain_sum": {"min_term": 2}}, r"tasks.chain_sum.min_term.*min_terms"),
        ({"chain_sum": {"min_terms": 9, "max_terms": 2}}, "refuses"),
        ({"chain_sum": {"seed": 2}}, "no such knob"),
    ],
)
def test_wrong_tasks_are_named_before_the_first_problem(tasks, message):
    with pytest.raises(UserError, match=message):
        reasoning_gym.read(tasks=tasks)


def test_families_that_seed_numpy_get_a_seed_it_takes():
    assert len(first(2, tasks={"pool_matrix": {}})) == 2


@pytest.fixture(params=["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def table(request, tmp_path):
    path = tmp_path / request.param
    lines = "\n".join(map(json.dumps, ROWS)) + "\n"
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


def test_file(table):
    prompt = r"{question} Put your final answer within \boxed{}."
    problems = list(
        file.read(path=str(table), answer_after="####", prompt=prompt, domain="subject")
    )
    assert [p.answer for p in problems] == ["4", "6"]
    assert problems[0].question == r"2 and 2? Put your final answer within \boxed{}."
    assert {p.domain for p in problems} == {"sums"}
    assert problems[0].verifier == "number"


def test_hub_reads_as_file_does(table, tmp_path):
    said = {"answer_after": "####", "source": "sums", "licence": "mit"}
    from_file = list(file.read(path=str(table), **said))
    assert list(hub.read(dataset=str(tmp_path), **said)) == from_file
    assert from_file[0].meta == {"source": "sums", "licence": "mit"}


def test_a_problem_says_where_it_comes_from_and_keeps_its_id(table, tmp_path):
    of_file = next(file.read(path=str(table), answer_after="####"))
    of_hub = next(hub.read(dataset=str(tmp_path), answer_after="####"))
    assert of_file.meta == {"source": table.name}
    assert of_hub.meta == {"source": tmp_path.name}
    assert of_file.id == of_hub.id == make_problem("2 and 2?", "4", verifier="number").id


def rows_of(tmp_path, row, **knobs):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return list(file.read(path=str(tmp_path / "rows.jsonl"), **knobs))


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["red", "blue"], "answer": 1},  # MMLU
        {"options": ["red", "blue"], "answer": "B"},  # MMLU-Pro
        {"options": ["red", "blue"], "answer": "(B)"},
        {"options": ["red", "blue"], "answer": "blue"},
        {"options": ["A)red", "B)blue"], "answer": "B"},  # AQuA
        {"options": ["(A) red", "(B) blue"], "answer": "blue"},
        {"options": '["red", "blue"]', "answer": "B."},
        {"options": {"text": ["red", "blue"], "label": ["1", "2"]}, "answer": "2"},  # ARC
    ],
)
def test_choices_are_shown_with_letters_and_the_answer_is_a_letter(tmp_path, row):
    (problem,) = rows_of(
        tmp_path,
        {"question": "Which?", **row},
        choices="options",
        verifier="exact",
        prompt="{question}\n\nBox the letter.",
    )
    assert problem.question == "Which?\n\nA) red\nB) blue\n\nBox the letter."
    assert problem.answer == "B"
    assert problem.meta["choices"] == ["red", "blue"]


@pytest.mark.parametrize("knobs", [{"choices": "options"}, {"tests": "tests"}, {}])
def test_a_row_that_asks_nothing(tmp_path, knobs):
    row = {"question": " ", "options": ["red", "blue"], "answer": "B", "tests": [STDIN]}
    with pytest.raises(UserError, match="an empty question"):
        rows_of(tmp_path, row, **knobs)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": ["red", "blue"], "answer": 2}, "none of the 2 options"),
        ({"options": ["red", "blue"], "answer": -1}, "none of the 2 options"),
        ({"options": ["red", "blue"], "answer": True}, "none of the 2 options"),
        ({"options": ["red", "blue"], "answer": "C"}, "none of the 2 options"),
        ({"options": ["red"], "answer": 0}, "2 to 26 options"),
        ({"options": "red, blue", "answer": 0}, "2 to 26 options"),
        ({"options": "[red", "answer": 0}, "no JSON"),
        ({"option": ["red", "blue"], "answer": 0}, "no 'options'"),
    ],
)
def test_choices_that_cannot_be_shown(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path, {"question": "Which?", **row}, choices="options")


STDIN = {"stdin": "1\n", "stdout": "2\n"}
CASES = [
    {"type": "stdin_stdout", "fn_name": None, "input": "1\n", "output": "2\n"},
    {"type": "function_call", "fn_name": "add", "input": "[1, [2]]", "output": "3"},
]
CALL = {"call": "add", "args": [1, [2]], "kwargs": {}, "returns": 3}
ASSERTS = ["assert add(1, 1) == 2", "assert add(1, 2) == 3"]


@pytest.mark.parametrize(
    ("cell", "beside", "expected"),
    [
        ([STDIN], {}, [STDIN]),
        (json.dumps([CALL, STDIN]), {}, [CALL, STDIN]),
        ({"language": "python", "test_cases": CASES}, {}, [STDIN, CALL]),
        (json.dumps({"language": "python", "test_cases": json.dumps(CASES)}), {}, [STDIN, CALL]),
        (
            ASSERTS,
            {"test_setup_code": "import math"},
            [{"asserts": "\n".join(ASSERTS), "entry": None, "setup": "import math"}],
        ),
        (
            ASSERTS,
            {"test_imports": ["import math", "import re"]},
            [{"asserts": "\n".join(ASSERTS), "entry": None, "setup": "import math\nimport re"}],
        ),
        ("def sat(x):\n    return x > 2", {}, [{"sat": "def sat(x):\n    return x > 2"}]),
    ],
)
def test_tests_of_programs(tmp_path, cell, beside, expected):
    row = {"question": "Add.", "answer": "def add(a, b): return a + b", "tests": cell, **beside}
    (problem,) = rows_of(tmp_path, row, tests="tests", verifier="exact")
    assert problem.meta == {"source": "rows.jsonl", "tests": expected}
    assert problem.answer == row["answer"]


@pytest.mark.parametrize(
    "cell",
    [None, [], "", 3, [1], [{"input": "1"}], {"language": "cpp", "test_cases": CASES}, "assert 1"],
)
def test_tests_that_nobody_can_run(tmp_path, cell):
    with pytest.raises(UserError, match=r"rows.jsonl:1.*tests"):
        rows_of(tmp_path, {"question": "Add.", "answer": "x", "tests": cell}, tests="tests")


def test_a_program_may_lack_a_reference(tmp_path):
    row = {"question": "Add.", "answer": None, "tests": [STDIN]}
    (problem,) = rows_of(tmp_path, row, tests="tests", verifier="exact")
    assert problem.answer == ""


def run_reference(problem, test):
    """What a reader of these shapes would do with it."""
    space: dict = {}
    exec(problem.meta.get("prefix", "") + problem.answer, space)
    exec(test.get("setup") or "", space)
    exec(test["asserts"], space)
    if test["entry"]:
        space["check"](space[test["entry"]])


@needs_data
def test_humaneval(tmp_path):
    knobs = {"question": "prompt", "answer": "canonical_solution", "tests": "test"}
    path = str(DATA / "humaneval" / "HumanEval.jsonl.gz")
    problems = list(file.read(path=path, verifier="exact", **knobs))
    assert len(problems) == 164
    for problem in problems[:20]:
        run_reference(problem, problem.meta["tests"][0])


@needs_data
def test_mbpp_shows_its_tests():
    knobs = {"question": "text", "answer": "code", "tests": "test_list"}
    prompt = "{question}\nYour code should pass these tests:\n{tests}"
    path = str(DATA / "mbpp" / "mbpp.jsonl")
    problems = list(file.read(path=path, verifier="exact", prompt=prompt, **knobs))
    assert len(problems) == 974
    assert "assert min_cost([[1, 2, 3], [4, 8, 2], [1, 5, 3]], 2, 2) == 8" in problems[0].question
    for problem in problems[:20]:
        run_reference(problem, problem.meta["tests"][0])


@needs_data
def test_p3():
    knobs = {"question": "sat", "answer": "sol_bodies", "tests": "sat"}
    path = str(DATA / "p3" / "puzzles.jsonl.gz")
    problems = list(file.read(path=path, verifier="exact", **knobs))
    solved = [problem for problem in problems if problem.answer]
    assert len(solved) > 100
    space: dict = {}
    exec(solved[0].meta["tests"][0]["sat"] + "\n" + solved[0].answer, space)
    assert space["sat"](space["sol"]()) is True


@needs_data
@pytest.mark.parametrize(
    ("path", "knobs"),
    [
        ("mmlu_stem/test.jsonl.gz", {"choices": "choices", "domain": "type"}),
        ("mmlu_pro_outputs/outputs.jsonl.gz", {"choices": "options", "domain": "category"}),
        ("aqua/dev.jsonl", {"choices": "options", "answer": "correct"}),
    ],
)
def test_public_choices(path, knobs):
    problems = list(file.read(path=str(DATA / path), verifier="exact", **knobs))
    assert len(problems) > 200
    for problem in problems:
        last = len(problem.meta["choices"]) - 1
        assert "A" <= problem.answer <= "ABCDEFGHIJ"[last]
        assert f"\n{'ABCDEFGHIJ'[last]}) {problem.meta['choices'][last]}" in problem.question


@pytest.mark.parametrize(
    ("content", "knobs", "message"),
    [
        ('{"question": "a", "answer": "1"}\n{"question"', {}, "rows.jsonl:2"),
        ('{"question": "a", "answer": "1"}\n\n[1]', {}, "rows.jsonl:3.*not list"),
        ('{"question": "a"}', {}, "rows.jsonl:1.*'answer'.*question"),
        ('{"question": "a", "answer": ""}', {}, "rows.jsonl:1.*empty"),
        ('{"question": "a", "answer": "1"}', {"answer_after": "####"}, "rows.jsonl:1.*####"),
        ('{"question": "a", "answer": "1"}', {"prompt": "solve"}, "{question}"),
        ('{"question": "a", "answer": "1"}', {"question": "problem"}, "'problem'"),
    ],
)
def test_file_names_the_line(tmp_path, content, knobs, message):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        list(file.read(path=str(tmp_path / "rows.jsonl"), **knobs))


@pytest.mark.parametrize("name", ["no.jsonl", "rows.xml", "torn.jsonl.gz", "torn.parquet"])
def test_file_that_cannot_be_read(tmp_path, name):
    if name != "no.jsonl":
        (tmp_path / name).write_bytes(b"\x1f\x8b nothing that was ever written")
    with pytest.raises(UserError, match=name):
        list(file.read(path=str(tmp_path / name)))


def test_hub_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        list(hub.read(dataset=str(tmp_path / "nowhere")))


def ask(question, **meta):
    return make_problem(question, "0", verifier="exact", meta=meta)


def test_collision_key_sees_through_wording_where_the_template_is_known():
    a, b = ask("State: 3 + 4 =", template="sum"), ask("Now, what is 3 + 4 = ?", template="sum")
    assert collision_key(a) == collision_key(b)
    assert collision_key(a) != collision_key(ask("State: 4 + 3 =", template="sum"))
    assert collision_key(a) != collision_key(ask("State: 3 + 4 =", template="product"))


def test_collision_key_of_free_text():
    a = "Ann has 3 apples and 1,000 pears."
    assert collision_key(ask(a)) == collision_key(ask("ann  HAS 3 apples and 1000 pears."))
    assert collision_key(ask(a)) != collision_key(ask("Bob has 3 apples and 1000 pears."))
    assert collision_key(ask("Spell: Sun")) == collision_key(ask("spell:  sun"))
    assert collision_key(ask("Spell: sun")) != collision_key(ask("Spell: moon"))


def test_heldout_fraction_is_the_contents_own_and_uniform():
    problems = first(3000, tasks=TASKS, seed=0)
    fractions = [heldout_fraction(p) for p in problems]
    assert fractions == [heldout_fraction(p) for p in problems]
    assert all(0 <= f < 1 for f in fractions)
    keys = {collision_key(p): f for p, f in zip(problems, fractions, strict=True)}
    assert sum(f < 0.2 for f in keys.values()) / len(keys) == pytest.approx(0.2, abs=0.03)
    heldout = {key for key, f in keys.items() if f < 0.2}
    train = [p for p in first(1500, tasks=TASKS, seed=9) if heldout_fraction(p) >= 0.2]
    assert not heldout & {collision_key(p) for p in train}


def test_a_table_is_split_once_more_by_content(tmp_path):
    from limbeck import tables
    from limbeck.folder import StageFolder
    from limbeck.stages import collect
    from limbeck.types import Problem

    tasks = {"chain_sum": {"min_terms": 4, "max_terms": 4}}

    def collected(name: str, **told: object) -> dict[str, list[Problem]]:
        (tmp_path / name).mkdir()
        collect.run(collect.Config.model_validate(told), StageFolder(tmp_path / name, name))
        return {
            split: tables.read_problems(tmp_path / name / split)
            for split in ("problems", "heldout")
        }

    reserved = collected(
        "first", source={"name": "reasoning_gym", "tasks": tasks}, num=5, num_heldout=40,
        heldout_share=0.2,
    )["heldout"]  # fmt: skip
    again = {"name": "table", "problems": str(tmp_path / "first" / "heldout")}
    parts = collected("again", source=again, num=40, num_heldout=40, heldout_share=0.1)
    assert all(0.1 <= heldout_fraction(problem) < 0.2 for problem in parts["problems"])
    assert all(heldout_fraction(problem) < 0.1 for problem in parts["heldout"])
    kept = {problem.id: problem.answer for split in parts.values() for problem in split}
    assert kept == {problem.id: problem.answer for problem in reserved}
