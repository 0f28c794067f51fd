"""SIGKILL between and within the rounds of a GRPO training: it ends as if there had been none."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from limbeck import store
from tests.faults.killed import run

pytest.importorskip("torch")

SIZES = {"architecture": "llama", "num_hidden_layers": 1, "initializer_range": 0.1}
LEARNS = {
    "stage": "grpo",
    "problems": "./asked/problems",
    "model": "./student/model",
    "rewards": [
        {"name": "repetition", "words": 1},
        {"name": "overlong", "max_tokens": 8, "margin_tokens": 8},
    ],
    "num_samples": 4,
    "questions_per_step": 2,
    "steps_per_round": 3,
    "num_steps": 9,
    "max_tokens": 8,
    "lr": 0.01,
    "checkpoint_steps": 2,
}
STAGES: dict[str, dict[str, Any]] = {
    "student": {"stage": "create", "vocab_size": 280, "hidden_size": 16, **SIZES},
    "plain": {**LEARNS, "kl": 0.1, "reference_steps": 5, "refill": 2},
    "nucleus": {**LEARNS, "kl": 0.0, "top_p": 0.9, "correction": 2.0, "objective": "dapo"},
}
KILLS = [  # in the order in which a run comes by
    "plain.part-00000",  # before the rollouts are there,
    "plain.part-00000.renamed",  # behind them,
    "plain.part-00000.renamed",  # behind the verdicts,
    "plain.part-00000.renamed",  # behind the rewards
    "plain.reference-0",
    "plain.step-2",
    "plain.checkpoint-4.manifest",  # goes on in the first round, from step 2
    "plain.reference-5",
    "plain.part-00002.renamed",
    "plain.step-8",
    "plain.model.aside",
    "nucleus.part-00000#4",  # the trainer's own log-probabilities
    "nucleus.step-1",
    "nucleus.step-5",
    "nucleus.checkpoint-6.aside",
]


def recipe(folder: Path) -> Path:
    texts = [f"{a} and {b} make {a + b}." for a in range(8) for b in range(6)]
    said = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": t}] for t in texts]
    write(folder / "texts.jsonl", [{"messages": messages} for messages in said])
    asked = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(7)]
    write(folder / "sums.jsonl", asked)
    source = {"name": "file", "path": str(folder / "sums.jsonl")}
    stages = {"asked": {"stage": "collect", "source": source, "num": 7}, **STAGES}
    stages["student"] = {**STAGES["student"], "texts": str(folder / "texts.jsonl")}
    machine = {"threads": 1, "device": "cpu"}
    path = folder / "rounds.yaml"
    path.write_text(json.dumps({"name": "rounds", "machine": machine, "stages": stages}))
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def steps(folder: Path, stage: str) -> dict[int, Any]:
    """The last word on each step."""
    return {row["step"]: row for row in store.read_jsonl(folder / stage / "metrics.jsonl")}


def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    path, whole, killed = recipe(tmp_path), tmp_path / "whole", tmp_path / "killed"
    assert run(path, whole) == 0
    for point in KILLS:
        assert run(path, killed, point) == -signal.SIGKILL, point
    assert run(path, killed) == 0
    for stage in ("plain", "nucleus"):
        for table in ("model", "rollouts", "verdicts", "rewards"):
            found, wanted = (store.hash_tree(f / stage / table) for f in (killed, whole))
            assert found == wanted, (stage, table)
        assert steps(killed, stage) == steps(whole, stage), stage
        assert all(row["grad_norm"] > 0 for row in steps(whole, stage).values())
        assert len(steps(whole, stage)) == 9
        manifests = [store.read_sealed(folder / stage / "stage.json") for folder in (killed, whole)]
        assert manifests[0]["summary"] == manifests[1]["summary"], stage
        assert not (killed / stage / "reference").exists()
    assert any(row["refilled"] for row in steps(whole, "plain").values())
