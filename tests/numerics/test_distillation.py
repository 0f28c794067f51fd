"""What a student learns from a teacher's whole distribution, from its top k and from draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck import newborn
from limbeck.train import distillation
from limbeck.train.batch import Example, Tokens, collate
from limbeck.train.distillation import (
    Mix,
    bucket_logp,
    hidden_cosine,
    hidden_mse,
    in_blocks,
    loss_scales,
    sampled,
    top_k,
    whole,
)
from limbeck.train.divergences import (
    forward_kl,
    jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from limbeck.train.head import TokenModel, chunked_loss
from limbeck.train.losses import cross_entropy
from limbeck.train.sums import means

N, V, C, K = 9, 40, 16, 6
TEMPERATURES = [0.5, 1.0, 2.0, 4.0]
DIVERGENCES = [forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, total_variation]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_tokens(**columns: Tensor) -> Tokens:
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(V, (N,), generator=generator)
    return Tokens(targets, torch.rand(N, generator=generator, dtype=torch.float64), columns)


def kept(teacher: Tensor, k: int, temperature: float) -> dict[str, Tensor]:
    """A cache's columns of a teacher's logits."""
    logp, ids = teacher.log_softmax(-1).topk(k)
    others = (teacher / temperature).scatter(1, ids, -math.inf).logsumexp(-1)
    tails = others - (teacher / temperature).logsumexp(-1)
    return {"top_ids": ids, "top_logprobs": logp, "tails": tails}


def gradient(losses: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(losses.sum(), logits)[0]


# Hinton's mix


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_mix_is_hintons_loss(alpha: float, temperature: float) -> None:
    logits = normal(N, V, seed=1).requires_grad_()
    hidden, weight = normal(N, C, seed=2), normal(V, C, seed=3)
    tok = make_tokens(teacher_hidden=hidden, hard=(torch.arange(N) % 2).double())
    p = ((hidden @ weight.T) / temperature).softmax(-1)
    log_q = (logits / temperature).log_softmax(-1)
    soft = alpha * temperature**2 * (p * (p.log() - log_q)).sum(-1)
    hard = (1 - alpha) * F.cross_entropy(logits, tok.targets, reduction="none")
    hard = hard * tok.columns["hard"]
    mix = Mix(whole(weight), forward_kl, temperature, alpha)
    found = mix(logits, tok)
    torch.testing.assert_close(found, soft + hard)
    torch.testing.assert_close(gradient(found, logits), gradient(soft + hard, logits))
    told, mean = means(mix.take()), tok.weights / tok.weights.sum()
    assert told["soft"] == pytest.approx((soft @ mean).item())
    assert told["hard"] == pytest.approx((hard @ mean).item())
    assert mix.take() == {"soft": (0, 0), "hard": (0, 0)}
    parts = mix.parts()
    assert set(parts) == {"soft", "hard"} - {{0.0: "soft", 1.0: "hard"}.get(alpha)}
    for name, part in parts.items():
        torch.testing.assert_close(part(logits, tok), soft if name == "soft" else hard)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_blocks_of_rows_change_nothing(divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = normal(N, V, seed=1).requires_grad_()
    weight = normal(V, C, seed=3)
    tok = make_tokens(teacher_hidden=normal(N, C, seed=2))
    results = []
    for num_rows in (1, 4, N, 100):
        monkeypatch.setattr(distillation, "BLOCK_BYTES", 4 * V * num_rows)
        mix = Mix(whole(weight), divergence, 2.0, 0.5)
        losses = mix(logits, tok)
        results.append((losses, gradient(losses * tok.weights, logits), mix.take()["soft"]))
    for losses, grad, soft in results[1:]:
        torch.testing.assert_close(losses, results[0][0])
        torch.testing.assert_close(grad, results[0][1])
        assert soft == pytest.approx(results[0][2])


def test_blocks_go_backward_once_and_not_without_need() -> None:
    logits = normal(N, V, seed=1).requires_grad_()
    losses = in_blocks(cross_entropy, logits, make_tokens())
    losses.sum().backward(retain_graph=True)
    with pytest.raises(AssertionError, match="backward once"):
        losses.sum().backward()
    with torch.no_grad():
        assert not in_blocks(cross_entropy, logits, make_tokens()).requires_grad


@pytest.mark.parametrize("tile_tokens", [1, 4, 100])
@pytest.mark.parametrize("form", ["whole", "top_k"])
def test_the_chunked_head_learns_the_same(form: str, tile_tokens: int) -> None:
    hidden = normal(N, C, seed=1).float().requires_grad_()
    weight = normal(V, C, seed=4).float().requires_grad_()
    teacher_hidden, teacher_weight = normal(N, C, seed=2).float(), normal(V, C, seed=3).float()
    columns = {"teacher_hidden": teacher_hidden}
    if form == "top_k":
        columns = kept(teacher_hidden @ teacher_weight.T, K, 2.0)
    tok = make_tokens(**columns)
    tok = replace(tok, weights=tok.weights.float())
    mix = Mix(whole(teacher_weight) if form == "whole" else top_k(), forward_kl, 2.0, 0.5)
    wanted = (mix(hidden @ weight.T, tok) * tok.weights).sum()
    found = chunked_loss(hidden, weight, tok, mix, tile_tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)  # float32, other order of sums
    theirs = torch.autograd.grad(wanted, [hidden, weight])
    ours = torch.autograd.grad(found, [hidden, weight])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Buckets


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, K, V - 1])
def test_bucket_logp_and_its_gradient(k: int, temperature: float) -> None:
    logits = normal(N, V, seed=1).requires_grad_()
    ids = normal(N, V, seed=6).argsort(-1)[:, :k]
    found = bucket_logp(logits, ids, temperature)
    q = (logits / temperature).softmax(-1)
    top = q.gather(1, ids)
    wanted = torch.cat([top, 1 - top.sum(-1, keepdim=True)], 1).log()
    torch.testing.assert_close(found, wanted)
    pull = normal(N, k + 1, seed=7)
    torch.testing.assert_close(gradient(found * pull, logits), gradient(wanted * pull, logits))
    assert torch.autograd.gradcheck(lambda x: bucket_logp(x, ids, temperature), logits)


def test_bucket_logp_far_from_zero_and_of_little_mass() -> None:
    logits = torch.tensor([[-300.0, -320.0, -330.0], [60.0, 0.0, 10.0]], requires_grad=True)
    found = bucket_logp(logits, torch.tensor([[0], [0]]))
    wanted = logits.double().log_softmax(-1)[:, 1:].logsumexp(-1)
    torch.testing.assert_close(found[:, 1].double(), wanted, rtol=1e-6, atol=0)  # float32
    assert found[1, 1] < -49  # 1 - p would have been 0
    slope = gradient(found[:, 1], logits)
    wanted_slope = gradient(wanted, logits)
    torch.testing.assert_close(slope, wanted_slope, rtol=1e-4, atol=1e-6)  # 320 +- 3e-5


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_all_tokens_as_top_k_are_the_whole(divergence, temperature: float) -> None:
    logits, teacher = normal(N, V, seed=1).requires_grad_(), normal(N, V, seed=2)
    tok = make_tokens(**kept(teacher, V, temperature))
    found = divergence(*top_k()(logits, tok, temperature))
    wanted = divergence(
        (logits / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient(found, logits), gradient(wanted, logits))


# What the top k lose


@dataclass(frozen=True)
class Halves:
    """Whole distributions p and q (N, V), the masses P and Q (N,) of what is not among the top k
    of p, and both conditional on it, p_tail and q_tail."""

    p: Tensor
    q: Tensor
    P: Tensor
    Q: Tensor
    p_tail: Tensor
    q_tail: Tensor


def halves(logits: Tensor, teacher: Tensor, ids: Tensor, temperature: float) -> Halves:
    p, q = ((x / temperature).softmax(-1) for x in (teacher, logits))
    p_rest, q_rest = (x.scatter(1, ids, 0.0) for x in (p, q))
    P, Q = p_rest.sum(-1), q_rest.sum(-1)
    return Halves(p, q, P, Q, p_rest / P[:, None], q_rest / Q[:, None])


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1)


def lost_by_jsd(h: Halves, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """With M = beta P + (1 - beta) Q and b = beta P / M: M JSD_b(p_tail, q_tail), of which a JSD_b
    is at most the entropy of (b, 1 - b)."""
    mass = beta * h.P + (1 - beta) * h.Q
    b = beta * h.P / mass
    mixture = b[:, None] * h.p_tail + (1 - b[:, None]) * h.q_tail
    lost = mass * (b * kl(h.p_tail, mixture) + (1 - b) * kl(h.q_tail, mixture))
    return lost, mass * (torch.special.entr(b) + torch.special.entr(1 - b))


def lost_by_skew(p: Tensor, q: Tensor, P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || m), m = 0.1 p + 0.9 q, loses P KL(p_tail || m_tail); as m_tail is at least
    0.1 P / M of p_tail, with M the mass of m there, that is at most P log(M / (0.1 P))."""
    mass = 0.1 * P + 0.9 * Q
    mixture = (0.1 * P[:, None] * p + 0.9 * Q[:, None] * q) / mass[:, None]
    return P * kl(p, mixture), P * (mass / (0.1 * P)).log()


