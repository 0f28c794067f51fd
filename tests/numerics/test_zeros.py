"""What is pruned stays pruned in training, through kills too; nobody fills it unawares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from limbeck import models
from limbeck.compress import anatomy
from limbeck.train import zeros
from limbeck.train.batch import collate
from limbeck.train.config import LoraConfig
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy
from limbeck.train.step import StepResult, make_optimizer, train_step
from tests.numerics.test_packing import make_examples, make_model
from tests.stages.test_sft import config, killed, train
from tests.stages.test_sft import world as world


@pytest.fixture
def pruned(world: Path, tmp_path: Path) -> Path:
    """A folder with a `model` of whose matrices half is zero, and the rows of `world`."""
    model = models.load_model(world / "model")
    prune(model)
    models.save_model(model, models.load_tokenizer(world / "model"), tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text((world / "rows.jsonl").read_text())
    return tmp_path


def prune(model: PreTrainedModel) -> None:
    for weight in matrices(model):
        weight[:, ::2] = 0


def matrices(model: PreTrainedModel) -> list[Tensor]:
    found = [anatomy.matrices(block).values() for block in anatomy.blocks(model)]
    return [anatomy.weight_of(matrix) for of_block in found for matrix in of_block]


def lines(out: Path) -> str:
    return (out / "log.txt").read_text()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_zeros_stay_and_the_others_learn(pruned: Path, optimizer: Any) -> None:
    if optimizer == "adamw_8bit":
        pytest.importorskip("torchao")
    settings = config(pruned, keep_zeros=True, weight_decay=0.1, optimizer=optimizer)
    train(settings, pruned / "sft")
    before = matrices(models.load_model(pruned / "model"))
    after = matrices(models.load_model(pruned / "sft" / "model"))
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old == 0, new == 0)
        assert not torch.equal(old, new)
    assert "zeros" not in lines(pruned / "sft")


def test_a_kill_changes_no_bit(pruned: Path) -> None:
    settings = config(pruned, keep_zeros=True)
    train(settings, pruned / "whole")
    killed(settings, pruned / "sft", "sft.step-5")
    train(settings, pruned / "sft")
    whole, resumed = (
        load_file(pruned / name / "model" / "model.safetensors") for name in ("whole", "sft")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_who_lets_them_fill_is_told(pruned: Path) -> None:
    train(config(pruned), pruned / "sft")
    assert "50% of the student's matrices are zeros, to be filled; keep_zeros: true" in lines(
        pruned / "sft"
    )
    after = matrices(models.load_model(pruned / "sft" / "model"))
    assert all((weight == 0).float().mean() < 0.01 for weight in after)


def test_nobody_is_told_of_a_dense_student(world: Path, tmp_path: Path) -> None:
    train(config(world, num_epochs=1), tmp_path / "sft")
    assert "zeros" not in lines(tmp_path / "sft")


def test_zeros_are_no_part_of_the_gradients_norm() -> None:
    """The step is that of a model in which only the other weights learn."""

    def step(kept: bool) -> tuple[StepResult, list[Tensor]]:
        model = make_model("llama")
        prune(model)
        wrapped = TokenModel(model)
        optimizer = make_optimizer(wrapped, 0.01)
        if kept:
            zeros.keep(model, optimizer)
        batches = [collate([example], "cpu") for example in make_examples()]
        result = train_step(
            wrapped, batches, optimizer, lr=0.01, clip=None, token_loss=cross_entropy
        )
        return result, [p.grad for p in model.parameters() if p.grad is not None]

    kept, gradients = step(kept=True)
    free, _ = step(kept=False)
    assert kept.loss == free.loss
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
    assert kept.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert kept.grad_norm < 0.99 * free.grad_norm


def test_adapters_would_fill_them(pruned: Path) -> None:
    with pytest.raises(ValidationError, match="drop lora, or keep_zeros"):
        config(pruned, keep_zeros=True, lora=LoraConfig())
