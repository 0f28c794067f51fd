"""Ways of pruning a matrix, against what their papers say, in double precision."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.compress import anatomy, thresholds
from limbeck.compress.hessian import damped, inverse_factor
from limbeck.compress.prune import magnitude, sparsegpt, wanda
from limbeck.compress.walk import Stats, walk
from limbeck.newborn import create_model

PATTERNS = [None, (2, 4), (4, 8), (1, 4)]


def layer(out: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Stats]:
    """(weight, inputs, what a walk would tell of them): inputs that hang together, as real ones."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=draw)
    mixing = torch.randn(width, width, generator=draw) * torch.rand(width, generator=draw)
    inputs = torch.randn(300, width, generator=draw) @ mixing
    gram = inputs.T @ inputs
    return weight, inputs, Stats(300, inputs.square().sum(0), inputs.abs().sum(0), gram)


def share(weight: Tensor) -> float:
    return float((weight == 0).float().mean())


def lowest(scores: list[float], num: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: scores[i])[:num])


def naive_wanda(
    weight: Tensor, inputs: Tensor, sparsity: float, pattern: tuple[int, int] | None
) -> Tensor:
    """Section 3 of the paper: S_ij = |W_ij| · ‖X_j‖₂, compared within each output's row."""
    pruned = weight.double()
    norms = [math.sqrt(math.fsum(v * v for v in column)) for column in inputs.double().T.tolist()]
    for row in pruned:
        width = pattern[1] if pattern else len(row)
        num = pattern[1] - pattern[0] if pattern else round(sparsity * width)
        for start in range(0, len(row), width):
            group = row[start : start + width].tolist()
            scores = [abs(w) * norms[start + i] for i, w in enumerate(group)]
            for index in lowest(scores, num):
                row[start + index] = 0
    return pruned


def naive_sparsegpt(
    weight: Tensor,
    inputs: Tensor,
    sparsity: float,
    pattern: tuple[int, int] | None,
    block_size: int,
    damping: float = 0.01,
) -> Tensor:
    """Algorithm 1 with its sections 3.2 and 3.3 taken literally: the optimal brain surgeon.

    The inverse of the Hessian of all columns that are left is eliminated column by column, every
    correction is made at once.
    """
    pruned = weight.double().clone()
    gram = inputs.double().T @ inputs.double()
    hessian = gram + damping * gram.diagonal().mean() * torch.eye(len(gram)).double()
    inverses = []  # of what is left from each column on
    left = torch.linalg.inv(hessian)
    for _ in range(len(gram)):
        inverses.append(left)
        left = (left - torch.outer(left[:, 0], left[0]) / left[0, 0])[1:, 1:]
    width = pattern[1] if pattern else block_size
    for column in range(len(gram)):
        if column % width == 0:
            chosen = range(column, min(column + width, len(gram)))
            scores = torch.stack([pruned[:, c] ** 2 / inverses[c][0, 0] for c in chosen], dim=1)
            goes = torch.zeros_like(scores, dtype=torch.bool)
            if pattern:
                for row, line in enumerate(scores.tolist()):
                    goes[row, list(lowest(line, pattern[1] - pattern[0]))] = True
            else:
                flat = scores.flatten()
                goes.view(-1)[list(lowest(flat.tolist(), round(sparsity * len(flat))))] = True
        inverse = inverses[column]
        removed = torch.where(goes[:, column % width], pruned[:, column], 0.0)
        pruned[:, column:] -= torch.outer(removed / inverse[0, 0], inverse[0])
        pruned[goes[:, column % width], column] = 0
    return pruned


@pytest.mark.parametrize("pattern", PATTERNS)
def test_wanda_is_the_papers(pattern: tuple[int, int] | None) -> None:
    weight, inputs, stats = layer(24, 40)
    expected = naive_wanda(weight, inputs, 0.35, pattern)
    pruned = wanda.prune_weight(weight, stats, 0.35, pattern)
    assert torch.equal(pruned.double(), expected)
    rows = (pruned == 0).float().mean(1)
    assert torch.allclose(rows, torch.tensor(1 - pattern[0] / pattern[1] if pattern else 0.35))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_sparsegpt_is_the_optimal_brain_surgeon(
    pattern: tuple[int, int] | None, sparsity: float
) -> None:
    weight, inputs, stats = layer(16, 48, seed=1)
    expected = naive_sparsegpt(weight, inputs, sparsity, pattern, block_size=16)
    pruned = sparsegpt.prune_weight(weight, stats, sparsity, pattern, block_size=16)
    assert torch.equal(pruned == 0, expected == 0)
    assert torch.allclose(pruned.double(), expected, atol=1e-4)


