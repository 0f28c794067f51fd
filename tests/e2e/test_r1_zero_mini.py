"""R1-Zero in miniature, at its size for tests: rewards alone, the paper's prompt, clean splits."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck import chat, models, recipe, store, tables
from limbeck.problems import collision_key
from limbeck.runs import Run

pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")

RECIPE = Path(__file__).parents[2] / "recipes" / "r1_zero_mini.yaml"
COMMAND = [sys.executable, "-m", "limbeck", "run", str(RECIPE), "--size", "ci", "--quiet"]
CURVES = {"reward", "correct", "mean_length", "entropy", "direct", "self_checks", "grad_norm"}


def run(folder, kill_at=None):
    # One thread: bits depend on how many, and two runs are compared here.
    environment = {**os.environ, "LIMBECK_KILL_AT": kill_at or "", "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "machine.threads=1", "--run", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    expected = -signal.SIGKILL if kill_at else 0
    assert done.returncode == expected, (kill_at, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r1_zero_mini") / "run"
    printed = run(folder)
    return Run(folder), printed


def steps(folder):
    """What each step said; of one that was made again, the last word."""
    return {row["step"]: row for row in store.read_jsonl(folder / "zero/metrics.jsonl")}


def test_nothing_but_rules_stands_between_base_and_zero():
    stages = recipe.read_yaml(RECIPE.read_text(), "recipe")[0]["stages"]
    assert stages["zero"]["model"] == "./base/model"
    assert stages["zero"]["rewards"] == ["correct", "format"]
    assert [name for name, stage in stages.items() if stage.get("stage") == "sft"] == ["base"]
    corpus = stages["corpus"]
    assert "keep" not in corpus  # a base reads right and wrong


def test_results_tell_what_was_to_gain_and_what_was_gained(zero):
    finished, printed = zero
    found = {(row["name"], row["metric"]): row for row in finished.summary()["results"]}
    metrics = ("pass_at_1", "pass_at_16", "greedy", "format")
    assert found.keys() >= {(name, metric) for name in ("base", "zero") for metric in metrics}
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in found.values())
    assert {(name, "pass_at_1") for name in ("base_cooler", "zero_cooler")} <= found.keys()
    assert ("zero", "base") in {(test["a"], test["b"]) for test in finished.summary()["tests"]}
    assert str(finished.path / "report.html") in printed
    assert "pass@16" in (finished.path / "report.html").read_text(encoding="utf-8")


def test_the_curves_are_whole_and_finite(zero):
    finished, _ = zero
    told = steps(finished.path)
    assert sorted(told) == [1, 2, 3, 4]
    for row in told.values():
        assert row.keys() >= CURVES
        assert all(math.isfinite(row[name]) for name in CURVES)
        assert set(row["rewards"]) == {"correct", "format"}


def test_no_heldout_question_is_trained_on(zero):
    finished, _ = zero
    trained, held = (
        {collision_key(p) for table in places for p in tables.read_problems(finished.path / table)}
        for places in (("lessons/problems", "collect/problems"), ("collect/heldout",))
    )
    assert held
    assert not trained & held


def test_the_model_is_asked_as_in_the_paper_and_knows_how_to_end(zero):
    finished, _ = zero
    tokenizer = models.load_tokenizer(str(finished.path / "zero/model"))
    problem = tables.read_problems(finished.path / "collect/heldout")[0]
    prompt = chat.render_prompt(tokenizer, problem.messages)
    assert prompt == f"{chat.R1_ZERO_PREFACE} User: {problem.question}. Assistant:"
    assert len(chat.prompt_ids(tokenizer, problem.messages)) < 80
    written = finished.table("zero/rollouts").to_pylist()
    ended = [row["token_ids"] for row in written if row["finish"] == "stop"]
    assert ended
    assert all(ids[-1] == tokenizer.eos_token_id for ids in ended)


def test_a_killed_run_ends_as_one_that_was_not(zero, tmp_path):
    whole, _ = zero
    killed = tmp_path / "run"
    run(killed, kill_at="zero.step-3")  # within a round, and between two checkpoints
    run(killed)
    assert steps(killed) == steps(whole.path)
    for name in ("base", "zero"):
        for file in (whole.path / name / "model").iterdir():
            assert store.hash_file(killed / name / "model" / file.name) == store.hash_file(file)
