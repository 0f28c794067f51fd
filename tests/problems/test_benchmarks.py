"""Benchmarks: what is asked, what is right, and what is refused; on real files where there are."""

from __future__ import annotations

import base64
import csv
import importlib
import json
import os
import pickle
import random
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import date
from itertools import islice
from pathlib import Path

import pytest

from limbeck import tables
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import Kind
from limbeck.problems import codeforces, livecodebench, protocol, public
from limbeck.stages import collect, curate, sample
from limbeck.types import Trace
from limbeck.verifiers import sandbox
from limbeck.verifiers.judging import gradable, judge

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere"))
DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
NAMES = protocol.names()
SOURCES = Kind("source", "limbeck.problems", "read")
REAL = [
    ("aime24", "aime/aime_2024.jsonl", 30),
    ("math500", "math/math500.jsonl", 500),
    ("gsm8k", "gsm8k/test.jsonl.gz", 1319),
    ("mmlu", "mmlu_stem/test.jsonl.gz", 3018),
    ("mmlu_pro", "mmlu_pro_outputs/outputs.jsonl.gz", 754),
    ("ifeval", "ifeval/input_data.jsonl", 541),
    ("humaneval", "humaneval/HumanEval.jsonl.gz", 164),
    ("mbpp", "mbpp/mbpp.jsonl", 974),
    ("mbpp", "mbpp/sanitized-mbpp.json", 427),
    ("squad", "squad/dev-v1.1.json.gz", 10_570),
    ("sst2", "sst2/dev.tsv", 872),
    ("sst2", "sst2/train.tsv.gz", 67_349),
    ("imdb", "movie_reviews/movie_reviews.jsonl.gz", 1600),
]
REFUSALS = [sandbox.refusal(name) for name in sandbox.BACKENDS]
needs_sandbox = pytest.mark.skipif(all(REFUSALS), reason=f"no sandbox here: {REFUSALS}")
needs_data = pytest.mark.skipif(
    not (DATA / "aime").exists(), reason="set LIMBECK_TEST_DATA to the test data"
)


def read(name, **knobs):
    return importlib.import_module(f"limbeck.problems.{name}").read(**knobs)