def test_when_columns_are_corrected_for_changes_nothing() -> None:
    weight, _, stats = layer(16, 48, seed=2)
    now = sparsegpt.prune_weight(weight, stats, 0.5, (2, 4), block_size=4)
    late = sparsegpt.prune_weight(weight, stats, 0.5, (2, 4), block_size=48)
    odd = sparsegpt.prune_weight(weight, stats, 0.5, (2, 4), block_size=7)
    assert torch.allclose(now, late, atol=1e-5)
    assert torch.equal(now, odd), "a block never cuts a pattern"


def test_the_factor_is_of_the_inverse() -> None:
    _, _, stats = layer(1, 30)
    assert stats.gram is not None
    factor = inverse_factor(stats, 0.05)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.T @ factor @ damped(stats.gram, 0.05), torch.eye(30), atol=1e-4)
    assert inverse_factor(stats, 0.05) is factor, "q, k and v share it"


@pytest.mark.parametrize("method", [magnitude, wanda, sparsegpt])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_zeros_are_as_many_as_asked_in_the_weights_own_type(
    method: Any, pattern: tuple[int, int] | None
) -> None:
    weight, _, stats = layer(32, 64)
    before = weight.clone()
    pruned = method.prune_weight(weight.bfloat16(), stats, 0.25, pattern)
    assert pruned.dtype == torch.bfloat16 and pruned.shape == weight.shape
    assert share(pruned) == pytest.approx(1 - pattern[0] / pattern[1] if pattern else 0.25)
    if pattern:
        stay, width = pattern
        assert int((pruned.unflatten(1, (-1, width)) != 0).sum(-1).max()) == stay
    assert torch.equal(weight, before)


@pytest.mark.parametrize("method", [wanda, sparsegpt])
def test_an_input_that_never_comes_is_pruned_first(method: Any) -> None:
    weight, inputs, _ = layer(32, 64)
    inputs[:, 5] = 0
    gram = inputs.T @ inputs
    stats = Stats(300, inputs.square().sum(0), inputs.abs().sum(0), gram)
    weight[:, 5] = 100.0
    pruned = method.prune_weight(weight, stats, 0.1, None)
    assert not pruned[:, 5].any() and torch.isfinite(pruned).all()
    assert not method.importance(weight, stats)[:, 5].any()


def test_sparsegpt_leaves_less_error_than_wanda_and_wanda_than_magnitude() -> None:
    weight, inputs, stats = layer(64, 96, seed=3)

    def error(method: Any) -> float:
        change = method.prune_weight(weight, stats, 0.5, None) - weight
        return float((inputs @ change.T).square().sum())

    assert error(sparsegpt) < 0.9 * error(wanda)
    assert error(wanda) < 0.9 * error(magnitude)


