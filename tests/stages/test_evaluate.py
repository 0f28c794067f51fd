"""What evaluate measures beside pass@1, each by problem; how it asks; and what it pins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import limbeck
from limbeck import metrics, scoring, store, tables
from limbeck.errors import UserError, UserErrors
from limbeck.problems import make_problem
from limbeck.types import Generator, Problem, Request, Sampling, Trace, Verdict
from limbeck.verifiers import judging

PROBLEMS = [
    make_problem("What is the sum of two and two?", "4", verifier="number", domain="sums"),
    make_problem("What is the sum of two and three?", "5", verifier="number", domain="sums"),
]
RIGHT_OF_FOUR = {"4": 1, "5": 4}
ENGLISH = "<think>We have to add the two numbers.</think>"
CHINESE = "<think>我们来看一下这个数是多少</think>"


asked: list[Request] = []


class Scripted:
    """Right as often as it is said; of four samples the first two think in English."""

    name, num_parameters, costs_money = "scripted", None, False

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        asked.extend(requests)
        for request in requests:
            right = request.index < RIGHT_OF_FOUR[request.problem.answer]
            answer = request.problem.answer if right else "0"
            text = f"{ENGLISH if request.index < 2 else CHINESE}{answer}"
            yield Trace(
                request.id, request.problem.id, request.index, text, "stop", self.name, 8, 10
            )


def connect() -> Generator:
    return Scripted()


@dataclass
class Saying(Scripted):
    """Says what it is told, by the problem's answer and the sample."""

    texts: dict[str, list[str]]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        for request in requests:
            text = self.texts[request.problem.answer][request.index]
            yield Trace(request.id, request.problem.id, request.index, text, "stop", self.name)


def saying(*, texts: dict[str, list[str]]) -> Generator:
    return Saying(texts)


def brevity(problem: Problem, trace: Trace, verdict: Verdict, *, cost: float = 0.5) -> float:
    return -cost * trace.completion_tokens


@pytest.fixture
def stage(tmp_path: Path) -> dict[str, object]:
    tables.write_part(tmp_path / "problems", tables.to_table("problems", PROBLEMS))
    return {
        "engine": f"{__name__}:connect",
        "problems": {"heldout": str(tmp_path / "problems")},
        "num_samples": 4,
    }


def test_pass_at_k_and_rewards_are_metrics(stage, tmp_path):
    told = {"pass_at": [2, 4], "rewards": ["language", "format", f"{__name__}:brevity"]}
    run = limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")
    (row,) = run.done("evaluate")
    results = {found["metric"]: found for found in row["summary"]["results"]}
    assert {name: found["value"] for name, found in results.items()} == pytest.approx(
        {
            "pass_at_1": (1 / 4 + 1) / 2,
            "greedy": 1.0,
            "pass_at_2": (1 - (3 * 2) / (4 * 3) + 1) / 2,
            "pass_at_4": 1.0,
            "language": 0.5,
            "format": 1.0,
            "brevity": -5.0,
        }
    )
    scores = tables.read_table(run.path / "evaluate" / "scores").to_pylist()
    language = [found["value"] for found in scores if found["metric"] == "language"]
    assert language == [0.5, 0.5]
    low, high = metrics.interval([0.5, 0.5])
    assert (results["language"]["low"], results["language"]["high"]) == (low, high)
    assert results["brevity"]["unit"] == "reward" and "unit" not in results["language"]
    assert results["brevity"]["low"] == results["brevity"]["high"] == -5.0
    table = run.results_text()
    assert "pass@2" in table and "pass@4" in table and "-5.00" in table


def test_greedy_answers_are_rewarded_where_there_are_no_others(stage, tmp_path):
    told = {"num_samples": 0, "rewards": ["correct"]}
    run = limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")
    values = {found["metric"]: found["value"] for found in run.results()}
    assert values == {"greedy": 1.0, "correct": 1.0}


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ({"pass_at": [8]}, "pass_at: 8 is more than num_samples, 4"),
        ({"pass_at": [1]}, "greater than or equal to 2"),
        ({"cons_at": [8]}, "cons_at: 8 is more than num_samples, 4"),
        ({"cons_at": [64], "num_samples": 1100}, "votes of at most 1,000 samples"),
        ({"rewards": ["langauge"]}, "did you mean 'language'"),
        ({"prompting": "zero_shot"}, "did you mean 'zero_shot_cot'"),
        ({"prompting": "few_shot_cot"}, "few_shot_cot has no examples to show; set `examples`"),
    ],
)
def test_mistakes_are_told_before_anything_runs(stage, tmp_path, told, word):
    with pytest.raises(UserErrors, match=word):
        limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")