def written(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def says(problem, text):
    return judge(problem, Trace("t", problem.id, 0, text, "stop", "m"))


@needs_data
@pytest.mark.parametrize(("name", "path", "num"), REAL)
def test_real_files_are_read_whole_and_their_answers_are_gradable(name, path, num):
    problems = list(read(name, path=str(DATA / path)))
    assert len(problems) == num
    assert {problem.meta["source"] for problem in problems} == {Path(path).name}
    is_code = name in ("humaneval", "mbpp")
    if is_code and all(REFUSALS):
        pytest.skip(f"no sandbox here: {REFUSALS}")
    for problem in random.Random(7).sample(problems, 3 if is_code else 30 if num < 40 else 40):
        verdict = gradable(problem)
        assert verdict.correct, (problem.answer, verdict)


@needs_data
@pytest.mark.parametrize(
    ("name", "path", "asked"),
    [
        ("aime24", "aime/aime_2024.jsonl", r"put your final answer within \boxed{}."),
        ("math500", "math/math500.jsonl", "Please reason step by step"),
        ("mmlu", "mmlu_stem/test.jsonl.gz", "\nD) "),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", "def has_close_elements(numbers"),
        ("mbpp", "mbpp/mbpp.jsonl", "assert min_cost([[1, 2, 3], [4, 8, 2], [1, 5, 3]], 2, 2)"),
        ("sst2", "sst2/dev.tsv", "positive or negative? Answer with one word.\n\n"),
        ("ifeval", "ifeval/input_data.jsonl", "Do not use any commas"),
    ],
)
def test_what_is_asked(name, path, asked):
    (problem,) = islice(read(name, path=str(DATA / path)), 1)
    assert asked in problem.question


@needs_data
def test_a_slice_of_a_sorted_set_is_no_slice_of_one_label():
    reviews = islice(read("imdb", path=str(DATA / "movie_reviews/movie_reviews.jsonl.gz")), 200)
    assert 80 < Counter(problem.answer for problem in reviews)["positive"] < 120
    sentences = islice(read("sst2", path=str(DATA / "sentence_polarity/rt_polarity.jsonl.gz")), 200)
    assert 80 < Counter(problem.answer for problem in sentences)["positive"] < 120
    questions = islice(read("mmlu", path=str(DATA / "mmlu_stem/test.jsonl.gz")), 100)
    assert len({problem.domain for problem in questions}) > 12


@needs_data
def test_the_order_of_hashes_is_that_of_no_file(tmp_path):
    path = DATA / "movie_reviews/movie_reviews.jsonl.gz"
    rows = [row for _, row in islice(public.read_table(path=str(path), dataset=""), 50)]
    there = list(read("imdb", path=written(tmp_path, *rows)))
    assert list(read("imdb", path=written(tmp_path, *reversed(rows)))) == there


def test_a_review_can_be_cut_to_its_end(tmp_path):
    rows = [{"text": " one two\nthree  four", "label": 1}, {"text": "five", "label": 0}]
    path = written(tmp_path, *rows)
    cut = {p.answer: p.question for p in read("imdb", path=path, prompt="{question}", last_words=3)}
    assert cut == {"positive": "two\nthree  four", "negative": "five"}
    whole = {p.answer: p.question for p in read("imdb", path=path, prompt="{question}")}
    assert whole == {"positive": rows[0]["text"].strip(), "negative": "five"}


# The hub, as `datasets` reads it, by a folder that is laid out like it.


@pytest.mark.parametrize(
    ("name", "config", "split", "row"),
    [
        ("aime24", "default", "train", {"problem": "1 + 1?", "answer": "002"}),
        ("aime25", "default", "test", {"problem": "1 + 1?", "answer": "2"}),
        ("gsm8k", "main", "test", {"question": "1 + 1?", "answer": "So <<1+1=2>>2.\n#### 2"}),
        ("sst2", "default", "validation", {"sentence": "fine .", "label": 1}),
        ("imdb", "plain_text", "test", {"text": "fine .", "label": 0}),
        (
            "mmlu",
            "all",
            "test",
            {"question": "1 + 1?", "subject": "sums", "choices": ["1", "2"], "answer": 1},
        ),
        (
            "mbpp",
            "full",
            "test",
            {"text": "Add.", "code": "def f(a): return a", "test_list": ["assert f(1) == 1"]},
        ),
        ("gpqa", "gpqa_diamond", "train", None),
    ],
)
def test_from_the_hub_as_from_a_file(tmp_path, name, config, split, row):
    row = row or gpqa_row(1)
    path = written(tmp_path, row)
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
        f"  - {{split: {split}, path: rows.jsonl}}\n---\n"
    )
    (problem,) = read(name, dataset=str(tmp_path))
    assert problem.meta["source"] == tmp_path.name
    (same,) = read(name, path=path)
    assert (problem.id, problem.answer) == (same.id, same.answer)


@pytest.mark.parametrize(("name", "text"), [("sst2", "sentence"), ("imdb", "text")])
def test_what_is_learned_from_is_another_split(tmp_path, name, text):
    written(tmp_path, {text: "fine .", "label": 1}, name="train.jsonl")
    written(tmp_path, {text: "dull .", "label": 0}, name="test.jsonl")
    splits = ["  - {split: train, path: train.jsonl}\n"]
    splits += [f"  - {{split: {split}, path: test.jsonl}}\n" for split in ("validation", "test")]
    header = f"---\nconfigs:\n- config_name: default\n  data_files:\n{''.join(splits)}---\n"
    (tmp_path / "README.md").write_text(header)
    (learned,) = read(name, dataset=str(tmp_path), split="train")
    (asked,) = read(name, dataset=str(tmp_path))
    assert (learned.answer, asked.answer) == ("positive", "negative")


# What every benchmark has.


def test_the_folder_knows_them():
    assert {"aime24", "math500", "gpqa", "squad", "livecodebench"} <= set(NAMES)
    assert set(NAMES) <= set(SOURCES.names())
    with pytest.raises(UserError, match="did you mean 'math500'"):
        protocol.of("math50")


@pytest.mark.parametrize("name", NAMES)
def test_each_says_how_it_is_asked_and_where_it_differs(name):
    told = protocol.of(name)
    assert (told.temperature, told.top_p, told.max_tokens) == (0.6, 0.95, 32_768)
    assert told.num_samples >= max((1, *told.pass_at, *told.cons_at))
    SOURCES.parse({"name": name, **told.knobs})
    page = " ".join(DOCS.read_text(encoding="utf-8").split())
    assert told.differs
    for sentence in told.differs:
        assert sentence in page
    assert f"| `{name}` |" in page
    assert f"{told.num_problems:,}" in page


def test_the_papers_own_k():
    given = {"aime24": 64, "gpqa": 64, "math500": 16, "codeforces": 16, "livecodebench": 8}
    assert {name: protocol.of(name).num_samples for name in given} == given
    assert protocol.of("aime24").cons_at == protocol.of("aime25").cons_at == (64,)


def test_a_benchmark_is_asked_in_the_split_that_it_is():
    assert protocol.of("squad").knobs == {"split": "validation"}


# Rows that are none.


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("aime24", {"problem": "1 + 1?", "answer": None}),
        ("aime24", {"problem": "1 + 1?", "answer": "1000"}),
        ("aime25", {"problem": "1 + 1?", "answer": "2.5"}),
        ("math500", {"problem": "1 + 1?", "answer": ""}),
        ("gsm8k", {"question": "1 + 1?", "answer": "2"}),
        ("mmlu", {"question": "1 + 1?", "subject": "sums", "choices": ["1", "2"]}),
        ("mmlu_pro", {"question": "a", "category": "b", "options": ["1", "2"], "answer": "C"}),
        ("humaneval", {"prompt": "def f():", "test": None, "entry_point": "f"}),
        ("mbpp", {"text": "Add.", "code": "", "test_list": []}),
        ("sst2", {"sentence": "fine .", "label": -1}),
        ("imdb", {"text": "fine ."}),
        ("ifeval", {"prompt": "a", "instruction_id_list": ["x:y"], "kwargs": []}),
        ("ifeval", {"prompt": "a", "instruction_id_list": [], "kwargs": []}),
        ("gpqa", {"Question": "a", "Correct Answer": "b"}),
        ("livecodebench", {"question_content": "a"}),
    ],
)
def test_a_row_without_an_answer_is_refused(tmp_path, name, row):
    with pytest.raises(UserError, match=r"rows.jsonl:1"):
        list(read(name, path=written(tmp_path, row)))


