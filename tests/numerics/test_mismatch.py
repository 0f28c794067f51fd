"""Sampler against trainer: the same rule of sampling on both sides, and what makes up the rest."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck import chat, newborn
from limbeck.engines.draw import Knobs, draw, uniform
from limbeck.engines.local_engine import LocalEngine
from limbeck.problems import make_problem
from limbeck.train.batch import Group, Output, Tokens, pack_groups
from limbeck.train.head import TokenModel
from limbeck.train.old_logprobs import Own, corrections, needs_own, own_logprobs
from limbeck.train.policy import dapo, grpo
from limbeck.train.policy_loss import PolicyLoss
from limbeck.train.step import make_optimizer, train_step
from limbeck.train.sums import means_of_all
from limbeck.train.truncation import is_truncated, log_mass
from limbeck.types import Request, Sampling
from tests.numerics.test_policy import make_plain, make_round, make_trainer

V = 7
SAMPLINGS = {
    "plain": Sampling(),
    "warm": Sampling(temperature=1.7),
    "cold": Sampling(temperature=0.6),
    "top_p": Sampling(top_p=0.8),
    "top_k": Sampling(top_k=3),
    "min_p": Sampling(min_p=0.2),
    "all": Sampling(temperature=0.8, top_p=0.9, top_k=5, min_p=0.1),
}
TRUNCATED = [name for name, sampling in SAMPLINGS.items() if is_truncated(sampling)]


def distribution(logits: list[float], sampling: Sampling) -> list[float]:
    """What is drawn from, by the words of `types.Sampling`, a token at a time."""
    powers = [math.exp(x / sampling.temperature) for x in logits]
    p = [x / sum(powers) for x in powers]
    order = sorted(range(len(p)), key=lambda i: -p[i])[: sampling.top_k]
    mass = sum(p[i] for i in order)
    nucleus: list[int] = []
    for i in order:
        if sampling.top_p < 1 and sum(p[j] for j in nucleus) >= sampling.top_p * mass:
            break
        nucleus.append(i)
    kept = [i for i in nucleus if p[i] >= sampling.min_p * p[order[0]]]
    mass = sum(p[i] for i in kept)
    return [p[i] / mass if i in kept else 0.0 for i in range(len(p))]


def own_of(logits: Tensor, sampling: Sampling) -> Own:
    """What the trainer gives to every token of (V,) logits, as the tokens of one output."""
    logp = (logits / sampling.temperature).log_softmax(-1)
    table = logp.expand(len(logits), -1)
    drawn = logp - log_mass(table, torch.arange(len(logits)), sampling)
    return Own(logp.tolist(), (drawn if is_truncated(sampling) else logp).tolist())


def pair(seed: int, apart: float = 0.1) -> tuple[Tensor, Tensor]:
    """Logits (V,) of a sampler and of a trainer that is not quite the same."""
    generator = torch.Generator().manual_seed(seed)
    sampler, noise = 2 * torch.randn(2, V, generator=generator, dtype=torch.float64)
    return sampler, sampler + apart * noise


# One rule


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_rule_is_the_definition(name: str) -> None:
    sampling = SAMPLINGS[name]
    for seed in range(40):
        logits, _ = pair(seed)
        wanted = distribution(logits.tolist(), sampling)
        found = [math.exp(x) for x in own_of(logits, sampling).drawn]
        assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", [*SAMPLINGS, "wide"])
def test_the_rule_is_the_engines(name: str) -> None:
    """Every token that `draw` gives, with the log-probability that it gives, in its float32."""
    sampling = SAMPLINGS.get(name, Sampling(top_p=0.95, top_k=90, min_p=0.001))
    vocabulary = 300 if name == "wide" else V  # more than draw's first look takes in
    generator = torch.Generator().manual_seed(9)
    logits = 2 * torch.randn(4000, vocabulary, generator=generator)
    uniforms = torch.rand(4000, generator=generator, dtype=torch.float64)
    knobs = Knobs.of([sampling] * 4000, vocabulary, logits.device)
    tokens, wanted = draw(logits, uniforms, knobs)
    logp = (logits / sampling.temperature).log_softmax(-1)
    found = logp.gather(1, tokens[:, None])[:, 0]
    if is_truncated(sampling):
        found = found - log_mass(logp, tokens, sampling)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


def test_what_is_no_truncation() -> None:
    assert TRUNCATED == ["top_p", "top_k", "min_p", "all"]
    assert not is_truncated(Sampling(temperature=0.0, top_p=0.5))  # a greedy choice is no draw
    assert needs_own(Sampling(top_p=0.9), None) and needs_own(Sampling(), 2.0)
    assert not needs_own(Sampling(temperature=0.7), None)


# Like held against like


def expectation(p: list[float], weights: list[float], f: list[float]) -> float:
    return sum(p[i] * weights[i] * f[i] for i in range(V) if p[i])


@pytest.mark.parametrize("name", SAMPLINGS)
def test_corrected_draws_stand_for_the_trainers(name: str) -> None:
    """By enumeration: E_sampler[correction f] is E_trainer[f] under the same rule, as far as the
    sampler draws everything that the trainer would; what it never draws, nothing can make up."""
    sampling, num_whole = SAMPLINGS[name], 0
    for seed in range(60):
        sampler, trainer = pair(seed)
        p, q = (distribution(x.tolist(), sampling) for x in (sampler, trainer))
        f = pair(seed + 1000)[0].tolist()
        own = own_of(trainer, sampling)
        weights = corrections(own, [math.log(x) if x else 0.0 for x in p], 1e9)
        reached = expectation(q, [float(x > 0) for x in p], f)
        assert expectation(p, weights, f) == pytest.approx(reached, rel=1e-9, abs=1e-12)
        if all(p[i] for i in range(V) if q[i]):
            num_whole += 1
            assert reached == pytest.approx(expectation(q, [1.0] * V, f), rel=1e-9, abs=1e-12)
    assert num_whole > 30


@pytest.mark.parametrize("name", TRUNCATED)
def test_the_whole_distribution_would_be_the_wrong_one(name: str) -> None:
    """The trainer's log-prob before its filters, held against the sampler's after them, weighs
    every token by the share that the filters leave: the same weights everywhere would not matter,
    but that share is each context's own, so that confident ones count more."""
    sampling, errors = SAMPLINGS[name], []
    for seed in range(60):
        sampler, trainer = pair(seed, apart=0.0)  # nothing is to be corrected
        p = distribution(sampler.tolist(), sampling)
        own, logs = own_of(trainer, sampling), [math.log(x) if x else 0.0 for x in p]
        right, wrong = (corrections(o, logs, 1e9) for o in (own, Own(own.whole, own.whole)))
        ones = [1.0] * V
        assert expectation(p, right, ones) == pytest.approx(1)
        left = sum(math.exp(x) for x, kept in zip(own.whole, p, strict=True) if kept)
        assert expectation(p, wrong, ones) == pytest.approx(left)
        errors.append(1 - left)
    assert np.mean(errors) > 0.03 and np.std(errors) > 0.02


