"""SIGKILL in the middle of each kind of training: it ends as if there had been none.

Adapters, live and cached teachers and texts of the student's own included.
"""

from __future__ import annotations

import importlib
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
    "model": "./student/model",
    "num_epochs": 1,
    "batch_size": 8,
    "lr": 0.01,
    "checkpoint_steps": 2,
}
LIVE = {**LEARNS, "stage": "distill", "teacher": "./teacher/model"}
STAGES: dict[str, dict[str, Any]] = {
    "student": {"stage": "create", "vocab_size": 280, "hidden_size": 16, **SIZES},
    "teacher": {"stage": "create", "tokenizer": "./student/model", "hidden_size": 32, **SIZES},
    "sft": LEARNS,
    "lora": {**LEARNS, "stage": "sft", "lora": {"rank": 2, "alpha": 4, "dropout": 0.1}},
    "score": {"teacher": "./teacher/model", "num_top": 8, "temperatures": [2.0]},
    "live": LIVE,
    "cached": {**LEARNS, "stage": "distill", "distributions": "./score/distributions"},
    "own": {**LIVE, "on_policy": {"max_tokens": 8, "student_share": 0.5}},
    "rewarded": {**LIVE, "on_policy": {"max_tokens": 8, "reward": True}},
}
KILLS = [  # in the order in which a run comes by
    "sft.step-3",
    "sft.checkpoint-4.optimizer",
    "lora.step-3",
    "score.part-00000",
    "score.part-00000.renamed",
    "live.step-3",
    "live.checkpoint-6.manifest",
    "live.model.aside",
    "cached.step-3",
    "own.step-1",
    "own.checkpoint-4.aside",
    "own.step-5",
    "rewarded.step-3",
]


def recipe(folder: Path) -> Path:
    texts = [f"{a} and {b} make {a + b}." for a in range(8) for b in range(6)]
    rows = [
        [{"role": "user", "content": f"{text[:7]}?"}, {"role": "assistant", "content": text}]
        for text in texts
    ]
    data = folder / "rows.jsonl"
    lines = [json.dumps({"id": str(i), "messages": row}) + "\n" for i, row in enumerate(rows)]
    data.write_text("".join(lines))
    stages = {
        name: {**settings, ("texts" if name == "student" else "data"): str(data)}
        for name, settings in STAGES.items()
    }
    del stages["teacher"]["data"]
    machine = {"threads": 1, "device": "cpu"}
    path = folder / "kinds.yaml"
    path.write_text(json.dumps({"name": "kinds", "machine": machine, "stages": stages}))
    return path


def outputs(folder: Path, stage: str) -> dict[str, str]:
    """What a stage wrote for others, by file."""
    verb = STAGES[stage].get("stage", stage)
    names = importlib.import_module(f"limbeck.stages.{verb}").WRITES
    return {
        f"{name}/{file}": digest
        for name in names
        if (folder / stage / name).exists()
        for file, digest in store.hash_tree(folder / stage / name).items()
    }


def steps(folder: Path, stage: str) -> dict[int, Any]:
    """The last word on each step."""
    return {row["step"]: row for row in store.read_jsonl(folder / stage / "metrics.jsonl")}


def test_every_kind_of_training_ends_as_if_it_had_not_been_killed(tmp_path):
    path, whole, killed = recipe(tmp_path), tmp_path / "whole", tmp_path / "killed"
    assert run(path, whole) == 0
    for point in KILLS:
        assert run(path, killed, point) == -signal.SIGKILL, point
    assert run(path, killed) == 0
    for stage in STAGES:
        assert outputs(killed, stage) == outputs(whole, stage), stage
        assert steps(killed, stage) == steps(whole, stage), stage
        manifests = [store.read_sealed(folder / stage / "stage.json") for folder in (killed, whole)]
        assert manifests[0]["summary"] == manifests[1]["summary"], stage
    assert len(steps(whole, "own")) == 6