HALF, DEEP, LONG = "\ud800", "[" * 100_000, "x" * 10_000


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("aime24", {"problem": "1 + 1?", "answer": LONG}),
        ("sst2", {"sentence": "fine .", "label": LONG}),
        ("mmlu", {"question": "1 + 1?", "choices": DEEP, "answer": 1}),
        ("mmlu", {"question": "?", "choices": {"text": ["a", "b"], "label": None}, "answer": 1}),
        ("mmlu", {"question": "1 + 1?", "choices": ["1", "2"], "answer": LONG}),
        ("mbpp", {"text": "Add.", "code": HALF, "test_list": ["assert f(1) == 1"]}),
        ("mbpp", {"text": "Add.", "code": "pass", "test_list": DEEP}),
        ("mbpp", {"text": "Add.", "code": "pass", "test_list": {"test_cases": [{}]}}),
        ("mbpp", {"text": "Add.", "code": "pass", "test_list": {"test_cases": 5}}),
        ("gpqa", {"Correct Answer": HALF}),
        ("codeforces", {"rating": float("inf")}),
        ("codeforces", {"memory_limit": 10**400}),
        ("livecodebench", {"metadata": DEEP}),
        ("livecodebench", {"private_test_cases": DEEP}),
        ("livecodebench", {"public_test_cases": json.dumps([{"input": HALF, "output": ""}])}),
        (
            "squad",
            {
                "context": "a",
                "question": "?",
                "title": HALF,
                "answers": {"text": ["a"], "answer_start": [0]},
            },
        ),
    ],
)
def test_a_hostile_row_is_refused_in_a_short_line(tmp_path, name, row):
    whole = {"gpqa": gpqa_row(1), "codeforces": TASK, "livecodebench": contest_row()}
    path = written(tmp_path, {**whole.get(name, {}), **row})
    with pytest.raises(UserError, match=r"rows\.jsonl:1: ") as refused:
        list(read(name, path=path))
    assert len(str(refused.value)) < 500


