"""Draws against exact distributions, by torch and by the kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from limbeck.engines import draw
from limbeck.engines.decoder import kernel
from limbeck.engines.decoder.plain import Plain
from limbeck.types import Sampling

CPU = torch.device("cpu")


def operations():
    compiled = kernel.load()
    assert compiled, "no compiler to build the kernel with"
    return {"torch": Plain(), "kernel": compiled}


@pytest.fixture(params=["torch", "kernel"])
def drawn_by(request):
    made = operations()[request.param]

    def draws(logits, uniforms, *samplings):
        samplings = samplings if len(samplings) > 1 else samplings * len(logits)
        return made.draw(logits, uniforms, draw.Knobs.of(samplings, logits.shape[-1], CPU))

    return draws


def exact(logits, sampling):
    """The distribution as the words say it, by naive loops in float64 (V,)."""
    logits = logits.double()
    shares = (logits / sampling.temperature).softmax(-1)
    order = shares.argsort(descending=True, stable=True).tolist()
    kept = order[: sampling.top_k or len(order)]
    mass, nucleus = sum(shares[i].item() for i in kept), []
    for i in kept:
        nucleus.append(i)
        if sum(shares[j].item() for j in nucleus) >= sampling.top_p * mass - 1e-12:
            break
    best = shares[order[0]].item()
    kept = [i for i in nucleus if shares[i].item() >= sampling.min_p * best]
    out = torch.zeros_like(shares)
    out[kept] = shares[kept]
    return out / out.sum()


def cuts(sampling):
    return sampling.top_p < 1 or sampling.top_k is not None


SAMPLINGS = [
    Sampling(1.0),
    Sampling(0.5),
    Sampling(1.0, 0.8),
    Sampling(0.6, 0.95),
    Sampling(1.0, top_k=4),
    Sampling(1.3, 0.7, top_k=9),
    Sampling(1.0, min_p=0.1),
    Sampling(1.5, 0.9, top_k=30, min_p=0.05),
    Sampling(1.0, 1e-9),
    Sampling(1.0, top_k=1),
]


@pytest.mark.parametrize("vocabulary", [6, 37, 300])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_draws_have_exactly_the_distribution(vocabulary, sampling, drawn_by):
    logits = 1.5 * torch.randn(vocabulary, generator=torch.manual_seed(vocabulary))
    num = 40_000
    uniforms = torch.from_numpy(draw.uniform(np.arange(num, dtype=np.uint64), 3))
    tokens, logp = drawn_by(logits.expand(num, -1).contiguous(), uniforms, sampling)
    expected = exact(logits, sampling)
    counts = torch.bincount(tokens, minlength=vocabulary)
    assert not counts[expected == 0].any()
    # Log-probabilities are float32 sums of at most 300 terms.
    torch.testing.assert_close(logp.double(), expected[tokens].log(), atol=1e-5, rtol=0)
    often = expected * num >= 5  # what chi-squared may be asked about
    rest = num - counts[often].sum().item(), num - (expected[often] * num).sum().item()
    seen, wanted = counts[often].tolist(), (expected[often] * num).tolist()
    if rest[1] > 5:
        seen, wanted = [*seen, rest[0]], [*wanted, rest[1]]
    elif wanted:
        wanted = [w * sum(seen) / sum(wanted) for w in wanted]
    # The seeds are fixed: of 60 tests at 1e-3 one change of them in 17 gives a false alarm.
    assert len(seen) == 1 or chisquare(seen, wanted).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_draws_what_torch_draws(dtype):
    """Row by row, whatever is asked of each."""
    made = operations()
    # In bfloat16 tokens tie, and which of equals a cut leaves in is nobody's promise.
    asked = SAMPLINGS if dtype == torch.float32 else [s for s in SAMPLINGS if not cuts(s)]
    samplings = asked * 50
    logits = 2 * torch.randn(len(samplings), 1000, generator=torch.manual_seed(0))
    logits = logits.to(dtype)
    knobs = draw.Knobs.of(samplings, 1000, CPU)
    uniforms = torch.rand(len(samplings), dtype=torch.float64, generator=torch.manual_seed(1))
    one, other = (it.draw(logits, uniforms, knobs) for it in made.values())
    # Running sums differ in the last bits: a uniform number on a border is luck.
    assert (one[0] != other[0]).sum() <= 1
    same = one[0] == other[0]
    torch.testing.assert_close(one[1][same], other[1][same], atol=1e-5, rtol=0)


def test_greedy_takes_the_first_of_the_likeliest(drawn_by):
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0 - 1e-6, 1.0, 5.0]])
    tokens, logp = drawn_by(logits, torch.tensor([0.9, 0.9], dtype=torch.float64), Sampling(0.0))
    assert tokens.tolist() == [1, 0]
    expected = logits.log_softmax(-1)[[0, 1], tokens]
    torch.testing.assert_close(logp, expected, atol=1e-6, rtol=0)


def test_a_temperature_next_to_nothing_is_greedy(drawn_by):
    logits = torch.randn(3, 50, generator=torch.manual_seed(4))
    uniforms = torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)
    tokens, logp = drawn_by(logits, uniforms, Sampling(1e-39))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert logp.tolist() == [0.0, 0.0, 0.0]


def test_rows_draw_each_by_its_own_knobs(drawn_by):
    logits = torch.randn(4, 50, generator=torch.manual_seed(2))
    uniforms = torch.full((4,), 0.7, dtype=torch.float64)
    samplings = [Sampling(0.0), Sampling(1.0), Sampling(0.7, 0.5), Sampling(1.0, top_k=3)]
    tokens, logp = drawn_by(logits, uniforms, *samplings)
    for row, sampling in enumerate(samplings):
        alone = drawn_by(logits[row : row + 1], uniforms[row : row + 1], sampling)
        assert (alone[0].item(), alone[1].item()) == (tokens[row].item(), logp[row].item())


def test_a_nucleus_may_reach_beyond_the_first_64_tokens(drawn_by):
    flat = torch.zeros(1, 1000).expand(5000, -1).contiguous()
    uniforms = torch.from_numpy(draw.uniform(np.arange(5000, dtype=np.uint64), 0))
    tokens, logp = drawn_by(flat, uniforms, Sampling(1.0, 0.5))
    assert len(tokens.unique()) > 490
    assert logp[0].exp().item() == pytest.approx(1 / 500, rel=5e-3)


def test_logits_that_are_not_finite_give_log_probabilities_that_are_not(drawn_by):
    for bad in (float("nan"), float("inf")):
        logits = torch.zeros(3, 40)
        logits[1, 7] = bad
        for sampling in (Sampling(0.0), Sampling(1.0), Sampling(0.7, 0.9, top_k=5)):
            uniforms = torch.full((3,), 0.5, dtype=torch.float64)
            _, logp = drawn_by(logits, uniforms, sampling)
            assert logp.isfinite().tolist() == [True, False, True]


def test_uniforms_are_uniform_and_independent_between_neighbours():
    seeds = np.arange(100_000, dtype=np.uint64)
    here, there = draw.uniform(seeds, 0), draw.uniform(seeds, 1)
    counts = np.histogram(here, bins=64, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(here, there)[0, 1]) < 0.02
    assert abs(np.corrcoef(here[1:], there[:-1])[0, 1]) < 0.02
    assert draw.splitmix64(np.array([0], dtype=np.uint64))[0] == 0xE220A8397B1DCDAF