def sequences(num: int, seed: int) -> list[list[int]]:
    """Texts of a language in which two tokens say which one of 30 follows, or which other."""
    rules = torch.randint(2, 32, (32, 32, 2), generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    texts = torch.randint(2, 32, (num, 48), generator=draw)
    choices = (torch.rand(num, 48, generator=draw) > 0.7).long()
    for place in range(2, 48):
        texts[:, place] = rules[texts[:, place - 2] % 4, texts[:, place - 1], choices[:, place]]
    return texts.tolist()


@pytest.fixture(scope="module")
def trained() -> PreTrainedModel:
    """A small model that has learned most of that language."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = create_model("llama", 32, 0, eos_token_id=1, pad_token_id=0, **sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)
    texts = torch.tensor(sequences(3200, seed=1))
    for step in range(200):
        ids = texts[torch.arange(step * 16, step * 16 + 16)]
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / 200)
        optimizer.step()
    return model.eval()


def loss(model: PreTrainedModel, texts: list[list[int]]) -> float:
    ids = torch.tensor(texts)
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def pruned_by(method: Any, model: PreTrainedModel, pattern: tuple[int, int] | None) -> float:
    """The held-out loss of a copy that was pruned to 50 %."""
    small = copy.deepcopy(model)
    texts = sequences(64, seed=2)
    for block in walk(small, texts, device="cpu", gram=method.NEEDS_GRAM):
        for name, matrix in block.matrices.items():
            weight = method.prune_weight(anatomy.weight_of(matrix), block.stats[name], 0.5, pattern)
            anatomy.set_weight(matrix, weight)
    return loss(small, sequences(64, seed=3))


def with_outliers(model: PreTrainedModel) -> PreTrainedModel:
    """The same function with inputs of very different size, as large models have them.

    A norm's weight, or a neuron, is multiplied by what the columns that read it are divided by.
    """
    model, draw = copy.deepcopy(model), torch.Generator().manual_seed(6)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = {
            layer.input_layernorm: [attention.q_proj, attention.k_proj, attention.v_proj],
            layer.post_attention_layernorm: [mlp.gate_proj, mlp.up_proj],
            mlp.up_proj: [mlp.down_proj],
        }
        for writer, read_by in readers.items():
            scale = torch.randn(writer.weight.shape[0], generator=draw).exp()
            writer.weight.data *= scale if writer.weight.ndim == 1 else scale[:, None]
            for matrix in read_by:
                matrix.weight.data /= scale
    return model


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_held_out_texts_are_foretold_better_than_by_magnitude(
    trained: PreTrainedModel, pattern: tuple[int, int] | None
) -> None:
    model, heldout = with_outliers(trained), sequences(64, seed=3)
    dense = loss(model, heldout)
    assert dense == pytest.approx(loss(trained, heldout), abs=1e-3)
    assert dense < 0.5 * math.log(30), "it has learned something that can be lost"
    by_magnitude = pruned_by(magnitude, model, pattern)
    assert dense < pruned_by(wanda, model, pattern) < by_magnitude
    assert dense < pruned_by(sparsegpt, model, pattern) < by_magnitude
    by_magnitude_alike = pruned_by(magnitude, trained, pattern)
    assert pruned_by(sparsegpt, trained, pattern) < by_magnitude_alike, "without outliers, too"


def test_a_global_threshold_is_torchs() -> None:
    """Magnitude under a global budget takes what torch.nn.utils.prune.global_unstructured takes."""
    draw = torch.Generator().manual_seed(4)
    shapes = [(40, 24), (16, 40), (64, 8), (8, 8)]
    weights = [scale * torch.randn(s, generator=draw) for scale, s in enumerate(shapes, 1)]
    shares = thresholds.sparsities([thresholds.sketch(w.abs()) for w in weights], 0.35)
    ours = [magnitude.prune_weight(w, None, s, None) for w, s in zip(weights, shares, strict=True)]
    layers = [torch.nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights]
    for linear, weight in zip(layers, weights, strict=True):
        linear.weight.data.copy_(weight)
    torch.nn.utils.prune.global_unstructured(
        [(linear, "weight") for linear in layers],
        pruning_method=torch.nn.utils.prune.L1Unstructured,
        amount=0.35,
    )
    for mine, linear in zip(ours, layers, strict=True):
        assert torch.equal(mine, linear.weight)
    assert len({*shares}) == 4, "each matrix loses another share"


def test_no_matrix_loses_nearly_all() -> None:
    small, large = torch.rand(100) / 100, 1 + torch.rand(100)
    shares = thresholds.sparsities([thresholds.sketch(small), thresholds.sketch(large)], 0.6)
    assert shares == [thresholds.MOST, pytest.approx(1.2 - thresholds.MOST)]


def test_a_sketch_of_a_large_matrix_finds_the_same_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = torch.Generator().manual_seed(5)
    scores = [scale * torch.rand(n, generator=draw) for scale, n in ((1, 5000), (2, 999), (3, 20))]
    exact = thresholds.sparsities([thresholds.sketch(s) for s in scores], 0.5)
    monkeypatch.setattr(thresholds, "EXACT", 500)
    rough = thresholds.sparsities([thresholds.sketch(s) for s in scores], 0.5)
    sizes = torch.tensor([len(s) for s in scores])
    assert (torch.tensor(exact) * sizes).sum() / sizes.sum() == pytest.approx(0.5, abs=1e-4)
    assert rough == pytest.approx(exact, abs=0.01)