def test_the_number_of_an_option_is_none_of_the_options(tmp_path):
    row = {"question": "1 + 1?", "subject": "sums", "choices": '["1", "2", "3", "4"]'}
    path = written(tmp_path, {**row, "answer": "1"})  # what a .csv has for the number 1
    (problem,) = read("mmlu", path=path)
    assert problem.answer == "B"


def test_nobody_guesses_what_has_no_right_answer(tmp_path):
    asked = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    path = written(tmp_path, {"prompt": "Write.", **asked}, {"prompt": "Sing.", **asked})
    assert collect.guess_shares(list(read("ifeval", path=path))) == {}
    path = written(
        tmp_path, *({"text": text, "label": label} for text, label in [("a", 0), ("b", 0)])
    )
    assert collect.guess_shares(list(read("imdb", path=path))) == {"": 1.0}


@pytest.mark.parametrize("answer", ["073", 73, "73", r"73^\circ", "$73$"])
def test_an_answer_of_aime_is_its_number(tmp_path, answer):
    (problem,) = read("aime24", path=written(tmp_path, {"problem": "?", "answer": answer}))
    assert problem.answer == "73"
    assert says(problem, r"\boxed{073}").correct
    assert not says(problem, r"\boxed{730}").correct


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("positive", True),
        ("Positive.", True),
        (r"\boxed{positive}", True),
        ("<think>It is a fine one.</think>\n\nThe answer is **positive**.", True),
        ("negative", False),
        ("positive or negative", None),
        ("It is a fine one.", None),
    ],
)
def test_a_sentiment_is_one_word(tmp_path, text, correct):
    (problem,) = read("sst2", path=written(tmp_path, {"sentence": "fine .", "label": 1}))
    verdict = says(problem, text)
    assert verdict.correct is bool(correct)
    assert verdict.reason == {True: "correct", False: "wrong", None: "unparsed"}[correct]