@pytest.mark.parametrize("splits", [{"one": "12"}, {"one": "1", "two": "2"}])
def test_an_id_is_one_problems_alone(stage, tmp_path, splits):
    """Or the answers to one would count as the other's."""
    for split, answers in splits.items():
        same = [replace(make_problem("?", a, verifier="number"), id="1") for a in answers]
        tables.write_part(tmp_path / split, tables.to_table("problems", same))
    told = {"problems": {split: str(tmp_path / split) for split in splits}}
    with pytest.raises(UserError, match="problem 1: another problem has this id"):
        limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")


def said(texts: Sequence[str], verifier: str = "math", answer: str = "2") -> list[int | None]:
    """The votes of answers to a problem."""
    problem = make_problem("?", answer, verifier=verifier)
    traces = [Trace(str(i), problem.id, i, text, "stop", "m") for i, text in enumerate(texts)]
    return scoring.votes(problem, [judging.judge(problem, trace) for trace in traces])


def test_equal_answers_vote_alike():
    wrong = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{3}", r"\boxed{1/2}"]
    assert said([*wrong, r"\boxed{2}", r"\boxed{4/2}"]) == [1, 1, 2, 1, 0, 0]
    assert said(["", "<think>so", r"\boxed{3}"]) == [None, None, 1]
    assert said(["B", "(b)", "The answer is C.", "A"], "choice", "A") == [1, 1, 2, 0]


def test_answers_vote_by_themselves_where_a_problem_has_several_gold_ones():
    """SQuAD's lie in `meta`, and a vote must be held against the other vote alone."""
    problem = make_problem("?", "Denver", verifier="squad")
    problem = replace(problem, meta={"answers": ["Denver", "the Broncos"]})
    texts = ["Carolina", "the carolina!", "Boston", "Broncos"]
    traces = [Trace(str(i), problem.id, i, text, "stop", "m") for i, text in enumerate(texts)]
    verdicts = [judging.judge(problem, trace) for trace in traces]
    assert scoring.votes(problem, verdicts) == [1, 1, 2, 0]


def test_each_distinct_answer_is_asked_about_once(monkeypatch):
    asked: list[tuple[str, str]] = []

    def judge(problem: Problem, trace: Trace) -> Verdict:
        asked.append((problem.answer, trace.text))
        return judging.judge(problem, trace)

    monkeypatch.setattr(scoring, "judge", judge)
    said([r"\boxed{3}"] * 5 + [r"\boxed{7}"] * 5)
    assert set(asked) == {("3", "7"), ("3", r"\boxed{7}")} and len(asked) == 2


def test_votes_and_answers_that_are_none_are_counted(stage, tmp_path):
    texts = {"4": ["4", "5", "5.0", "no idea"], "5": ["<think>5", "5", "5", "6"]}
    told = {"engine": {"name": f"{__name__}:saying", "texts": texts}, "cons_at": [4]}
    run = limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")
    scores = tables.read_table(run.path / "evaluate" / "scores").to_pylist()
    cons = [row for row in scores if row["metric"] == "cons_at_4"]
    assert [row["value"] for row in cons] == [0.0, 1.0]  # 5 has two votes, 4 has one
    assert [(row["num_unparsed"], row["num_truncated"]) for row in cons] == [(1, 0), (0, 1)]
    result = next(row for row in run.results() if row["metric"] == "pass_at_1")
    assert (result["unparsed"], result["truncated"], result["timed_out"]) == (1 / 8, 1 / 8, 0.0)
    assert "12.5% truncated, 12.5% unparsed" in (run.path / "evaluate" / "log.txt").read_text()


def test_programs_do_not_vote(stage, tmp_path):
    program = make_problem(
        "Print 1.", "", verifier="code", meta={"tests": [{"stdin": "", "stdout": "1"}]}
    )
    tables.write_part(tmp_path / "programs", tables.to_table("problems", [program]))
    told = {"problems": {"heldout": str(tmp_path / "programs")}, "cons_at": [4]}
    with pytest.raises(UserError, match="verifier code reads no answer that others could agree"):
        limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")
    assert not (tmp_path / "run" / "evaluate" / "pass_at_1").exists()


