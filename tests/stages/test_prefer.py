"""Pairs for a reward model: who is asked, what is kept, and that every pair is accounted for."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from limbeck import tables
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.problems import make_problem
from limbeck.rewards.reading import reading
from limbeck.stages import prefer
from limbeck.stages.prefer import Pair, balanced
from limbeck.types import Problem, Request, Sampling, Trace, Verdict

POLITE = {"name": "pattern", "find": "please", "reads": "summary"}


def answer(problem: Problem, index: int, text: str, finish: Any = "stop") -> Trace:
    return Trace(f"{problem.id}-{index}", problem.id, index, text, finish, "model")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 questions with four answers of 1 to 12 words; the polite ones tend to be longer."""
    folder, drawn = tmp_path_factory.mktemp("world"), random.Random(1)
    problems = [
        make_problem(f"How much is {i} and {i}?", str(2 * i), verifier="number") for i in range(120)
    ]
    traces = []
    for i, problem in enumerate(problems):
        for index in range(4):
            words = ["so"] * drawn.randrange(1, 12) + ["please"] * drawn.randrange(2)
            text = f"<think>{i} please {i}</think> {' '.join(words)} {2 * i}"
            traces.append(answer(problem, index, text))
        traces.append(answer(problem, 4, "<think>please", "length"))
        traces.append(answer(problem, 5, traces[-2].text))
        traces.append(answer(problem, 6, "<think>never closed"))
    tables.write_part(folder / "problems", tables.to_table("problems", problems))
    tables.write_part(folder / "traces", tables.to_table("traces", traces))
    return folder


def config(world: Path, **told: Any) -> prefer.Config:
    paths = {"problems": str(world / "problems"), "traces": str(world / "traces")}
    return prefer.Config(**{**paths, **told})


