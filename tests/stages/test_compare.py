"""compare and choose: several seeds as one row, budgets side by side, the best of some trials."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from limbeck import metrics, store, tables
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


def judged(shares: np.ndarray) -> list[dict[str, Any]]:
    return [score(f"p{n}", round(4 * share)) | {"value": share} for n, share in enumerate(shares)]


def seeds_of_a_method(drawn: np.random.Generator, difficulty: np.ndarray) -> list[Any]:
    """Score rows of three trainings, whose abilities have a spread of 3.6 points."""
    ability = drawn.normal(0, 0.2, (3, 1)) + drawn.normal(0, 0.7, (3, len(difficulty)))
    shares = drawn.binomial(8, 1 / (1 + np.exp(-difficulty - ability))) / 8
    return [judged(each) for each in shares]


def test_equally_good_methods_are_seldom_told_apart():
    """Theory bounds it by 9 %, at 5 % each, where the means over seeds and those over problems
    spread alike: P(|t| > 4.30 / sqrt(2)) with two degrees of freedom."""
    drawn, verdicts, of_these = np.random.default_rng(0), [], []
    for _ in range(100):
        difficulty = drawn.normal(0, 1.5, 300)
        seeds = {name: seeds_of_a_method(drawn, difficulty) for name in "ab"}
        pooled = {name: compare.pooled(runs, name) for name, runs in seeds.items()}
        (row,) = compare.tests(pooled, ["a", "b"], "pass_at_1", seeds)
        verdicts.append(row["verdict"] != "not distinguishable")
        of_these.append(row["p_of_these"] < 0.05)
    assert sum(verdicts) <= 10
    assert sum(of_these) >= 30, "these trainings do differ, but that says nothing of the methods"


def test_a_pair_is_tested_over_seeds_too(tmp_path):
    half = [2] * 40
    far = [scores(tmp_path / f"far{n}", *([4] * (38 + n)), *([2] * (2 - n))) for n in range(3)]
    near = [scores(tmp_path / f"near{n}", *([4] * 9 * n), *([2] * (40 - 9 * n))) for n in range(3)]
    plain = scores(tmp_path / "plain", *half)
    found = compared(
        tmp_path / "x",
        scores={"far": far, "near": near, "plain": plain},
        pairs=[["far", "plain"], ["near", "plain"], ["far", "near"], ["plain", "plain"]],
    )
    clear, unsure, both, single = found["tests"]
    assert clear["seeds"] == pytest.approx([38 / 80, 39 / 80, 40 / 80])
    assert clear["verdict"] == "a better" and 0 < clear["low"] < clear["high"] <= 1
    assert unsure["difference"] == pytest.approx(9 / 80)
    assert unsure["p_of_these"] < 0.001 < 0.05 < unsure["p"]
    assert unsure["verdict"] == "not distinguishable" and unsure["low"] < 0 < unsure["high"]
    assert both["seeds"] == pytest.approx([38 / 80, 30 / 80, 22 / 80])
    assert "seeds" not in single and "p_of_these" not in single
    assert unsure["needed"] == {"num_problems": None, "num_samples": None}, "only more seeds"
    assert "needed" not in clear


def test_pairs_of_unlike_many_seeds_are_refused():
    several = {"two": ["1", "2"], "three": ["1", "2", "3"]}
    with pytest.raises(ValidationError, match="have 2 and 3 seeds; give both as many"):
        compare.Config(scores=several, pairs=[["two", "three"]])


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
    each = [metrics.result(tables.read_table(path).to_pylist())["rerun"] for path in (one, two)]
    assert pooled["rerun"] == pytest.approx(math.hypot(*each) / 2)
    (test,) = found["tests"]
    assert test["difference"] == pytest.approx(16 / 32 - 1 / 16)


def test_tables_of_before_do_not_tell_what_was_unparsed(tmp_path):
    new, old = score("p0", 4) | {"num_unparsed": 2}, score("p0", 2)
    (pooled,) = compare.pooled([[new], [old]], "both")
    assert pooled["num_unparsed"] is None and pooled["num_truncated"] == 2
    assert compare.table({"both": [pooled]}, ("split", "metric"))[0]["unparsed"] is None


def test_what_is_not_distinguishable_says_what_would_tell(tmp_path):
    rng = np.random.default_rng(0)
    a, b = (scores(tmp_path / name, *rng.integers(0, 5, 40)) for name in "ab")
    (test,) = compared(tmp_path / "x", scores={"a": a, "b": b}, pairs=[["a", "b"]])["tests"]
    assert test["verdict"] == "not distinguishable"
    assert test["needed"]["num_problems"] > 40


def test_forgetting_is_lost_kept_gained_or_unknown(tmp_path):
    before = [2] * 200
    arms = {
        "before": scores(tmp_path / "before", *before),
        "lost": scores(tmp_path / "lost", *([1] * 50 + [2] * 150)),
        "kept": scores(tmp_path / "kept", *([1] * 3 + [3] * 3 + [2] * 194)),
        "gained": scores(tmp_path / "gained", *([4] * 50 + [2] * 150)),
        "unsure": scores(tmp_path / "unsure", *([0] * 50 + [4] * 48 + [2] * 102)),
    }
    pairs = [[name, "before"] for name in ("lost", "kept", "gained", "unsure")]
    found = compared(tmp_path / "x", scores=arms, forgetting=pairs)
    told = {row["after"]: row["verdict"] for row in found["forgetting"]}
    assert told == {
        "lost": "lost", "kept": "kept", "gained": "gained", "unsure": "not distinguishable"
    }  # fmt: skip
    assert found["forgetting"][0] | {"low": 0, "high": 0, "p": 0} == {
        "after": "lost", "before": "before", "split": "heldout", "metric": "pass_at_1",
        "difference": pytest.approx(-50 / 800), "low": 0, "high": 0, "p": 0, "verdict": "lost",
    }  # fmt: skip
    generous = compared(tmp_path / "y", scores=arms, forgetting=pairs, forgetting_margin=0.2)
    assert generous["forgetting"][3]["verdict"] == "kept" and not found["tests"]


def test_the_paper_stands_beside_what_was_measured(tmp_path):
    rows = [score(f"p{n}", 2) | {"split": "math500"} for n in range(4)]
    tables.write_part(tmp_path / "scores", tables.to_table("scores", rows))
    measured = {"mine": str(tmp_path / "scores")}
    name = "DeepSeek-R1-Distill-Qwen-1.5B"
    (row,) = compared(tmp_path / "x", scores=measured, beside={"mine": name})["published"]
    assert (row["name"], row["value"], row["published"]) == ("mine", 0.5, 0.839)
    assert compared(tmp_path / "y", scores=measured)["published"] == []
    with pytest.raises(ValidationError, match="beside: other is none of mine"):
        compare.Config(scores=measured, beside={"other": name})


def test_ratings_are_compared_by_what_was_solved(tmp_path):
    rows = [score(f"p{n}", n, "rating") | {"weight": 1000.0 + 300 * n} for n in range(4)]
    tables.write_part(tmp_path / "scores", tables.to_table("scores", rows))
    measured = {"a": str(tmp_path / "scores"), "b": str(tmp_path / "scores")}
    (row, _) = compared(tmp_path / "x", scores=measured, metric="rating")["results"]
    assert row["unit"] == "rating" and 1000 < row["value"] < 1900
    with pytest.raises(UserError, match="test pass_at_1"):
        compared(tmp_path / "y", scores=measured, metric="rating", pairs=[["a", "b"]])


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


def test_answers_that_a_training_wrote_were_not_paid_for(tmp_path):
    learned = finished(tmp_path / "grpo", flops=2e9)
    arm = compare.Arm(models=[learned], traces=[str(tmp_path / "grpo" / "rollouts")])
    (row,) = compare.budgets({"grpo": arm})
    assert (row["paid_tokens"], row["teacher_flops"]) == (0, 2e9)


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
    with pytest.raises(UserError, match="different problems"):
        chosen(tmp_path / "x", one=one, two=two)
    rows = [score(f"q{n}", 4) for n in range(3)]
    tables.write_part(tmp_path / "c" / "scores", tables.to_table("scores", rows))
    other = two[0], str(tmp_path / "c" / "scores")
    with pytest.raises(UserError, match="different problems"):
        chosen(tmp_path / "y", one=one, other=other)


def speeds(folder: Path, **found: tuple[float, float]) -> str:
    rows = [
        {
            "name": name,
            "tokens_per_second_1": {"median": alone},
            "tokens_per_second_load": {"median": load},
        }
        for name, (alone, load) in found.items()
    ]
    folder.mkdir()
    store.write_json(folder / "speeds.json", {"artifacts": rows})
    return str(folder)


def test_of_equally_good_trials_the_fastest_is_taken(tmp_path):
    one = {"model": model(tmp_path / "m1", "one"), "scores": scores(tmp_path / "a", 4, 0, 2)}
    two = {"model": model(tmp_path / "m2", "two"), "scores": scores(tmp_path / "b", 3, 0, 2)}
    by_speed = speeds(tmp_path / "s", one=(20.0, 500.0), two=(10.0, 900.0), other=(90.0, 1e4))
    for at, winner in (("load", "two"), ("batch 1", "one")):
        out = StageFolder(tmp_path / winner, "choose")
        out.path.mkdir()
        trials = {"one": one, "two": two}
        config = choose.Config(trials=trials, by_speed=by_speed, at=at)
        summary = choose.run(config, out)
        assert summary["chosen"] == winner
        assert (out.path / "model" / "config.json").read_text() == winner
        assert len(summary["trials"]) == 2 and summary["trials"][0]["value"] == 0.5
    assert "20 tokens/s, chosen" in (out.path / "log.txt").read_text()
    config = choose.Config(trials={"one": one, "slow": two}, by_speed=by_speed)
    with pytest.raises(UserError, match=r"measures one, two, other, but no slow; call engines"):
        choose.run(config, out)


def test_nobody_is_chosen_by_what_is_better_the_lower_it_is():
    with pytest.raises(ValidationError, match="nll is better the lower it is; choose by pass_at_1"):
        choose.Config(trials={"one": {"model": "m", "scores": "s"}}, metric="nll")


def test_a_reward_on_one_problem_has_no_interval(tmp_path):
    rows = [score("p0", 4, "my_reward") | {"value": 7.5}]
    tables.write_part(tmp_path / "scores", tables.to_table("scores", rows))
    trial = {"model": model(tmp_path / "m", "one"), "scores": str(tmp_path / "scores")}
    out = StageFolder(tmp_path / "x", "choose")
    out.path.mkdir()
    choose.run(choose.Config(trials={"one": trial}, metric="my_reward"), out)
    assert "7.50, chosen" in (out.path / "log.txt").read_text()


def test_a_budget_of_a_stage_that_tells_none_is_a_mistake(tmp_path):
    one, silent = scores(tmp_path / "a", 4, 0), finished(tmp_path / "silent")
    with pytest.raises(UserError, match="from no stage that tells its FLOPs"):
        compared(tmp_path / "x", scores={"one": one}, budgets={"silent": {"models": [silent]}})