def test_a_ratio_of_unlike_log_probs_clips_where_nothing_has_moved() -> None:
    """Why pi_old is the trainer's own, of the whole distribution: with the sampler's in its place,
    DAPO's clip takes the gradient of tokens before the first step."""
    sampling, clipped = SAMPLINGS["top_k"], {"own": 0.0, "sampler": 0.0}
    for seed in range(60):
        logits, _ = pair(seed)
        own, p = own_of(logits, sampling), distribution(logits.tolist(), sampling)
        drawn = [i for i in range(V) if p[i]]
        olds = {"own": own.whole, "sampler": own.drawn}
        for name, old in olds.items():
            logp = torch.tensor([own.whole[i] for i in drawn], requires_grad=True)
            columns = {
                "old_logp": torch.tensor([old[i] for i in drawn]),
                "advantages": torch.full((len(drawn),), -1.0),
                "output": torch.arange(len(drawn)),
            }
            loss = PolicyLoss(dapo)
            tok = Tokens(torch.tensor(drawn), torch.ones(len(drawn)), columns)
            loss(logp, torch.zeros_like(logp), tok)
            clipped[name] += loss.take()["clip_share"][0]
    assert clipped["own"] == 0 < clipped["sampler"]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_gradients_of_corrected_draws_are_the_trainers(name: str) -> None:
    """Of the loss itself, weighed over all of the sampler's draws: at the first step it is the
    policy gradient of the trainer under its own rule, with its whole distribution's log-probs."""
    sampling, num_whole = SAMPLINGS[name], 0
    for seed in range(20):
        sampler, trainer = pair(seed)
        p, q = (distribution(x.tolist(), sampling) for x in (sampler, trainer))
        if not all(p[i] for i in range(V) if q[i]):
            continue
        num_whole += 1
        reward = pair(seed + 1000)[0]
        own = own_of(trainer, sampling)
        sampler_logp = [math.log(x) if x else 0.0 for x in p]
        logits = trainer.clone().requires_grad_()
        logp = (logits / sampling.temperature).log_softmax(-1)
        columns = {
            "old_logp": torch.tensor(own.whole, dtype=torch.float64),
            "advantages": reward,
            "output": torch.arange(V),
            "correction": torch.tensor(corrections(own, sampler_logp, 1e9), dtype=torch.float64),
        }
        tok = Tokens(torch.arange(V), torch.tensor(p, dtype=torch.float64), columns)
        loss = (PolicyLoss(grpo)(logp, torch.zeros(V), tok) * tok.weights).sum()
        wanted = -(torch.tensor(q, dtype=torch.float64) * reward * logp).sum()
        found, true = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, wanted))
        torch.testing.assert_close(found, true)
    assert num_whole >= 8


