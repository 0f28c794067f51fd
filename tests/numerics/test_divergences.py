"""Every divergence against loops in double precision, and against TRL where TRL has it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from limbeck.train import divergences
from limbeck.train.divergences import (
    forward_kl,
    jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)

N, V = 3, 11
TEMPERATURES = [0.5, 1.0, 2.0, 4.0]
Divergence = Callable[[Tensor, Tensor], Tensor]


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def mixed(p: list[float], q: list[float], share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def naive_jsd(p: list[float], q: list[float], beta: float) -> float:
    m = mixed(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


# Ours by name, beside what it is: a function of the teacher's p and the student's q.
NAIVE: dict[str, tuple[Divergence, Callable[[list[float], list[float]], float]]] = {
    "forward_kl": (forward_kl, kl),
    "reverse_kl": (reverse_kl, lambda p, q: kl(q, p)),
    "jsd": (jsd, partial(naive_jsd, beta=0.5)),
    "jsd 0.1": (partial(jsd, beta=0.1), partial(naive_jsd, beta=0.1)),
    "jsd 0": (partial(jsd, beta=0), kl),
    "jsd 1": (partial(jsd, beta=1), lambda p, q: kl(q, p)),
    "skew_kl": (skew_kl, lambda p, q: kl(p, mixed(p, q, 0.1))),
    "skew_kl 0": (partial(skew_kl, skew=0), kl),
    "skew_kl 0.7": (partial(skew_kl, skew=0.7), lambda p, q: kl(p, mixed(p, q, 0.7))),
    "skew_reverse_kl": (skew_reverse_kl, lambda p, q: kl(q, mixed(p, q, 0.9))),
    "skew_reverse_kl 0.7": (
        partial(skew_reverse_kl, skew=0.7),
        lambda p, q: kl(q, mixed(p, q, 0.3)),
    ),
    "total_variation": (
        total_variation,
        lambda p, q: math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
    ),
}


def naive_softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [power / math.fsum(powers) for power in powers]


def make_logits(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = 2 * torch.randn(2, N, V, generator=generator, dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def at(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", NAIVE)
def test_equals_loops(name: str, temperature: float) -> None:
    ours, naive = NAIVE[name]
    student, teacher = make_logits()

    def loss(row: int, logits: list[float]) -> float:
        p = naive_softmax(teacher[row].tolist(), temperature)
        return naive(p, naive_softmax(logits, temperature))

    found = ours(at(student, temperature), at(teacher, temperature))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    for row in range(N):
        logits = student[row].tolist()
        assert found[row].item() == pytest.approx(loss(row, logits), rel=1e-12)  # doubles
        for token in range(V):
            step = 1e-5  # a central difference is off by about step^2 and 1e-16 / step
            up = [z + step * (i == token) for i, z in enumerate(logits)]
            down = [z - step * (i == token) for i, z in enumerate(logits)]
            slope = (loss(row, up) - loss(row, down)) / (2 * step)
            assert gradient[row, token].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", NAIVE)
def test_float32_is_close_to_double(name: str) -> None:
    ours, _ = NAIVE[name]
    exact, single = (
        ours(*(at(x, 2.0) for x in make_logits(t))) for t in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-7)  # 24 bits, 11 terms


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_equals_gkd_trainer(beta: float, temperature: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        from trl.experimental.gkd import GKDTrainer

    student, teacher = make_logits()
    wanted = GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=temperature, reduction="none"
    )[0].sum(-1)
    found = jsd(at(student, temperature), at(teacher, temperature), beta=beta)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)  # its beta is in float32
    ours, theirs = (torch.autograd.grad(loss.sum(), student)[0] for loss in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_equals_distillation_trainer(beta: float, temperature: float) -> None:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher = make_logits(torch.float32)
    identity = torch.eye(V)  # as heads, so that hidden states are logits
    mask = torch.ones(1, N)
    wanted, *_ = _chunked_divergence_loss(
        student[None], teacher[None], identity, identity, mask, beta, temperature=temperature
    )
    found = jsd(at(student, temperature), at(teacher, temperature), beta=beta).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)  # float32
    ours, theirs = (torch.autograd.grad(loss, student)[0] for loss in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAIVE)
def test_finite_where_the_teacher_has_nothing(name: str) -> None:
    ours, _ = NAIVE[name]
    logits = torch.tensor([[1.0, 0.0, -1.0, -2.0]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    found = ours(logits.log_softmax(-1), teacher)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(found).all()
    assert torch.isfinite(gradient).all()
    assert found.item() > 0
    descended = ours((logits - 0.01 * gradient).log_softmax(-1), teacher)
    assert descended.item() < found.item()


@pytest.mark.parametrize("name", NAIVE)
def test_what_is_no_number_stays_none(name: str) -> None:
    ours, _ = NAIVE[name]
    whole = torch.full((1, 4), 0.25).log()
    broken = whole.clone()
    broken[0, 1] = math.nan
    assert ours(whole, broken).isnan().all()
    assert ours(broken, whole).isnan().all()


@pytest.mark.parametrize("name", NAIVE)
def test_nothing_between_equals_and_less_between_coarser_buckets(name: str) -> None:
    ours, _ = NAIVE[name]
    student, teacher = (at(logits.detach(), 1.0) for logits in make_logits())
    torch.testing.assert_close(ours(teacher, teacher), torch.zeros(N).double())
    fine = ours(student, teacher)
    for cut in range(1, V):
        parts = [
            torch.cat([x[:, :cut], x[:, cut:].logsumexp(-1, keepdim=True)], 1)
            for x in (student, teacher)
        ]
        coarse = ours(parts[0], parts[1])
        assert (coarse >= -1e-12).all()
        assert (coarse <= fine + 1e-12).all()  # the data processing inequality


def test_bounds() -> None:
    apart = torch.tensor([[1.0, 0.0]]).log().clamp_min(-80), torch.tensor([[0.0, 1.0]]).log()
    assert total_variation(*apart).item() == pytest.approx(1.0)
    assert jsd(*apart).item() == pytest.approx(math.log(2))
    assert skew_kl(*apart).item() == pytest.approx(-math.log(0.1), rel=1e-6)
    assert skew_reverse_kl(*apart).item() == pytest.approx(-math.log(0.1), rel=1e-6)


def test_the_ends_of_jsd_are_its_limits() -> None:
    student, teacher = (at(logits.detach(), 1.0) for logits in make_logits())
    tiny = 1e-7  # the difference to the limit is of its order
    torch.testing.assert_close(
        jsd(student, teacher, beta=tiny) / tiny, forward_kl(student, teacher), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        jsd(student, teacher, beta=1 - tiny) / tiny, reverse_kl(student, teacher), rtol=1e-4, atol=0
    )


def test_a_recipe_can_name_all_of_them() -> None:
    from limbeck.plugins import Kind

    names = Kind("divergence", "limbeck.train.divergences").names()
    assert names == sorted({name.split()[0] for name in NAIVE})
    assert all(getattr(divergences, name).__doc__ for name in names)