def test_instructions_without_what_is_null(tmp_path):
    named = ["length_constraints:number_paragraphs", "punctuation:no_comma"]
    asked = {"prompt": "Write.", "instruction_id_list": named, "key": 7}
    nulls = {"num_paragraphs": None, "keyword": None}
    hub = {**asked, "kwargs": [{**nulls, "num_paragraphs": 3}, nulls]}
    (problem,) = read("ifeval", path=written(tmp_path, hub))
    told = [{"id": named[0], "kwargs": {"num_paragraphs": 3}}, {"id": named[1], "kwargs": {}}]
    assert problem.meta["instructions"] == told
    (same,) = read(
        "ifeval", path=written(tmp_path, {**asked, "kwargs": [{"num_paragraphs": 3}, {}]})
    )
    assert same == problem
    assert problem.question == "Write."
    assert (problem.verifier, problem.answer) == ("ifeval", "")
    assert gradable(problem).correct


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.tsv", "sentence\tlabel\nfine\t1\nbad\n", r"rows.tsv:3.*cells"),
        ("rows.csv", "sentence,label\nfine,1,2\n", r"rows.csv:2.*cells"),
        ("rows.json", '{"sentence": "fine"}', "no list"),
        ("rows.json", "[[1]]", "no list"),
        ("rows.json", "[", "cannot be read"),
        ("rows.txt", "fine", "not a table"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list(read("sst2", path=str(tmp_path / name)))


def test_tabs_part_cells_and_quotes_are_letters(tmp_path):
    (tmp_path / "rows.tsv").write_text('sentence\tlabel\n"fine" , she said\t1\n')
    (problem,) = read("sst2", path=str(tmp_path / "rows.tsv"))
    assert problem.question.endswith('\n\n"fine" , she said')


# GPQA: only its format is here, and what is read of it is never stored in the clear.


def gpqa_row(number):
    wrong = {f"Incorrect Answer {i}": f"mauve {number + i}" for i in (1, 2, 3)}
    return {
        "Question": f'Which colour,\nof "all", has the zyzzyva number {number}?',
        "Correct Answer": f"vermilion {number}\n",
        **wrong,
        "High-level domain": "Physics",
        "Record ID": f"rec{number}",
    }


@pytest.fixture
def gpqa_file(tmp_path):
    rows = [gpqa_row(number) for number in range(200)]
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_options_are_in_an_order_that_tells_nothing(gpqa_file):
    problems = list(read("gpqa", path=gpqa_file))
    assert problems == list(read("gpqa", path=gpqa_file))
    counts = Counter(problem.answer for problem in problems)
    assert sorted(counts) == [*"ABCD"]
    assert min(counts.values()) > 25
    for number, problem in enumerate(problems):
        right = problem.meta["choices"]["ABCD".index(problem.answer)]
        assert right == f"vermilion {number}"
        assert f"\n{problem.answer}) {right}" in problem.question
        assert gradable(problem).correct
    assert {problem.domain for problem in problems} == {"Physics"}


def test_gpqa_is_never_stored_in_the_clear(tmp_path, gpqa_file):
    out = StageFolder(tmp_path / "run", "exam")
    out.path.mkdir()
    config = {"source": {"name": "gpqa", "path": gpqa_file}, "num": 200}
    collect.run(collect.Config.model_validate(config), out)
    kept = tables.read_problems(out.path / "problems")
    assert kept == [replace(p, split="problems") for p in read("gpqa", path=gpqa_file)]
    lying = [path for path in out.path.rglob("*") if path.is_file()]
    shown = [path.read_bytes() for path in lying]
    shown.append(json.dumps(tables.read_table(out.path / "problems").to_pylist()).encode())
    for word in (b"zyzzyva", b"vermilion", b"mauve", base64.b64encode(b"vermilion 1")[:8]):
        assert not any(word in content for content in shown)


def test_nobody_learns_an_exam(tmp_path, gpqa_file):
    problems = list(islice(read("gpqa", path=gpqa_file), 3))
    traces = [Trace(p.id, p.id, 0, p.answer, "stop", "m") for p in problems]
    verdicts = [judge(*pair) for pair in zip(problems, traces, strict=True)]
    paths = {"problems": problems, "traces": traces, "verdicts": verdicts}
    for kind, rows in paths.items():
        tables.write_part(tmp_path / kind, tables.to_table(kind, rows))
    places = {kind: str(tmp_path / kind) for kind in paths}
    asked = {"problems": places["problems"], "engine": "gold"}
    for stage, settings in ((sample, asked), (curate, {**places, "keep": ["correct"]})):
        out = StageFolder(tmp_path / "run", stage.__name__)
        with pytest.raises(UserError, match="nobody learns"):
            stage.run(stage.Config.model_validate(settings), out)
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_a_sealed_problem_that_was_changed_is_refused(tmp_path, gpqa_file):
    table = tables.to_table("problems", islice(read("gpqa", path=gpqa_file), 1))
    (row,) = table.to_pylist()
    row["id"] = "0" * 16
    tables.write_part(tmp_path / "problems", table.from_pylist([row], schema=table.schema))
    with pytest.raises(UserError, match="cannot be read"):
        tables.read_problems(tmp_path / "problems")


@pytest.mark.parametrize("wrong", ["", " ", None])
def test_four_options_or_none(tmp_path, wrong):
    row = {**gpqa_row(1), "Incorrect Answer 2": wrong}
    with pytest.raises(UserError, match="option"):
        list(read("gpqa", path=written(tmp_path, row)))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("math500", lambda: {"problem": "1 + 1?", "answer": "2", "subject": "sums"}),
        ("livecodebench", lambda: contest_row()),
        ("codeforces", lambda: TASK),
    ],
)
def test_a_prompt_of_ones_own_has_a_place_for_the_question(tmp_path, name, row):
    path = written(tmp_path, row())
    (problem,) = read(name, path=path, prompt="Well: {question}")
    assert problem.question.startswith("Well: ")
    with pytest.raises(UserError, match=r"no \{question\}"):
        list(read(name, path=path, prompt="Well?"))


