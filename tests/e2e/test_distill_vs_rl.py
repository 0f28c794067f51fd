"""Distillation against reinforcement learning at one budget, whole, at its size for tests."""

from collections import defaultdict
from pathlib import Path

import pytest

import limbeck
from limbeck import tables

pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")

RECIPE = Path(__file__).parents[2] / "recipes" / "distill_vs_rl.yaml"
ARMS = ("distilled", "distilled_free", "rl", "distilled_then_rl")
BUDGET = 2e9  # of sizes.ci


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill_vs_rl") / "run"
    return limbeck.run(RECIPE, run=folder, size="ci")


@pytest.fixture(scope="module")
def said(finished):
    return {row["stage"]: row["summary"] for row in finished.stages()}


def trainings(arm, seed, trial):
    """The stages that made a trial, one after another."""
    first = [f"half_{seed}"] if arm == "distilled_then_rl" else []
    return [*first, f"{arm}_{seed}{trial}"]


def step(summary):
    """What the last step may cost: answers of one length more or less."""
    return 1.5 * (summary["flops"] / summary["num_steps"])


def test_every_trial_spends_one_budget_to_within_a_step(said):
    for arm in ARMS:
        for seed in (1, 2, 3):
            for trial in "ab":
                stages = [said[name] for name in trainings(arm, seed, trial)]
                spent = sum(row["flops"] + row.get("charged_flops", 0) for row in stages)
                assert BUDGET <= spent < BUDGET + sum(map(step, stages)), (arm, seed, trial)


def test_the_teachers_sampling_is_charged_where_it_should_be(said, finished):
    for seed in (1, 2, 3):
        sampled = said[f"sample_{seed}"]["flops"]
        assert said[f"distilled_{seed}a"]["charged_flops"] == sampled > 0
        assert said[f"half_{seed}"]["charged_flops"] == sampled
        assert "charged_flops" not in said[f"distilled_free_{seed}a"]
        assert (
            said[f"distilled_free_{seed}a"]["loss_tokens"]
            > (said[f"distilled_{seed}a"]["loss_tokens"])
        )
    budgets = {row["name"]: row for row in finished.summary()["budgets"]}
    assert list(budgets) == [*ARMS]
    assert budgets["rl"]["flops"] == budgets["rl"]["flops_with_teacher"]
    written = sum(said[f"sample_{seed}"]["flops"] for seed in (1, 2, 3))
    for arm in ("distilled", "distilled_free", "distilled_then_rl"):
        assert budgets[arm]["teacher_flops"] == written
        assert budgets[arm]["flops_with_teacher"] == budgets[arm]["flops"] + written
    assert {row["paid_tokens"] for row in budgets.values()} == {0}


def test_every_arm_has_as_many_trials_and_all_are_listed(finished):
    trials = finished.summary()["trials"]
    choices = [f"{arm}_{seed}" for arm in ARMS for seed in (1, 2, 3)]
    assert [row["stage"] for row in trials[::2]] == choices
    by_choice = defaultdict(list)
    for row in trials:
        by_choice[row["stage"]].append(row)
    for rows in by_choice.values():
        assert len(rows) == 2 and len({row["settings"]["lr"] for row in rows}) == 2
        (chosen,) = [row for row in rows if row["chosen"]]
        assert chosen["value"] == max(row["value"] for row in rows)
    report = (finished.path / "report.html").read_text()
    assert "What was tried" in report and "distilled_then_rl_3b" in report


def test_seeds_are_pooled_and_told(finished):
    results = {(row["name"], row["metric"]): row for row in finished.results()}
    for arm in ARMS:
        pooled = results[arm, "pass_at_1"]
        assert len(pooled["seeds"]) == 3 and pooled["num_samples"] == 12
        assert pooled["value"] == pytest.approx(sum(pooled["seeds"]) / 3)
    assert "seeds" not in results["start", "pass_at_1"]
    pairs = {(test["a"], test["b"]) for test in finished.summary()["tests"]}
    assert {("distilled", "rl"), ("distilled_free", "rl"), ("distilled_then_rl", "rl")} <= pairs


def test_nobody_trains_on_what_chooses_and_nothing_is_chosen_by_what_examines(finished):
    places = ("lessons/problems", "collect/problems", "split/problems", "split/heldout")
    ids = [{p.id for p in tables.read_problems(finished.path / place)} for place in places]
    assert all(ids)
    *trained, chooses, examines = ids
    assert not chooses & examines
    for problems in trained:
        assert not problems & (chooses | examines)