# By the chain rule of each: (what the rest's mass loses, what bounds it).
LOST = {
    forward_kl: lambda h: (h.P * kl(h.p_tail, h.q_tail), math.inf),
    reverse_kl: lambda h: (h.Q * kl(h.q_tail, h.p_tail), math.inf),
    jsd: lost_by_jsd,
    skew_kl: lambda h: lost_by_skew(h.p_tail, h.q_tail, h.P, h.Q),
    skew_reverse_kl: lambda h: lost_by_skew(h.q_tail, h.p_tail, h.Q, h.P),
    total_variation: lambda h: (
        ((h.P[:, None] * h.p_tail - h.Q[:, None] * h.q_tail).abs().sum(-1) - (h.P - h.Q).abs()) / 2,
        torch.minimum(h.P, h.Q),
    ),
}


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, K, V // 2])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_top_k_lose_what_the_rest_holds(divergence, k: int, temperature: float) -> None:
    logits, teacher = 2 * normal(N, V, seed=1), 2 * normal(N, V, seed=2)
    columns = kept(teacher, k, temperature)
    coarse = divergence(*top_k()(logits, make_tokens(**columns), temperature))
    h = halves(logits, teacher, columns["top_ids"], temperature)
    full = divergence(h.q.log(), h.p.log())
    lost, bound = LOST[divergence](h)
    torch.testing.assert_close(full - coarse, lost, rtol=1e-9, atol=1e-12)  # doubles
    assert (lost >= -1e-12).all()
    assert (lost <= bound + 1e-12).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_half_precision_moves_a_cached_loss_little(temperature: float) -> None:
    """float16 moves a log-probability by e = 2^-11 of it at most, hence at T by e |log p| / T, and
    each p' / p, once they add up again, by at most d = 2 max e |log p| / T in its log. Then
    |KL(p' || q) - KL(p || q)| <= d + (exp(d) - 1) sum p |log p - log q|."""
    logits, teacher = normal(N, V, seed=1), 3 * normal(N, V, seed=2)
    exact = kept(teacher, K, temperature)
    stored = {**exact, "top_logprobs": exact["top_logprobs"].half().double()}
    q, p = top_k()(logits, make_tokens(**exact), temperature)
    _, moved = top_k()(logits, make_tokens(**stored), temperature)
    d = 2 * 2**-11 * exact["top_logprobs"].abs().amax(-1) / temperature
    assert ((moved - p).abs() <= d[:, None] + 1e-12).all()
    bound = d + d.expm1() * (p.exp() * (p - q).abs()).sum(-1)
    difference = (forward_kl(q, moved) - forward_kl(q, p)).abs()
    assert (difference <= bound + 1e-12).all()
    assert difference.max() > 0


