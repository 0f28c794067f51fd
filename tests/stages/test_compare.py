"""compare and choose: several seeds as one row, budgets side by side, the best of some trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck import store, tables
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.stages import choose, compare


def score(problem: str, num_correct: int, metric: str = "pass_at_1") -> dict[str, Any]:
    return {
        "split": "heldout", "metric": metric, "problem_id": problem, "domain": "sums",
        "num_samples": 4, "num_correct": num_correct, "num_failed": 0, "num_truncated": 1,
        "prompt_tokens": 8, "completion_tokens": 20, "flops": 100.0,
        "value": num_correct / 4, "weight": 1.0,
    }  # fmt: skip


def scores(folder: Path, *num_correct: int) -> str:
    rows = [score(f"p{n}", num) for n, num in enumerate(num_correct)]
    tables.write_part(folder / "scores", tables.to_table("scores", rows))
    return str(folder / "scores")


def compared(folder: Path, **config: Any) -> dict[str, Any]:
    folder.mkdir()
    compare.run(compare.Config(**config), StageFolder(folder, "compare"))
    return store.read_json(folder / "results" / "results.json")


def test_seeds_are_one_row_and_each_is_told(tmp_path):
    one, two = scores(tmp_path / "a", 4, 0, 2, 4), scores(tmp_path / "b", 2, 0, 0, 4)
    plain = scores(tmp_path / "c", 0, 0, 0, 1)
    found = compared(
        tmp_path / "x", scores={"two": [one, two], "one": plain}, pairs=[["two", "one"]]
    )
    pooled, alone = found["results"]
    assert pooled["value"] == pytest.approx((10 + 6) / 32)
    assert pooled["seeds"] == [10 / 16, 6 / 16]
    assert (pooled["num_samples"], pooled["num_problems"]) == (8, 4)
    assert pooled["tokens_per_answer"] == 5 and pooled["truncated"] == 2 / 8
    assert "seeds" not in alone
    (test,) = found["tests"]
    assert test["difference"] == pytest.approx(16 / 32 - 1 / 16)


def test_seeds_that_answered_other_problems_are_refused(tmp_path):
    one, two = scores(tmp_path / "a", 4, 0), scores(tmp_path / "b", 4, 0, 1)
    with pytest.raises(UserError, match="seeds of both answered other problems"):
        compared(tmp_path / "x", scores={"both": [one, two]})


def test_a_metric_that_nobody_measured_is_a_mistake(tmp_path):
    one = scores(tmp_path / "a", 4, 0)
    with pytest.raises(UserError, match="nothing was measured that is called pas_at_1"):
        compared(tmp_path / "x", scores={"one": one}, metric="pas_at_1")


def finished(folder: Path, **summary: Any) -> str:
    folder.mkdir()
    store.write_sealed(folder / "stage.json", {"summary": summary})
    return str(folder / "model")


def test_budgets_stand_side_by_side_with_and_without_the_teacher(tmp_path):
    one = scores(tmp_path / "a", 4, 0)
    half = finished(tmp_path / "half", flops=2e9)
    rest = finished(tmp_path / "rest", flops=3e9)
    alone = finished(tmp_path / "alone", flops=4e9)
    local = finished(tmp_path / "local", flops=1e9, paid_tokens=0)
    bought = finished(tmp_path / "bought", flops=0.0, paid_tokens=700)
    arms = {
        "both": {"models": [half, rest], "traces": [local]},
        "alone": {"models": [alone], "traces": [bought]},
    }
    both, other = compared(tmp_path / "x", scores={"one": one}, budgets=arms)["budgets"]
    assert (both["flops"], both["flops_with_teacher"], both["teacher_flops"]) == (5e9, 6e9, 1e9)
    assert (other["flops"], other["flops_with_teacher"]) == (4e9, 4e9)
    assert (both["paid_tokens"], other["paid_tokens"]) == (0, 700)
    assert other["share_of_flops"] == 0.8
    assert other["share_of_flops_with_teacher"] == pytest.approx(4 / 6)


def chosen(folder: Path, **trials: tuple[str, str]) -> dict[str, Any]:
    folder.mkdir()
    named = {name: {"model": model, "scores": at} for name, (model, at) in trials.items()}
    return choose.run(choose.Config(trials=named), StageFolder(folder, "choose"))


def model(folder: Path, word: str, flops: float = 0.0) -> str:
    finished(folder, flops=flops)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(word)
    return str(folder / "model")


def test_the_best_trial_becomes_the_model_and_all_are_listed(tmp_path):
    low = model(tmp_path / "m1", "low", 7e9), scores(tmp_path / "a", 1, 0, 2)
    high = model(tmp_path / "m2", "high", 8e9), scores(tmp_path / "b", 4, 0, 2)
    same = model(tmp_path / "m3", "same"), scores(tmp_path / "c", 2, 2, 2)
    summary = chosen(tmp_path / "x", low=low, high=high, same=same)
    assert summary["chosen"] == "high"
    assert [(row["name"], row["value"]) for row in summary["trials"]] == [
        ("low", 0.25), ("high", 0.5), ("same", 0.5)
    ]  # fmt: skip
    assert (tmp_path / "x" / "model" / "config.json").read_text() == "high"
    assert [row["flops"] for row in summary["trials"]] == [7e9, 8e9, 0.0]
    assert summary["flops"] == 8e9, "what the winner has cost, as its training says"


def test_trials_with_other_problems_are_refused(tmp_path):
    one = model(tmp_path / "m1", "one"), scores(tmp_path / "a", 1, 0, 2)
    two = model(tmp_path / "m2", "two"), scores(tmp_path / "b", 4, 0)
    with pytest.raises(UserError, match="different numbers of problems"):
        chosen(tmp_path / "x", one=one, two=two)


def test_a_budget_of_a_stage_that_tells_none_is_a_mistake(tmp_path):
    one, silent = scores(tmp_path / "a", 4, 0), finished(tmp_path / "silent")
    with pytest.raises(UserError, match="from no stage that tells its FLOPs"):
        compared(tmp_path / "x", scores={"one": one}, budgets={"silent": {"models": [silent]}})
