"""One step: however it is split, against AdamW by hand; the learning rate's course."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from limbeck.train.batch import Example, Tokens, collate
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy
from limbeck.train.step import NotFinite, cosine_lr, make_optimizer, train_step
from tests.numerics.test_packing import assert_same_gradients, gradients, make_examples, make_model

SPLITS = [
    [[0, 1, 2, 3, 4, 5, 6, 7]],
    [[0, 1], [2], [3, 4, 5, 6, 7]],
    [[i] for i in range(8) if i != 1],  # document 1 has nothing to learn
    [[7, 3, 5], [2, 0], [4, 6, 1]],
]


@pytest.mark.parametrize("split", SPLITS[1:])
def test_accumulation_changes_nothing(split: list[list[int]]) -> None:
    examples = make_examples()
    results, grads = [], []
    for bins in (SPLITS[0], split):
        model = TokenModel(make_model())
        optimizer = make_optimizer(model, lr=0.1)
        batches = [collate([examples[index] for index in one]) for one in bins]
        result = train_step(model, batches, optimizer, lr=0.0, clip=None, token_loss=cross_entropy)
        results.append(result)
        grads.append(gradients(model.model))
    assert_same_gradients(grads[1], grads[0])
    assert results[0].num_loss_tokens == results[1].num_loss_tokens
    assert math.isclose(results[0].loss, results[1].loss, rel_tol=1e-6)  # float32 sums
    assert math.isclose(results[0].grad_norm, results[1].grad_norm, rel_tol=1e-5)  # the same


def test_loss_is_the_weighted_mean() -> None:
    model = TokenModel(make_model())
    light, heavy = Example([3, 4], [0, 1], 1.0), Example([5, 6], [0, 1], 3.0)
    with torch.no_grad():
        alone = [model(collate([one]), cross_entropy).item() for one in (light, heavy)]
    optimizer = make_optimizer(model, lr=0.1)
    result = train_step(
        model, [collate([light, heavy])], optimizer, lr=0.0, clip=None, token_loss=cross_entropy
    )
    # alone[1] already carries its weight of 3; float32
    assert math.isclose(result.loss, (alone[0] + alone[1]) / 4, rel_tol=1e-6)
    assert (result.weight, result.num_loss_tokens, result.num_tokens) == (4.0, 2, 4)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_adamw_by_hand(clip: float | None) -> None:
    lr, beta1, beta2, decay, epsilon = 0.01, 0.9, 0.95, 0.1, 1e-8
    model = TokenModel(make_model())
    optimizer = make_optimizer(model, lr=1.0, betas=(beta1, beta2), weight_decay=decay)
    before = {name: p.detach().double() for name, p in model.named_parameters()}
    before = {name: p.clone() for name, p in before.items()}
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in before.items()}
    for step in (1, 2):
        result = train_step(
            model,
            [collate(make_examples(seed=step))],
            optimizer,
            lr=lr,
            clip=clip,
            token_loss=cross_entropy,
        )
        grads = {name: p.grad.double() for name, p in model.named_parameters()}
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads.values()))
        # The gradients that we see are clipped ones; float32, and torch adds 1e-6 to the norm
        assert math.isclose(norm, min(clip or math.inf, result.grad_norm), rel_tol=2e-3)
        for name, grad in grads.items():
            first, second = moments[name]
            first.mul_(beta1).add_((1 - beta1) * grad)
            second.mul_(beta2).add_((1 - beta2) * grad.square())
            if before[name].ndim >= 2:
                before[name] *= 1 - lr * decay
            update = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + epsilon)
            before[name] -= lr * update
    for name, parameter in model.named_parameters():
        # float32 against float64; Adam's quotient enlarges the error where gradients are tiny
        torch.testing.assert_close(parameter.double(), before[name], rtol=1e-5, atol=2e-6)


def test_cosine_equals_transformers() -> None:
    num_steps, warmup, peak, ratio = 50, 7, 3e-4, 0.1
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup, num_steps, min_lr_rate=ratio
    )
    for step in range(num_steps):
        if step >= warmup:  # theirs begins its warm-up at 0, a step that learns nothing
            ours = cosine_lr(step, num_steps, peak, warmup, ratio)
            assert math.isclose(ours, schedule.get_last_lr()[0], rel_tol=1e-12)  # float64
        optimizer.step()
        schedule.step()


def test_cosine_at_its_corners() -> None:
    assert [cosine_lr(step, 10, 1.0, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine_lr(5, 10, 1.0) == 0.5
    assert cosine_lr(10, 10, 1.0, 4, 0.1) == pytest.approx(0.1)  # float64
    assert cosine_lr(0, 1, 1.0) == 1.0


def nan_where_target_is_3(logits: Tensor, tok: Tokens) -> Tensor:
    return cross_entropy(logits, tok).masked_fill(tok.targets == 3, math.nan)


def infinitely_steep(logits: Tensor, tok: Tokens) -> Tensor:
    steep = 1e38 * (logits - logits.detach()).sum(-1)  # zero
    return cross_entropy(logits, tok) + 1e3 * steep


def test_not_finite_stops_before_the_update() -> None:
    model = TokenModel(make_model())
    optimizer = make_optimizer(model, lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    batches = [collate([Example([4, target], [0, 1])]) for target in (5, 3, 6)]
    for loss, message in [
        (nan_where_target_is_3, "the loss is not finite in batch 1$"),
        (infinitely_steep, "the gradient is not finite in batch 0, 1, 2$"),
    ]:
        with pytest.raises(NotFinite, match=message):
            train_step(model, batches, optimizer, lr=0.1, clip=1.0, token_loss=loss)
    assert not optimizer.state
    for one, other in zip(model.parameters(), before, strict=True):
        assert torch.equal(one, other)


def test_bfloat16_keeps_float32_weights_and_learns() -> None:
    model = TokenModel(make_model())
    optimizer = make_optimizer(model, lr=0.01)
    batches = [collate(make_examples())]
    losses = [
        train_step(
            model,
            batches,
            optimizer,
            lr=0.01,
            clip=1.0,
            token_loss=cross_entropy,
            autocast=torch.bfloat16,
        ).loss
        for step in range(8)
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        exact = model(batches[0], cross_entropy).item() / batches[0].total_weight
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(batches[0], cross_entropy).item() / batches[0].total_weight
    assert math.isclose(exact, rough, rel_tol=0.02)  # bfloat16 has 8 bits