# LiveCodeBench: dates, tests, and pickles that nobody loads.


def packed(data):
    return base64.b64encode(zlib.compress(data)).decode()


def hidden(cases, level=4):
    return packed(pickle.dumps(json.dumps(cases), protocol=level))


STARTER = "class Solution:\n    def add(self, a: List[int], b: int) -> int:"
FUNCTION = [
    {"input": "[1, 2]\n3", "output": "6", "testtype": "functional"},
    {"input": "[]\n5", "output": "5", "testtype": "functional"},
]
SCRIPT = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]


def contest_row(**cells):
    return {
        "question_content": "Add them up.",
        "question_id": "1873_A",
        "contest_date": "2024-09-01T00:00:00",
        "difficulty": "easy",
        "starter_code": f"{STARTER}\n        ",
        "metadata": json.dumps({"func_name": "add"}),
        "public_test_cases": json.dumps(FUNCTION[:1]),
        "private_test_cases": hidden(FUNCTION[1:]),
        **cells,
    }


def test_a_window_of_dates_has_both_its_days(tmp_path):
    days = ["2024-07-31", "2024-08-01", "2025-01-31", "2025-02-01"]
    rows = [contest_row(contest_date=f"{d}T23:30:00", question_content=d) for d in days]
    path = written(tmp_path, *rows)
    found = [p.meta["date"] for p in read("livecodebench", path=path)]
    assert found == days[1:3]
    (last,) = read("livecodebench", path=path, start="2025-02-01", end="2025-02-01")
    assert last.meta["date"] == days[3]
    plain = {"name": "livecodebench", "path": path, "start": date(2024, 9, 1)}
    assert SOURCES.parse(plain).knobs["start"] == "2024-09-01"
    assert SOURCES.parse({**plain, "start": "20240901"}).knobs["start"] == "2024-09-01"
    with pytest.raises(UserError, match="after"):
        livecodebench.check(start="2025-01-01", end="2024-01-01")
    for day in ("last year", "2024-13-01", 2024):
        with pytest.raises(ValueError, match="knobs"):
            SOURCES.parse({**plain, "start": day})


@needs_sandbox
def test_tests_that_call_a_function(tmp_path):
    (problem,) = read("livecodebench", path=written(tmp_path, contest_row()))
    assert [test["args"] for test in problem.meta["tests"]] == [[[1, 2], 3], [[], 5]]
    assert f"{STARTER}\n```" in problem.question
    assert problem.domain == "easy"
    program = f"```python\n{STARTER}\n        return sum(a){{}}\n```"  # List and add are imported
    assert says(problem, program.format(" + b")).correct
    assert says(problem, program.format(" - b")).reason == "wrong"
    (first,) = read("livecodebench", path=written(tmp_path, contest_row()), tests_per_problem=1)
    assert len(first.meta["tests"]) == 1


