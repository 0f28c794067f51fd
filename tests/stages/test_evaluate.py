"""What evaluate measures beside pass@1: pass@k and rewards, each by problem, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import limbeck
from limbeck import metrics, tables
from limbeck.errors import UserErrors
from limbeck.problems import make_problem
from limbeck.types import Generator, Problem, Request, Sampling, Trace, Verdict

PROBLEMS = [
    make_problem("What is the sum of two and two?", "4", verifier="number", domain="sums"),
    make_problem("What is the sum of two and three?", "5", verifier="number", domain="sums"),
]
RIGHT_OF_FOUR = {"4": 1, "5": 4}
ENGLISH = "<think>We have to add the two numbers.</think>"
CHINESE = "<think>我们来看一下这个数是多少</think>"


class Scripted:
    """Right as often as it is said; of four samples the first two think in English."""

    name, num_parameters, costs_money = "scripted", None, False

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        for request in requests:
            right = request.index < RIGHT_OF_FOUR[request.problem.answer]
            answer = request.problem.answer if right else "0"
            text = f"{ENGLISH if request.index < 2 else CHINESE}{answer}"
            yield Trace(
                request.id, request.problem.id, request.index, text, "stop", self.name, 8, 10
            )


def connect() -> Generator:
    return Scripted()


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
        ({"rewards": ["langauge"]}, "did you mean 'language'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(stage, tmp_path, told, word):
    with pytest.raises(UserErrors, match=word):
        limbeck.run({"stages": {"evaluate": stage | told}}, run=tmp_path / "run")
