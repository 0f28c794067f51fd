"""Ways of quantizing a matrix, against what their papers say, in double precision."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.compress import anatomy
from limbeck.compress.quantize import awq, gptq
from limbeck.compress.quantize import round as nearest
from limbeck.compress.quantize.grid import Grid, uneven
from limbeck.compress.walk import Stats, walk
from limbeck.errors import UserError
from limbeck.newborn import create_model

GRIDS = [
    Grid("int8"),
    Grid("int8", 8, symmetric=False),
    Grid("int4", 16),
    Grid("int4", 16, symmetric=False),
    Grid("int4", 16, symmetric=False, dtype=torch.bfloat16),
    Grid("int4", dtype=torch.bfloat16),
    Grid("fp8"),
]


def layer(out: int, width: int, seed: int = 0) -> tuple[Tensor, Stats]:
    """(weight, what a walk would tell): inputs that hang together, some large, as real ones."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=draw)
    mixing = torch.randn(width, width, generator=draw)
    size = torch.rand(width, generator=draw).pow(3)
    return weight, stats_of(torch.randn(3 * width, width, generator=draw) @ mixing * size)


def stats_of(inputs: Tensor) -> Stats:
    squares, magnitudes = inputs.square().sum(0), inputs.abs().sum(0)
    return Stats(len(inputs), squares, magnitudes, inputs.T @ inputs)


def error(weight: Tensor, quantized: Tensor, stats: Stats) -> float:
    """|W X - Q X|²."""
    lost, gram = (weight - quantized).double(), stats.gram.double()
    return float((lost @ gram * lost).sum())


# -- the grid -----------------------------------------------------------------------------------


def hard_weight() -> Tensor:
    """A row each: of zeros, of one number, of tiny ones, one beside an outlier, one-sided."""
    draw = torch.Generator().manual_seed(5)
    some = torch.randn(48, generator=draw)
    outlier = torch.where(torch.arange(48) == 17, 1000.0, some)
    constant = torch.full((48,), -0.37)
    rows = [torch.zeros(48), constant, some * 1e-30, outlier, some.abs() + 3, some, -outlier]
    return torch.stack(rows)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_rounding_loses_is_bounded(grid: Grid) -> None:
    weight = hard_weight()
    found = nearest.quantize_weight(weight, None, grid)
    dense = found.dense()
    assert torch.equal(dense[0], weight[0])
    width = weight.shape[1] // found.scales.shape[1]
    scales = found.scales.float().repeat_interleave(width, dim=1)
    lost = (dense - weight).abs()
    if grid.weights == "fp8":  # three bits behind the point; below 2⁻⁶ steps of 2⁻⁹
        bound = (weight.abs() * 2**-4).maximum(scales * 2**-10)
    else:  # half a step; another half where zero points are whole, or the far end has one step less
        bound = scales.abs() * (0.5 if grid == Grid("int8") else 1.0)
    kept_in = 2**-8 if grid.dtype == torch.bfloat16 else 2**-22  # a scale that was rounded down
    assert bool((lost <= bound * (1 + 1e-5) + weight.abs() * kept_in).all())
    one_number = 2**-7 if grid.dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(dense[1], weight[1], rtol=one_number)
    assert found.codes.dtype == (torch.float8_e4m3fn if grid.weights == "fp8" else torch.int8)
    most = {"int4": 7, "int8": 127, "fp8": 448}[grid.weights]
    assert found.codes.float().abs().max() <= most + (grid != Grid("int8"))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_zero_stays_zero_and_minus_is_minus(grid: Grid) -> None:
    weight, _ = layer(9, 48)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    dense = nearest.quantize_weight(weight, None, grid).dense()
    assert bool((dense[weight == 0] == 0).all())
    if grid.symmetric:
        assert torch.equal(nearest.quantize_weight(-weight, None, grid).dense(), -dense)