def test_the_cap_binds_and_what_cannot_be_drawn_counts_nothing() -> None:
    own = Own([-1.0] * 4, [-1.0, -0.5, -math.inf, -3.0])
    found = corrections(own, [-1.0, -2.0, -1.0, -1.0], 2.0)
    assert found == pytest.approx([1.0, 2.0, 0.0, math.exp(-2)])


# Draws of the engine


def of_engine(sampling: Sampling, plain: Any, num: int = 24) -> tuple[list[Group], dict[str, Any]]:
    """(groups of what the local engine wrote, its traces by name)."""
    tokenizer = newborn.train_tokenizer(iter(["1+1=2"]), 270)
    engine = LocalEngine(plain, tokenizer, name="tiny", batch_rows=16)
    sampling = replace(sampling, max_tokens=24)
    problems = [make_problem(f"{n}+1=", "0", verifier="exact") for n in range(2)]
    requests = [
        Request(f"{p.id}/{i}", p, i, seed=100 * n + i)
        for n, p in enumerate(problems)
        for i in range(num)
    ]
    traces = {trace.id: trace for trace in engine.generate(requests, sampling)}
    groups = [Group(chat.prompt_ids(tokenizer, p.messages), []) for p in problems]
    for request in requests:
        trace = traces[request.id]
        assert trace.token_ids and trace.logprobs
        columns = {
            "sampler_logp": [*trace.logprobs],
            "advantages": random.Random(trace.id).gauss(0, 1),
        }
        output = Output([*trace.token_ids], 1 / len(trace.token_ids), trace.id, columns)
        groups[problems.index(request.problem)].outputs.append(output)
    return groups, traces


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_engines_log_probs_are_the_trainers_under_its_rule(name: str) -> None:
    sampling = SAMPLINGS[name]
    plain = make_plain()
    groups, traces = of_engine(sampling, copy.deepcopy(plain))
    own = own_logprobs(TokenModel(plain), pack_groups(groups, 200), sampling)
    gaps, is_other = [], []
    for key, trace in traces.items():
        gaps += [a - b for a, b in zip(own[key].drawn, trace.logprobs, strict=True)]
        is_other += [a != b for a, b in zip(own[key].drawn, own[key].whole, strict=True)]
    assert len(gaps) > 500
    # float32 forwards in other orders of sums; at a border of the filters they may disagree
    found = np.array(gaps)
    assert np.isfinite(found).mean() > 0.995
    assert np.abs(found[np.isfinite(found)]).max() < (1e-4 if name == "cold" else 1e-3)
    assert any(is_other) == is_truncated(sampling)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_the_mismatch_is_measured(autocast: torch.dtype | None) -> None:
    """With the engine's log-probs in the place of pi_old, the first step's ratio is the mismatch:
    next to none in float32, and bfloat16's 8 bits otherwise; its KL is half the mean square."""
    plain = make_plain()
    groups, traces = of_engine(Sampling(temperature=0.7), copy.deepcopy(plain))
    for group in groups:
        for output in group.outputs:
            output.columns["old_logp"] = output.columns["sampler_logp"]
    model, loss = TokenModel(plain), PolicyLoss(grpo, temperature=0.7)
    batches = pack_groups(groups, 200)
    own = own_logprobs(model, batches, Sampling(temperature=0.7), autocast)
    train_step(
        model,
        batches,
        make_optimizer(model, 0.1),
        lr=0.0,
        clip=None,
        token_loss=loss,
        autocast=autocast,
    )
    gaps = [
        a - b
        for key, trace in traces.items()
        for a, b in zip(own[key].whole, trace.logprobs, strict=True)
    ]
    found, most = means_of_all(loss.take()), loss.maxima()
    assert found["mismatch_kl"] == pytest.approx(np.mean(np.expm1(gaps) - gaps), rel=0.1, abs=1e-9)
    assert most["mismatch_max"] == pytest.approx(np.exp(np.abs(gaps).max()), rel=1e-6)
    assert most["ratio_max"] == pytest.approx(np.exp(max(gaps)), rel=1e-6)
    if autocast:
        assert 1e-6 < found["mismatch_kl"] < 1e-2
        assert 1.01 < most["mismatch_max"] < 2
    else:
        assert found["mismatch_kl"] < 1e-8
        assert 1 < most["mismatch_max"] < 1.001