def test_instructions_are_counted_by_prompt_and_one_by_one():
    ids = ("punctuation:no_comma", "startend:quotation")
    listed = [{"id": name, "kwargs": {}} for name in ids]
    both, one = (
        make_problem("Write.", "", verifier="ifeval", meta={"instructions": each})
        for each in (listed, listed[:1])
    )
    answered = []
    for problem, spoken in (
        (both, ['<think>A, B</think>"quoted"', "not quoted"]),
        (one, ["a, b", "**a**"]),
    ):
        traces = [Trace(f"{i}", problem.id, i, t, "stop", "m") for i, t in enumerate(spoken)]
        cut = replace(traces[0], id="cut", finish="length")
        verdicts = [judging.judge(problem, trace) for trace in [*traces, cut]]
        answered.append(scoring.Answered("ifeval", problem, [*traces, cut], verdicts))
    rows = scoring.instructions(answered)
    values = {(row["metric"], row["weight"]): row["value"] for row in rows}
    assert values == pytest.approx(
        {
            ("prompt_strict", 1.0): 1 / 3,  # of `one`, whose rows come last
            ("prompt_loose", 1.0): 1 / 3,
            ("instruction_strict", 2): (1 + 0.5 + 0) / 3,
            ("instruction_loose", 2): (1 + 0.5 + 0) / 3,
            ("instruction_strict", 1): 1 / 3,
            ("instruction_loose", 1): 1 / 3,
        }
    )
    assert not scoring.partial_credit(answered)  # which SQuAD's answers have
    results = {row["metric"]: row["value"] for row in metrics.summarise(rows, ["metric"])}
    assert results["instruction_strict"] == pytest.approx((2 * 0.5 + 1 / 3) / 3)


def test_contest_problems_give_a_rating():
    rows = []
    for difficulty, right in ((1200, True), (1600, True), (2000, False), (2400, False)):
        problem = make_problem(f"{difficulty}", "1", verifier="exact", meta={"rating": difficulty})
        verdict = Verdict("t", right, "1", "correct" if right else "wrong")
        trace = Trace("t", problem.id, 0, "1", "stop", "m")
        rows += scoring.rating([scoring.Answered("codeforces", problem, [trace], [verdict])])
    (result,) = metrics.summarise(rows, ["metric"])
    assert result["unit"] == "rating" and result["value"] == pytest.approx(1800, abs=1)
    assert result["low"] < 1700 and result["high"] > 1900


def test_more_can_be_counted_without_asking_again(stage, tmp_path):
    limbeck.run({"stages": {"evaluate": stage}}, run=tmp_path / "run")
    part = next((tmp_path / "run" / "evaluate" / "pass_at_1").glob("part-*"))
    written = part.stat().st_mtime_ns
    told = {"pass_at": [2], "cons_at": [3]}
    run = limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")
    assert {"pass_at_2", "cons_at_3"} < {row["metric"] for row in run.results()}
    assert part.stat().st_mtime_ns == written and len(list(part.parent.glob("part-*"))) == 1


def test_prompting_changes_what_is_asked_and_not_which_problem_it_is(stage, tmp_path):
    lessons = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("What is 1 + 1?", "<think>One and one.</think>2"), ("What is 1 + 2?", "3"))
    ]
    store.write_text(tmp_path / "lessons.jsonl", "\n".join(map(json.dumps, lessons)))
    way = {"name": "few_shot_cot", "num": 2}
    told = {"prompting": way, "examples": str(tmp_path / "lessons.jsonl")}
    asked.clear()
    run = limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")
    assert {request.problem.id for request in asked} == {problem.id for problem in PROBLEMS}
    turns = [(m.role, m.content) for m in asked[0].problem.messages]
    assert turns == [
        ("user", "What is 1 + 1?"),
        ("assistant", "One and one.\n\n2"),
        ("user", "What is 1 + 2?"),
        ("assistant", "3"),
        ("user", PROBLEMS[0].question),
    ]
    (plain,) = [row for row in run.results() if row["metric"] == "pass_at_1"]
    assert plain["num_problems"] == 2


def test_a_problem_among_its_worked_examples_is_refused(stage, tmp_path):
    lesson = {
        "messages": [
            {"role": "user", "content": f" {PROBLEMS[1].question.upper()}"},
            {"role": "assistant", "content": "5"},
        ]
    }
    store.write_text(tmp_path / "lessons.jsonl", json.dumps(lesson))
    way = {"name": "few_shot_cot", "num": 1}
    told = {"prompting": way, "examples": str(tmp_path / "lessons.jsonl")}
    with pytest.raises(UserError, match="is one of the worked examples"):
        limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")


def test_the_manifest_pins_what_the_numbers_depend_on(stage, tmp_path):
    run = limbeck.run({"stages": {"evaluate": stage}}, run=tmp_path / "run")
    made = store.read_json(run.path / "evaluate" / "evaluation" / "manifest.json")
    assert made["results"] == run.done("evaluate")[0]["summary"]["results"]
    assert made["model"] == {"name": "scripted", "url": None}
    assert made["sampling"]["temperature"] == 0.6 and made["seeds"]["seed"] == 0
    assert made["inputs"]["problems.heldout"]["num"] == 2
    assert made["config"]["max_tokens"] == 32_768  # defaults, too
    assert {"limbeck.verifiers", f"{__name__}:connect"} == made["sources"].keys()
    assert made["machine"]["threads"] and made["versions"]["python"]