def test_the_nearest_code_is_the_nearest() -> None:
    weight, _ = layer(5, 24)
    for grid in (Grid("int4", 8), Grid("int4", 8, symmetric=False)):
        found = nearest.quantize_weight(weight, None, grid)
        scales, zeros = found.scales, found.zeros if found.zeros is not None else 0
        everything = torch.arange(-8.0, 8.0)[None, None] - torch.as_tensor(zeros)[..., None]
        numbers = (everything * scales[..., None]).repeat_interleave(8, dim=1)
        best = (numbers - weight[..., None]).abs().amin(dim=-1)
        assert torch.allclose((found.dense() - weight).abs(), best, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    weight = torch.ones(3, 8)
    weight[1, 2] = value
    for symmetric in (True, False):
        with pytest.raises(UserError, match="not finite"):
            nearest.quantize_weight(weight, None, Grid("int8", symmetric=symmetric))


def test_groups_come_out_even() -> None:
    with pytest.raises(UserError, match="10 does not divide 24 inputs; take 2 or 3 or 4 or 6 or 8"):
        nearest.quantize_weight(torch.ones(2, 24), None, Grid("int4", 10))
    assert uneven(8, [24, 64]) is None
    assert uneven(5, [7, 11]) == ("5 does not divide 7 and 11 inputs", "take null")


# -- GPTQ ---------------------------------------------------------------------------------------


def naive_gptq(weight: Tensor, stats: Stats, grid: Grid, damping: float = 0.01) -> Tensor:
    """Sections 3.2 and 3.3 of the paper taken literally, in float64: the inverse of the Hessian of
    all columns that are left, one column rounded, all later ones corrected at once."""
    left = weight.double().clone()
    gram = stats.gram.double()
    hessian = gram + damping * gram.diagonal().mean() * torch.eye(len(gram)).double()
    inverse = torch.linalg.inv(hessian)
    quantized = torch.zeros_like(left)
    width = grid.group_size or left.shape[1]
    most = {"int4": 7, "int8": 127}[grid.weights]
    for column in range(left.shape[1]):
        if column % width == 0:
            group = left[:, column : column + width]
            if grid.symmetric and grid.weights == "int4":
                furthest = group.abs().argmax(dim=1, keepdim=True)
                scale, zero, low = group.gather(1, furthest)[:, 0] / -8, 0, -8
            elif grid.symmetric:
                scale, zero, low = group.abs().amax(dim=1) / most, 0, -most
            else:
                low = -most - 1
                bottom, top = group.amin(dim=1).clamp(max=0), group.amax(dim=1).clamp(min=0)
                scale = (top - bottom) / (2 * most + 1)
                zero = (low - bottom / scale).round().clamp(low, most)
        code = (left[:, column] / scale + zero).round().clamp(low, most)
        quantized[:, column] = (code - zero) * scale
        lost = (left[:, column] - quantized[:, column]) / inverse[0, 0]
        left[:, column:] -= torch.outer(lost, inverse[0])
        inverse = (inverse - torch.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    return quantized


@pytest.mark.parametrize(
    ("grid", "width"),
    [
        (Grid("int4"), 40),
        (Grid("int8"), 40),
        (Grid("int4", 8), 200),  # sixteen groups to a block
        (Grid("int4", 48), 192),  # two, which do not fill it
        (Grid("int4", 160), 320),  # a group of two blocks
        (Grid("int4", 16, symmetric=False), 144),
    ],
    ids=str,
)
def test_gptq_is_what_the_paper_says(grid: Grid, width: int) -> None:
    for seed in range(3):
        weight, stats = layer(24, width, seed)
        ours = gptq.quantize_weight(weight, stats, grid).dense()
        naive = naive_gptq(weight, stats, grid)
        # In float32 a column may fall on the other side of a tie; its row then goes on otherwise.
        same = torch.isclose(ours.double(), naive, rtol=1e-3, atol=1e-6).all(dim=1)
        assert same.float().mean() >= 0.9
        assert error(weight, ours, stats) == pytest.approx(error(weight, naive, stats), rel=1e-3)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_loses_less_than_rounding(grid: Grid) -> None:
    for seed in range(5):
        weight, stats = layer(32, 96, seed)
        rounded = nearest.quantize_weight(weight, stats, grid).dense()
        ours = gptq.quantize_weight(weight, stats, grid).dense()
        assert error(weight, ours, stats) < 0.9 * error(weight, rounded, stats)


def test_gptq_keeps_what_was_pruned_and_makes_up_for_it() -> None:
    weight, stats = layer(32, 64)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5] = 0
    for grid in (Grid("int8"), Grid("int4", 16), Grid("int4", 16, symmetric=False)):
        found = gptq.quantize_weight(weight, stats, grid).dense()
        assert bool((found[weight == 0] == 0).all())
        rounded = nearest.quantize_weight(weight, stats, grid).dense()
        assert error(weight, found, stats) < error(weight, rounded, stats)


def test_gptq_leaves_the_weight_alone_and_bears_inputs_that_never_came() -> None:
    weight, stats = layer(1, 32)  # of one row the transposed weight lies in the same place
    before = weight.clone()
    stats.gram[:, 3] = stats.gram[3] = 0
    found = gptq.quantize_weight(weight, stats, Grid("int8"))
    assert torch.equal(weight, before)
    assert float((found.dense() - weight)[0, 3].abs()) <= 0.5001 * float(found.scales)


# -- AWQ ----------------------------------------------------------------------------------------


def small_model(
    architecture: str = "qwen3", key_heads: int = 2, **sizes: object
) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2} | sizes
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": key_heads}
    sizes |= {"head_dim": 16} if architecture == "qwen3" else {}
    sizes |= {"initializer_range": 0.2}
    model = create_model(architecture, 97, 0, eos_token_id=1, pad_token_id=0, **sizes)
    for weight in model.parameters():
        if weight.ndim == 1:  # norms and biases of a model that learned are not all the same
            torch.nn.init.uniform_(weight, 0.3, 3.0, generator=torch.Generator().manual_seed(7))
    return model