def run(settings: prefer.Config, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    return prefer.run(settings, StageFolder(out, "prefer", "key"))


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return tables.read_table(out / name).to_pylist()


def test_a_rule_decides_and_lengths_are_balanced(world: Path, tmp_path: Path) -> None:
    settings = config(world, rule=POLITE, min_difference=0, num_pairs=3, heldout_share=0.3)
    said = run(settings, tmp_path)
    learned, heldout = rows(tmp_path, "pairs"), rows(tmp_path, "heldout")
    for row in learned + heldout:
        assert "please" in reading(row["chosen"], "summary")
        assert "please" not in reading(row["rejected"], "summary")
        assert row["chosen_length"] == len(reading(row["chosen"], "summary"))
        assert row["margin"] == 1
    longer = [row["chosen_length"] > row["rejected_length"] for row in learned]
    shorter = [row["chosen_length"] < row["rejected_length"] for row in learned]
    assert sum(longer) == sum(shorter) > 20
    assert said["heldout"]["longer_won"] > 0.6, "held-out pairs stay as they fell"
    assert not {r["problem_id"] for r in learned} & {r["problem_id"] for r in heldout}
    assert 0.15 < len({r["problem_id"] for r in heldout}) / 120 < 0.45
    accounts = said["accounts"]
    assert 330 < accounts["inputs"] <= 120 * 3, "two of the four answers may be the same"
    assert accounts["ok"] == len(learned) + len(heldout)
    assert accounts["rejected"] == sum(said["dropped"].values())
    assert set(said["dropped"]) == {"too close", "balanced away: the longer won"}
    assert said["answers_passed_over"]["unfinished"] == 120
    assert said["answers_passed_over"]["nothing to read"] == 120
    assert said["answers_passed_over"]["said before"] >= 120
    assert len({row["id"] for row in learned + heldout}) == accounts["ok"]


def test_the_same_seed_draws_the_same_pairs(world: Path, tmp_path: Path) -> None:
    settings = config(world, rule=POLITE, min_difference=0)
    run(settings, tmp_path / "one")
    run(settings, tmp_path / "two")
    run(settings.model_copy(update={"seed": 1}), tmp_path / "three")
    one, two, three = (rows(tmp_path / name, "pairs") for name in ("one", "two", "three"))
    assert one == two != three


ASKED: list[str] = []
"""Every question that the scripted judge was asked."""


@dataclass
class Scripted:
    """Finds the polite answer much better, of two rude ones the longer a little; or as told."""

    says: str | None
    costs_money: bool = True
    name: str = "scripted"
    num_parameters: int | None = None

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        for request in requests:
            question = request.problem.question
            ASKED.append(question)
            a, b = (text.strip() for name, text in sections(question) if name != "question")
            polite, longer = (
                ("please" in a) - ("please" in b),
                (len(a) > len(b)) - (len(a) < len(b)),
            )
            rude = "please" not in a + b
            verdict = ["A=B", "A>>B", "B>>A"][polite] if not rude else ["A=B", "A>B", "B>A"][longer]
            text = self.says or json.dumps({"own_answer": "?", "verdict": verdict})
            yield Trace(request.id, request.problem.id, request.index, text, "stop", self.name)


def connect(*, says: str | None = None) -> Scripted:
    return Scripted(says)


def sections(question: str) -> list[tuple[str, str]]:
    found = re.findall(
        r"=== ([\w ]+) (\w{16}) ===\n(.*?)\n=== end of \1 \2 ===", question, re.DOTALL
    )
    return [(name, text) for name, _, text in found]


def judged(world: Path, **told: Any) -> prefer.Config:
    judge = {"name": "tests.stages.test_prefer:connect", **told}
    return config(world, judge=judge, heldout_share=0.2)


def test_a_judge_compares_four_times_in_both_orders(world: Path, tmp_path: Path) -> None:
    ASKED.clear()
    said = run(judged(world), tmp_path)
    accounts = said["accounts"]
    assert len(ASKED) == 4 * accounts["inputs"] == 480
    shown = [tuple(text for name, text in sections(question)) for question in ASKED]
    orders = Counter(shown)
    assert all(orders[q, a, b] == orders[q, b, a] for q, a, b in orders)
    assert "<think>" not in "".join(ASKED), "it sees what is read"
    for row in rows(tmp_path, "pairs") + rows(tmp_path, "heldout"):
        assert row["margin"] == 2
        assert "please" in reading(row["chosen"], "summary")
        assert "please" not in reading(row["rejected"], "summary")
    assert said["dropped"]["too close"] > 30, "a little better is not enough"
    assert accounts["inputs"] == accounts["ok"] + accounts["rejected"]
    assert run(judged(world), tmp_path) == said
    assert len(ASKED) == 480, "what was paid for is not asked again"


def test_an_unclear_judge_has_failed(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no pairs left .120 the judge was unclear.; lower"):
        run(judged(world, says="Both are fine."), tmp_path)


def test_a_judge_that_likes_a_place_prefers_nothing(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="120 too close"):
        run(judged(world, says='{"verdict": "A>>B"}'), tmp_path)


def test_answers_that_do_not_differ_make_no_pair(world: Path, tmp_path: Path) -> None:
    problems = tables.read_problems(world / "problems")
    traces = [answer(problem, i, "<think></think>4") for problem in problems for i in range(2)]
    tables.write_part(tmp_path / "traces", tables.to_table("traces", traces))
    settings = config(world, rule=POLITE, traces=str(tmp_path / "traces"))
    with pytest.raises(UserError, match="no problem has two answers that differ; sample more"):
        run(settings, tmp_path / "out")


def test_a_rule_may_know_the_verdicts(world: Path, tmp_path: Path) -> None:
    traces = tables.read_traces(world / "traces")
    verdicts = [Verdict(t.id, t.index % 2 == 0, "1", "correct") for t in traces]
    tables.write_part(tmp_path / "verdicts", tables.to_table("verdicts", verdicts))
    settings = config(
        world, rule="correct", min_difference=0, verdicts=str(tmp_path / "verdicts"), num_pairs=6
    )
    run(settings, tmp_path / "out")
    right = {trace.text for trace in traces if trace.index % 2 == 0}
    assert all(row["chosen"] in right for row in rows(tmp_path / "out", "pairs"))


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=60),
    seed=st.integers(0, 9),
)
def test_balancing_drops_the_surplus_and_no_more(lengths: list[tuple[int, int]], seed: int) -> None:
    problem = make_problem("Why?", "so", verifier="exact")
    both = (answer(problem, 0, "a"), answer(problem, 1, "b"))
    pairs = [Pair(problem, both, each) for each in lengths]
    dropped: Counter[str] = Counter()
    kept = balanced(pairs, seed, dropped)
    won = Counter(pair.favours for pair in pairs)
    assert Counter(pair.favours for pair in kept) == {
        side: num for side in (-1, 0, 1) if (num := min(won[1], won[-1]) if side else won[0])
    }
    assert len(kept) + dropped.total() == len(pairs)


@pytest.mark.parametrize("told", [{}, {"rule": "correct", "judge": "gold"}])
def test_one_judge_is_needed(world: Path, told: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set one of judge and rule"):
        config(world, **told)


def test_an_odd_number_of_comparisons_is_refused(world: Path) -> None:
    with pytest.raises(ValidationError, match="multiple of 2"):
        config(world, rule="correct", num_times=3)


def test_a_pattern_is_checked_before_it_is_used(world: Path) -> None:
    with pytest.raises(ValidationError, match="wrong knobs"):
        config(world, rule={"name": "pattern", "find": "("})