def test_a_cache_that_says_nothing_is_left_stays_finite() -> None:
    teacher = torch.tensor([[90.0, 80.0, -90.0, -90.0]])
    columns = kept(teacher, 2, 1.0)
    columns["tails"] = torch.tensor([float(torch.finfo(torch.float16).min)])
    logits = torch.zeros(1, 4, requires_grad=True)
    for divergence in DIVERGENCES:
        found = divergence(*top_k()(logits, Tokens(*torch.zeros(2, 1), columns), 1.0))
        assert torch.isfinite(found).all()
        assert found.item() < 50  # not what the logarithm of nothing would make of it
        assert torch.isfinite(gradient(found, logits)).all()


# Draws


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_give_the_forward_kl_without_bias(temperature: float) -> None:
    """Means of 20,000 estimates from 4 draws each, against exact ones; z of a normal beyond 4.5
    has a chance of 7e-6, and there are 2 * 21 of them; seed 11."""
    num, vocabulary, draws = 20_000, 20, 4
    generator = torch.Generator().manual_seed(11)
    logits, teacher = normal(1, vocabulary, seed=1), normal(1, vocabulary, seed=2)
    p = (teacher / temperature).softmax(-1)
    drawn = torch.multinomial(p[0], num * draws, replacement=True, generator=generator)
    drawn = drawn.view(num, draws).sort(-1).values
    is_new = F.pad(drawn[:, 1:] != drawn[:, :-1], (1, 0), value=True)
    shares = (drawn[:, :, None] == drawn[:, None, :]).double().mean(-1) * is_new
    columns = {
        "top_ids": drawn * is_new,  # filled up with token 0 of no share
        "top_logprobs": shares.log().clamp_min(-65504.0),
        "entropies": torch.special.entr(p).sum(-1).expand(num),
    }
    tok = Tokens(torch.zeros(num, dtype=torch.long), torch.ones(num), columns)
    rows = logits.expand(num, -1).clone().requires_grad_()
    estimates = forward_kl(*sampled()(rows, tok, temperature))
    slopes = gradient(estimates, rows)
    exact = logits.clone().requires_grad_()
    wanted = kl(p, (exact / temperature).softmax(-1))
    for found, true in ((estimates[:, None], wanted[:, None]), (slopes, gradient(wanted, exact))):
        error = found.std(0) / num**0.5
        z = (found.mean(0) - true[0]) / error
        assert (z.abs() < 4.5).all()
        assert (error < 0.02).all()  # so that a bias would show