TEXTS = [[(7 * i + 13 * j * j) % 97 for j in range(20 + i)] for i in range(8)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
def test_awq_changes_what_rounding_loses_and_nothing_else(architecture: str) -> None:
    model = small_model(architecture)
    ids = torch.tensor([TEXTS[7]])
    before = model(ids).logits.detach()
    for block in walk(model, TEXTS, device="cpu", gram=True):
        alphas = awq.rescale(block, Grid("int4", 16))
        assert set(alphas) == set(awq.READERS)
    # Each fold rounds a product or two in float32.
    assert torch.allclose(model(ids).logits, before, atol=1e-4 * float(before.abs().max()))


def test_awq_knows_what_comes_in_afterwards() -> None:
    changed = small_model()
    told = []
    for block in walk(changed, TEXTS, device="cpu", gram=True):
        awq.rescale(block, Grid("int4", 16))
        told.append(deepcopy(block.stats))
    for block in walk(changed, TEXTS, device="cpu", gram=True):
        for name, stats in block.stats.items():
            ours = told[block.index][name]
            for part in ("squares", "magnitudes", "gram"):
                seen, said = getattr(stats, part), getattr(ours, part)
                assert torch.allclose(seen, said, rtol=1e-3, atol=1e-4 * float(seen.abs().max()))


def test_awq_takes_the_alpha_that_errs_least() -> None:
    for grid in (Grid("int4"), Grid("int4", 16, symmetric=False), Grid("int8")):
        weight, stats = layer(24, 48)
        mean = (stats.magnitudes / stats.num_tokens).double()
        errors = []
        for step in range(20):
            scales = mean ** (step / 20)
            scales = (scales / (scales.max() * scales.min()).sqrt()).float()
            rounded = nearest.quantize_weight(weight * scales, None, grid).dense() / scales
            errors.append(error(weight, rounded, stats))
        alpha, scales = awq.best_scales(weight, stats, grid)
        assert errors[round(20 * alpha)] == pytest.approx(min(errors), rel=1e-4)
        wide = nearest.quantize_weight(weight * scales, None, grid).dense() / scales
        assert error(weight, wide, stats) == pytest.approx(min(errors), rel=1e-4)
        assert min(errors) < errors[0], "these inputs differ enough that scales help"


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_awq_draws_in_the_ends_that_err_least(grid: Grid) -> None:
    """Row by row and group by group: whichever share of the way does best there, alone."""
    weight, stats = layer(6, 48)
    found = awq.quantize_weight(weight, stats, grid).dense()
    scales, zeros = grid.fit(weight)
    width = grid.width(48)
    for row in range(6):
        for start in range(0, 48, width):
            part, group = (row, slice(start, start + width)), start // width
            gram = stats.gram[group_of(start, width)]
            errors = []
            for step in range(10):
                drawn = scales.clone()
                drawn[row, group] = grid.kept(scales * (1 - step / 20))[row, group]
                lost = (weight - grid.round(weight, drawn, zeros).dense())[part]
                errors.append(float(lost @ gram @ lost))
            lost = (weight - found)[part]
            assert float(lost @ gram @ lost) == pytest.approx(min(errors), rel=1e-4)
    rounded = nearest.quantize_weight(weight, None, grid).dense()
    if grid.weights == "int4":
        assert error(weight, found, stats) < error(weight, rounded, stats)


def group_of(start: int, width: int) -> tuple[slice, slice]:
    return slice(start, start + width), slice(start, start + width)


def test_awq_leaves_values_that_heads_share() -> None:
    model = small_model(key_heads=1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for block in walk(model, TEXTS, device="cpu", gram=True):
        assert "self_attn.v_proj" not in awq.rescale(block, Grid("int4", 16))
    after = model.state_dict()
    for index in range(2):
        name = f"model.layers.{index}.self_attn.o_proj.weight"
        assert torch.equal(before[name], after[name])


def test_awq_bears_the_smallest_numbers_of_float16() -> None:
    model = small_model("llama")
    with torch.no_grad():
        for matrix in anatomy.matrices(anatomy.blocks(model)[0]).values():
            matrix.weight.mul_(1e-4)
    block = next(walk(model.to(torch.float16), TEXTS, device="cpu", gram=True))
    assert set(awq.rescale(block, Grid("int4", 16))) == set(awq.READERS)


def test_awq_refuses_blocks_that_it_cannot_rescale() -> None:
    gemma = create_model("gemma", 97, 0, eos_token_id=1, pad_token_id=0, hidden_size=32,
                         intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=2, head_dim=16)  # fmt: skip
    before = {name: weight.clone() for name, weight in gemma.state_dict().items()}
    block = next(walk(gemma, TEXTS, device="cpu", gram=True))
    with pytest.raises(UserError, match="GemmaRMSNorm"):
        awq.rescale(block, Grid("int4", 16))
    assert all(torch.equal(before[name], weight) for name, weight in gemma.state_dict().items())
    gpt2 = create_model("gpt2", 97, 0, eos_token_id=1, pad_token_id=0, hidden_size=32,
                        num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
    block = next(walk(gpt2, TEXTS, device="cpu", gram=True))
    with pytest.raises(UserError, match="no input_layernorm in its blocks; take gptq"):
        awq.rescale(block, Grid("int4", 16))


def test_all_ways_on_a_whole_model_lose_less_in_the_order_that_they_promise() -> None:
    """Of what comes out of each matrix, summed over the blocks: each way with its own inputs."""
    grid, lost = Grid("int4", 16), {}
    for way in (nearest, awq, gptq):
        model, sums = small_model(), 0.0
        for block in walk(model, TEXTS, device="cpu", gram=True):
            if way is awq:
                awq.rescale(block, grid)
            for name, matrix in block.matrices.items():
                weight, stats = anatomy.weight_of(matrix), block.stats[name]
                found = way.quantize_weight(weight, stats, grid).dense()
                whole = float((weight @ stats.gram * weight).sum())
                sums += error(weight, found, stats) / whole
                anatomy.set_weight(matrix, found)
        lost[way] = sums
    assert lost[awq] < lost[nearest]
    assert lost[gptq] < lost[nearest]
