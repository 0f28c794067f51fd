"""On-policy distillation against more fine-tuning, whole, at its size for tests."""

from pathlib import Path

import pytest

import limbeck

pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")

RECIPE = Path(__file__).parents[2] / "recipes" / "on_policy.yaml"
ARMS = ("more_sft", "live", "on_policy")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("on_policy") / "run"
    return limbeck.run(RECIPE, run=folder, size="ci")


def test_every_arm_spends_one_budget_from_one_start(finished):
    said = {row["stage"]: row for row in finished.stages()}
    for arm in ARMS:
        summary = said[arm]["summary"]
        # Never short, and over by less than the last step, which may be half as long again as most.
        last = 1.5 * summary["flops"] / summary["num_steps"]
        assert 4e9 <= summary["flops"] < 4e9 + last, arm
    steps = [said[arm]["summary"]["num_steps"] for arm in ARMS]
    assert steps == sorted(steps, reverse=True), "a teacher and an author cost what they compute"


def test_the_student_wrote_what_it_learned_from(finished):
    said = {row["stage"]: row["summary"] for row in finished.stages()}
    written = said["on_policy"]["written"]
    assert written["texts"] == 28 * said["on_policy"]["num_steps"]
    assert not said["live"]["written"]
    pairs = {(test["a"], test["b"]) for test in finished.summary()["tests"]}
    assert {("on_policy", "more_sft"), ("live", "more_sft")} <= pairs