# Vocabularies


@dataclass(frozen=True)
class Shared:
    """What an aligned vocabulary tells a view."""

    student_ids: Tensor
    teacher_ids: Tensor
    is_prefix: bool


@pytest.mark.parametrize("is_prefix", [True, False])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_padded_vocabularies_share_tokens_and_a_rest(divergence, is_prefix: bool) -> None:
    shared = torch.arange(V - 4)
    student_rows, teacher_rows = V, V + 3
    logits = normal(N, student_rows, seed=1).requires_grad_()
    hidden, weight = normal(N, C, seed=2), normal(teacher_rows, C, seed=3)
    view = whole(weight, Shared(shared, shared, is_prefix))
    student, teacher = view(logits, make_tokens(teacher_hidden=hidden), 2.0)
    q, p = ((x / 2).softmax(-1) for x in (logits, hidden @ weight.T))
    for found, dense in ((student, q), (teacher, p)):
        rest = dense[:, V - 4 :].sum(-1, keepdim=True)
        torch.testing.assert_close(found.exp(), torch.cat([dense[:, : V - 4], rest], 1))
    found = gradient(divergence(student, teacher), logits)
    by_hand = torch.cat([q[:, : V - 4], q[:, V - 4 :].sum(-1, keepdim=True)], 1).log()
    torch.testing.assert_close(found, gradient(divergence(by_hand, teacher), logits))


def test_other_ids_are_matched_by_token() -> None:
    order = normal(V, seed=8).argsort()
    student_ids = torch.arange(V)[5:]
    hidden, weight = normal(N, C, seed=2), normal(V, C, seed=3)
    tok, logits = make_tokens(teacher_hidden=hidden), normal(N, V, seed=1)
    moved = torch.empty_like(weight)
    moved[order] = weight  # token i is the teacher's row order[i]
    plain = whole(weight, Shared(student_ids, student_ids, False))(logits, tok, 1.0)
    found = whole(moved, Shared(student_ids, order[student_ids], False))(logits, tok, 1.0)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("is_prefix", [True, False])
def test_a_rest_that_one_side_lacks_is_left_out(is_prefix: bool) -> None:
    shared = torch.arange(V)
    logits = normal(N, V, seed=1)
    hidden, weight = normal(N, C, seed=2), normal(V + 8, C, seed=3)
    view = whole(weight, Shared(shared, shared, is_prefix))
    student, teacher = view(logits, make_tokens(teacher_hidden=hidden), 1.0)
    torch.testing.assert_close(student, logits.log_softmax(-1))
    torch.testing.assert_close(teacher, (hidden @ weight[:V].T).log_softmax(-1))


# Beside the loss


def test_loss_scales_are_values_and_gradients_at_the_hidden_states() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = TokenModel(newborn.create_model("qwen2", V, 0, eos_token_id=0, pad_token_id=0, **sizes))
    examples = [Example([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]), Example([7, 8, 9], [0, 1, 1], 0.5)]
    batch = collate(examples)
    weight = normal(V, C, seed=3).float()
    hidden = normal(batch.num_tokens, C, seed=2).float()
    batch = replace(batch, columns={"teacher_hidden": hidden})
    mix = Mix(whole(weight), jsd, 2.0, 0.9)
    found = loss_scales(model, batch, mix.parts())
    states = model.hidden(batch)[batch.loss_positions].detach().requires_grad_()
    tok = batch.loss_tokens()
    for name, part in mix.parts().items():
        logits = states @ model.model.get_output_embeddings().weight.detach().T
        loss = (part(logits, tok) * tok.weights).sum() / batch.total_weight
        norm = torch.autograd.grad(loss, states)[0].norm()
        assert found[name] == pytest.approx((loss.item(), norm.item()), rel=1e-4)  # float32
    assert all(parameter.grad is None for parameter in model.parameters())


def test_distances_of_hidden_states() -> None:
    student, teacher = normal(N, C, seed=1), normal(N, C, seed=2)
    for row in range(N):
        pairs = list(zip(student[row].tolist(), teacher[row].tolist(), strict=True))
        squares = math.fsum((a - b) ** 2 for a, b in pairs) / C
        cosine = math.fsum(a * b for a, b in pairs)
        cosine /= math.hypot(*student[row].tolist()) * math.hypot(*teacher[row].tolist())
        assert hidden_mse(student, teacher)[row].item() == pytest.approx(squares)
        assert hidden_cosine(student, teacher)[row].item() == pytest.approx(1 - cosine)
    for distance in (hidden_mse, partial(hidden_cosine)):
        torch.testing.assert_close(distance(student, student), torch.zeros(N).double())