def test_a_mismatch_is_the_rounds_own_however_far_the_steps_went() -> None:
    """`own_logp`, where it is given, and not the policy of the moment; what the trainer would not
    have drawn is left out of the KL."""
    logp = torch.tensor([-1.0, -2.0, -3.0])
    columns = {
        "old_logp": logp - 0.5,
        "advantages": torch.ones(3),
        "output": torch.arange(3),
        "sampler_logp": torch.tensor([-0.9, -2.0, -1.0]),
        "own_logp": torch.tensor([-1.0, -1.8, -math.inf]),
    }
    loss = PolicyLoss(grpo)
    loss(logp, torch.zeros(3), Tokens(torch.arange(3), torch.ones(3), columns))
    told, most = means_of_all(loss.take()), loss.maxima()
    wanted = [math.expm1(-0.1) + 0.1, math.expm1(0.2) - 0.2]
    assert told["mismatch_kl"] == pytest.approx(sum(wanted) / 2, rel=1e-5)
    assert most == pytest.approx({"ratio_max": math.exp(0.5), "mismatch_max": math.exp(0.2)})


@pytest.mark.parametrize("name", ["plain", "top_p", "all"])
def test_means_over_the_engines_draws(name: str) -> None:
    """40,000 tokens that `draw` takes from a small model's logits, weighed for a trainer whose
    logits are a little off: each token's weighed share against the trainer's exact one under the
    same rule. Of 3 * 7 z-scores one beyond 4.5 has a chance of 1e-4; seeds are fixed."""
    num, sampling = 40_000, SAMPLINGS[name]
    sampler, trainer = pair(21, apart=0.05)
    p, q = (distribution(x.tolist(), sampling) for x in (sampler, trainer))
    assert [x > 0 for x in p] == [x > 0 for x in q]
    seeds = np.arange(num, dtype=np.uint64)
    knobs = Knobs.of([sampling] * num, V, sampler.device)
    uniforms = torch.from_numpy(uniform(seeds, 5))
    tokens, sampler_logp = draw(sampler.float().expand(num, -1).contiguous(), uniforms, knobs)
    whole = own_of(trainer, sampling)
    own = Own(*([row[t] for t in tokens.tolist()] for row in (whole.whole, whole.drawn)))
    weights = np.array(corrections(own, sampler_logp.tolist(), 1e9))
    naive = np.array(corrections(Own(own.whole, own.whole), sampler_logp.tolist(), 1e9))
    misses = []
    for token in range(V):
        shares = weights * (tokens.numpy() == token)
        error = shares.std() / num**0.5
        assert abs(shares.mean() - q[token]) <= 4.5 * error + 1e-6
        wrong = naive * (tokens.numpy() == token)
        misses.append(abs(wrong.mean() - q[token]) / (wrong.std() / num**0.5 + 1e-9))
    assert (max(misses) > 10) == is_truncated(sampling)


# TRL's own weights


@pytest.mark.parametrize("cap", [1.02, 3.0])
def test_truncated_importance_sampling_is_trls(cap: float) -> None:
    """`token_truncate` with TRL's floor of 0; it knows no filters, for which its vLLM's log-probs
    are of another distribution than its trainer's."""
    plain, temperature = make_plain(), 0.7
    written = make_round(plain, temperature, 0.3)
    trainer = make_trainer(
        plain=copy.deepcopy(plain),
        temperature=temperature,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=cap,
        vllm_importance_sampling_clip_min=0.0,
    )
    trainer.use_vllm = True
    logps = [columns["old_logp"] for columns in written.columns]  # the sampler's, here
    num, texts = len(logps), [""] * len(logps)
    trainer._generate = lambda prompts: (
        written.prompts, written.outputs, None, texts, logps, {}, None, None
    )  # fmt: skip
    inputs = trainer._generate_and_score_completions([{"prompt": "1+1="}] * num)
    groups, _ = written.groups()
    own = own_logprobs(TokenModel(plain), pack_groups(groups, 100), Sampling(temperature))
    num_capped = 0
    for index in range(num):
        found = corrections(own[f"o{index}"], logps[index], cap)
        theirs = inputs["importance_sampling_ratio"][index, : len(found)].tolist()
        assert found == pytest.approx(theirs, rel=1e-5)  # float32
        old = inputs["old_per_token_logps"][index, : len(found)].tolist()
        assert own[f"o{index}"].whole == pytest.approx(old, abs=1e-5)
        num_capped += sum(x == pytest.approx(cap) for x in found)
    assert num_capped > 0 or cap > 2