@needs_sandbox
def test_tests_of_what_is_printed(tmp_path):
    cells = {"starter_code": "", "metadata": "{}", "private_test_cases": "[]"}
    row = contest_row(**cells, public_test_cases=json.dumps(SCRIPT))
    (problem,) = read("livecodebench", path=written(tmp_path, row))
    assert "stdin" in problem.question
    assert says(problem, "```python\nprint(sum(map(int, stdin.readline().split())))\n```").correct
    assert not says(problem, "```python\nprint(4)\n```").correct


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "cell",
    [
        packed(pickle.dumps(Hostile())),
        packed(pickle.dumps(Hostile(), protocol=0)),
        packed(pickle.dumps(["[]", Hostile()])),
        packed(pickle.dumps(("[]", "[]"))),
        packed(pickle.dumps(3)),
        packed(pickle.dumps("[")),
        packed(pickle.dumps("[]")[:-1]),
        packed(b""),
        packed(b"no pickle"),
        packed(pickle.dumps("x" * 100_000)),
        packed(pickle.dumps("[]"))[:-8],
        base64.b64encode(b"no archive").decode(),
        "neither",
        "{}",
        3,
        json.dumps([{"input": "1", "output": "1"}]),
    ],
)
def test_hostile_and_broken_tests_are_refused_and_never_run(tmp_path, monkeypatch, cell):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(livecodebench, "MAX_BYTES", 50_000)
    row = contest_row(private_test_cases=cell)
    with pytest.raises(UserError, match=r"rows.jsonl:1.*LiveCodeBench"):
        list(read("livecodebench", path=written(tmp_path, row)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("text", ["", "[1]", "é€😀" * 300])
def test_a_pickled_text_is_read_as_pickle_reads_it(level, text):
    assert livecodebench.pickled_text(pickle.dumps(text, protocol=level)) == text


def test_a_damaged_pickle_is_a_text_or_refused():
    draw = random.Random(3)
    for _ in range(3000):
        data = bytearray(pickle.dumps("[1, 2]" * 5))
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with suppress(ValueError):
            assert isinstance(livecodebench.pickled_text(bytes(data)), str)


# Codeforces.

TASK = {
    "title": "Sum",
    "description": "Add two numbers.",
    "input_format": "Two numbers.",
    "output_format": "Their sum.",
    "note": None,
    "examples": [{"input": "1 2\n", "output": "3\n"}],
    "official_tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5\n", "output": "10\n"}],
    "official_tests_complete": True,
    "input_mode": "stdio",
    "generated_checker": None,
    "interaction_format": None,
    "rating": 800,
    "contest_id": "2044",
    "index": "A",
    "time_limit": 1.5,
    "memory_limit": 256.0,
}


@needs_sandbox
def test_a_contest_problem_has_its_rating_and_its_limits(tmp_path):
    (problem,) = read("codeforces", path=written(tmp_path, TASK))
    assert problem.meta["rating"] == 800
    assert (problem.domain, problem.meta["id"]) == ("2044", "2044/A")
    assert problem.verifier == {"name": "code", "time_s": 1.5, "memory_mib": 256}
    assert len(problem.meta["tests"]) == 2
    for words in ("Time limit: 1.5 s", "Example 1\nInput:\n1 2\nOutput:\n3", "Their sum."):
        assert words in problem.question
    assert "None" not in problem.question
    assert says(problem, "```python\nprint(sum(map(int, input().split())))\n```").correct


@pytest.mark.parametrize(
    "cell",
    [
        {"rating": None},
        {"official_tests_complete": False},
        {"input_mode": "file"},
        {"generated_checker": "import sys"},
        {"interaction_format": "Ask and be answered."},
        {"official_tests": []},
        {"description": None},
    ],
)
def test_what_output_alone_cannot_judge_is_left_out(tmp_path, cell):
    assert list(read("codeforces", path=written(tmp_path, {**TASK, **cell}))) == []


def test_tests_in_part_only_where_asked_for(tmp_path):
    path = written(tmp_path, {**TASK, "official_tests_complete": False})
    assert len(list(codeforces.read(path=path, complete=False))) == 1


@pytest.mark.parametrize(
    "cell",
    [
        {"official_tests": [{"input": "1"}]},
        {"rating": "x"},
        {"time_limit": "1 s"},
        {"note": "\ud800"},
    ],
)
def test_a_contest_problem_of_another_layout_is_refused(tmp_path, cell):
    path = written(tmp_path, {**TASK, **cell})
    with pytest.raises(UserError, match=r"rows.jsonl:1"):
        list(codeforces.read(path=path))
