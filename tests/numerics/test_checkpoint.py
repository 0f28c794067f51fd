"""A run that was cut in two is the same run, bit for bit."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from limbeck.errors import UserError
from limbeck.train.batch import collate
from limbeck.train.checkpoint import load_best, load_newest, save_checkpoint
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy
from limbeck.train.step import make_optimizer, train_step
from tests.numerics.test_packing import make_examples, make_model


def make_run(**sizes: object) -> tuple[TokenModel, torch.optim.AdamW]:
    model = TokenModel(make_model(**sizes))
    return model, make_optimizer(model, lr=0.0, weight_decay=0.1)


def train(model: TokenModel, optimizer: torch.optim.AdamW, steps: range) -> list[float]:
    """Batches from all three random sources, as a careless loop would draw them."""
    losses = []
    for step in steps:
        seed = random.randrange(100) + int(np.random.randint(100)) + int(torch.randint(99, ()))
        batch = collate(make_examples(seed=seed))
        result = train_step(
            model, [batch], optimizer, lr=0.01 / (1 + step), clip=1.0, token_loss=cross_entropy
        )
        losses.append(result.loss)
    return losses


def seed_everything() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


@pytest.mark.parametrize("tied", [True, False])
def test_resumed_equals_uninterrupted(tmp_path: Path, tied: bool) -> None:
    seed_everything()
    model, optimizer = make_run(tie_word_embeddings=tied)
    expected = train(model, optimizer, range(6))

    seed_everything()
    first, first_optimizer = make_run(tie_word_embeddings=tied)
    before = train(first, first_optimizer, range(3))
    save_checkpoint(tmp_path, 3, first, first_optimizer, {"step": 3, "seen": [1, 2]})
    random.random(), np.random.random(), torch.rand(())
    second, second_optimizer = make_run(tie_word_embeddings=tied)
    for group in second_optimizer.param_groups:
        group.update(weight_decay=0.7, betas=(0.1, 0.2))  # what was saved wins
    assert load_newest(tmp_path, second, second_optimizer) == {"step": 3, "seen": [1, 2]}
    assert before + train(second, second_optimizer, range(3, 6)) == expected
    for (name, one), other in zip(model.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
        for key, value in optimizer.state[one].items():
            assert torch.equal(value, second_optimizer.state[other][key]), (name, key)


def test_the_newest_two_are_kept_and_nothing_is_pickled(tmp_path: Path) -> None:
    model, optimizer = make_run()
    train(model, optimizer, range(1))
    for step in (1, 2, 10, 1000000):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-1000000"]
    names = sorted(path.name for path in (tmp_path / "step-000010").iterdir())
    assert names == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def test_the_best_is_kept_and_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = make_run()
    weights = {}
    for step in range(1, 7):
        train(model, optimizer, range(1))
        weights[step] = [p.detach().clone() for p in model.parameters()]
        save_checkpoint(tmp_path, step, model, optimizer, {"step": step}, is_best=step in (1, 3))
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["3", "5", "6"]
    moments = {id(p): optimizer.state[p]["exp_avg"].clone() for p in model.parameters()}
    assert load_best(tmp_path, model) == {"step": 3}
    for parameter, expected in zip(model.parameters(), weights[3], strict=True):
        assert torch.equal(parameter, expected)
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[id(parameter)])
    (tmp_path / "step-000003" / "model.safetensors").write_bytes(b"")
    assert load_best(tmp_path, model) is None
    assert "step-000003: model.safetensors changed on disk" in caplog.text
    assert load_newest(tmp_path, model, optimizer) == {"step": 6}


def test_frozen_weights_are_left_out(tmp_path: Path) -> None:
    """Only what learns is saved, and with it the buffers that belong to the state."""
    model, optimizer = make_run()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    model.register_buffer("seen", torch.tensor([3]))
    model.register_buffer("derived", torch.tensor([4]), persistent=False)
    optimizer = make_optimizer(model, lr=0.0)
    train(model, optimizer, range(1))
    path = save_checkpoint(tmp_path, 1, model, optimizer, {})
    saved = load_file(path / "model.safetensors")
    assert set(saved) == {"seen", *(n for n, p in model.named_parameters() if "norm" in n)}
    model.get_buffer("seen").zero_()
    load_newest(tmp_path, model, optimizer)
    assert model.get_buffer("seen") == 3


def test_a_weight_without_a_gradient_has_no_moments_afterwards(tmp_path: Path) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    optimizer = make_optimizer(model, lr=0.1)
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 1, model, optimizer, {})
    kept = [set(optimizer.state.get(p, {})) for p in model.parameters()]
    assert load_newest(tmp_path, model, optimizer) == {}
    assert [set(optimizer.state.get(p, {})) for p in model.parameters()] == kept
    assert all(p.grad is None for p in model.parameters())


def test_broken_ones_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = make_run()
    train(model, optimizer, range(1))
    save_checkpoint(tmp_path, 1, model, optimizer, {"step": 1})
    expected = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, range(1))
    newest = save_checkpoint(tmp_path, 2, model, optimizer, {"step": 2})

    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load_newest(tmp_path, model, optimizer) == {"step": 1}
    assert "model.safetensors changed on disk" in caplog.text
    for one, other in zip(model.parameters(), expected, strict=True):
        assert torch.equal(one, other)

    (newest / "manifest.json").unlink()  # as after a crash before the rename was complete
    assert load_newest(tmp_path, model, optimizer) == {"step": 1}
    save_checkpoint(tmp_path, 2, model, optimizer, {"step": 2})  # the same place again
    assert load_newest(tmp_path, model, optimizer) == {"step": 2}


@pytest.mark.parametrize("damage", ["truncate", "remove", "no json", "empty manifest"])
def test_every_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    model, optimizer = make_run()
    train(model, optimizer, range(1))
    path = save_checkpoint(tmp_path, 1, model, optimizer, {})
    if damage == "truncate":
        (path / "optimizer.safetensors").write_bytes(b"")
    elif damage == "remove":
        (path / "state.json").unlink()
    elif damage == "no json":
        (path / "manifest.json").write_text("{")
    else:
        (path / "manifest.json").write_text(json.dumps({}))
    assert load_newest(tmp_path, model, optimizer) is None


def test_nothing_to_load(tmp_path: Path) -> None:
    model, optimizer = make_run()
    assert load_newest(tmp_path / "absent", model, optimizer) is None
    (tmp_path / ".step-000003.writing").mkdir()
    assert load_newest(tmp_path, model, optimizer) is None


def test_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer = make_run()
    train(model, optimizer, range(1))
    save_checkpoint(tmp_path, 1, model, optimizer, {})
    other, other_optimizer = make_run(intermediate_size=56)
    with pytest.raises(UserError, match="another model's"):
        load_newest(tmp_path, other, other_optimizer)
