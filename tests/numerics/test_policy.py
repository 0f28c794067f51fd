"""Policy objectives against the papers' formulas in loops, TRL's trainer, and themselves, split."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import newborn, plugins, processes, sharding
from limbeck.errors import UserError
from limbeck.train import policy
from limbeck.train.batch import Group, Output, TokenBatch, Tokens, pack_groups
from limbeck.train.head import TokenModel, logp_and_entropy
from limbeck.train.kl import k3, output_k3, unbiased_k3
from limbeck.train.old_logprobs import own_logprobs
from limbeck.train.policy import cispo, dapo, dr_grpo, grpo, gspo
from limbeck.train.policy_loss import PolicyLoss
from limbeck.train.prescribed import Prescribed, prescribed
from limbeck.train.step import StepResult, make_optimizer, train_step
from limbeck.train.sums import means_of_all
from limbeck.types import Sampling
from tests.numerics.test_packing import assert_same_gradients, gradients

VOCAB, MAX_TOKENS = 270, 16
LENGTHS = [3, 1, 7, 4]  # of the outputs by hand
ADVANTAGES = [1.3, -0.7, -1.1, 0.4]

OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "grpo": grpo,
    "grpo_02": partial(grpo, clip=0.2),
    "grpo_output": partial(grpo, clip=0.2, ratio="output"),
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": partial(gspo, clip_low=0.1, clip_high=0.15),
    "cispo": partial(cispo, clip_high=1.2),
}
AVERAGES = {"dr_grpo": "length", "dapo": "token", "cispo": "token"}


# The papers' formulas, a token at a time

Rows = list[list[float]]


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(high, x))


def naive_grpo(logp: Rows, old: Rows, A: list[float], frozen: Rows, e: float = 10.0) -> float:
    """DeepSeekMath, eq. 3 without its KL: 1/G sum_i 1/|o_i| sum_t min(...)."""
    total = 0.0
    for i in range(len(A)):
        for t in range(len(logp[i])):
            rho = math.exp(logp[i][t]) / math.exp(old[i][t])
            total += min(rho * A[i], clip(rho, 1 - e, 1 + e) * A[i]) / len(logp[i]) / len(A)
    return total


def naive_grpo_output(logp: Rows, old: Rows, A: list[float], frozen: Rows) -> float:
    """DeepSeek-R1, eq. 1 without its KL: 1/G sum_i min(...) of whole outputs' probabilities."""
    total = 0.0
    for i in range(len(A)):
        rho = math.prod(math.exp(x) for x in logp[i]) / math.prod(math.exp(x) for x in old[i])
        total += min(rho * A[i], clip(rho, 0.8, 1.2) * A[i])
    return total / len(A)


def naive_dr_grpo(logp: Rows, old: Rows, A: list[float], frozen: Rows) -> float:
    """Dr. GRPO: the sum over an output's tokens, divided by the most that one may have."""
    total = 0.0
    for i in range(len(A)):
        for t in range(len(logp[i])):
            rho = math.exp(logp[i][t]) / math.exp(old[i][t])
            total += min(rho * A[i], clip(rho, 0.8, 1.2) * A[i]) / MAX_TOKENS
    return total / len(A)


def naive_dapo(logp: Rows, old: Rows, A: list[float], frozen: Rows) -> float:
    """DAPO, eq. 8: 1 / sum_i |o_i| sum_i sum_t min(...)."""
    total = 0.0
    for i in range(len(A)):
        for t in range(len(logp[i])):
            rho = math.exp(logp[i][t]) / math.exp(old[i][t])
            total += min(rho * A[i], clip(rho, 1 - 0.2, 1 + 0.28) * A[i])
    return total / sum(map(len, logp))


def naive_gspo(logp: Rows, old: Rows, A: list[float], frozen: Rows) -> float:
    """GSPO, eqs. 5 and 7."""
    total = 0.0
    for i in range(len(A)):
        ratio = math.prod(math.exp(x) for x in logp[i]) / math.prod(math.exp(x) for x in old[i])
        s = ratio ** (1 / len(logp[i]))
        total += min(s * A[i], clip(s, 0.9, 1.15) * A[i])
    return total / len(A)


def naive_cispo(logp: Rows, old: Rows, A: list[float], frozen: Rows) -> float:
    """MiniMax-M1, eq. 4; `frozen` is what stands outside the gradient."""
    total = 0.0
    for i in range(len(A)):
        for t in range(len(logp[i])):
            rho = math.exp(frozen[i][t]) / math.exp(old[i][t])
            total += min(rho, 1.2) * A[i] * logp[i][t]
    return total / sum(map(len, logp))


NAIVE: dict[str, Callable[[Rows, Rows, list[float], Rows], float]] = {
    "grpo": naive_grpo,
    "grpo_02": partial(naive_grpo, e=0.2),
    "grpo_output": naive_grpo_output,
    "dr_grpo": naive_dr_grpo,
    "dapo": naive_dapo,
    "gspo": naive_gspo,
    "cispo": naive_cispo,
}


def weights_of(average: str, lengths: Sequence[int]) -> tuple[list[float], float]:
    """(what each token of an output weighs, what the step divides by)."""
    if average == "token":
        return [1.0] * len(lengths), float(sum(lengths))
    return [1.0 / (MAX_TOKENS if average == "length" else n) for n in lengths], float(len(lengths))


def by_hand(average: str, scale: float = 0.3) -> tuple[Tensor, Tokens, float]:
    """(logp (N,), tok, divisor) of four outputs, in double precision, their tokens mixed up."""
    generator = torch.Generator().manual_seed(4)
    output = torch.tensor([k for k, length in enumerate(LENGTHS) for _ in range(length)])
    output = output[torch.randperm(len(output), generator=generator)]
    old = -3 * torch.rand(len(output), generator=generator, dtype=torch.float64)
    move = torch.randn(len(output), generator=generator, dtype=torch.float64)
    weights, divisor = weights_of(average, LENGTHS)
    columns = {
        "old_logp": old,
        "output": output,
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64)[output],
        "ref_logp": old + 0.5 * move.flip(0),
    }
    tok = Tokens(
        torch.zeros_like(output), torch.tensor(weights, dtype=torch.float64)[output], columns
    )
    return (old + scale * move).requires_grad_(), tok, divisor


def rows(values: Tensor, tok: Tokens) -> Rows:
    return [values[tok.columns["output"] == k].tolist() for k in range(len(LENGTHS))]


@pytest.mark.parametrize("scale", [0.0, 0.05, 0.3, 3.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_is_the_papers(name: str, scale: float) -> None:
    logp, tok, divisor = by_hand(AVERAGES.get(name, "output"), scale)
    loss = (OBJECTIVES[name](logp, tok) * tok.weights).sum() / divisor
    olds, own = rows(tok.columns["old_logp"], tok), rows(logp.detach(), tok)
    wanted = -NAIVE[name](own, olds, ADVANTAGES, own)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    if scale == 0:
        return  # neither side of a clip has the other's slope at 1, but for wide ones
    (slope,) = torch.autograd.grad(loss, logp)
    step = 1e-6
    for token in range(len(logp)):
        sides = []
        for sign in (1, -1):
            moved = logp.detach().clone()
            moved[token] += sign * step
            sides.append(-NAIVE[name](rows(moved, tok), olds, ADVANTAGES, own))
        found = (sides[0] - sides[1]) / (2 * step)
        assert slope[token].item() == pytest.approx(found, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("estimate", [k3, unbiased_k3, output_k3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_the_whole_loss(name: str, estimate: Callable[..., Tensor]) -> None:
    logp, tok, _ = by_hand(AVERAGES.get(name, "output"))
    loss = PolicyLoss(OBJECTIVES[name], 0.04, estimate)
    if name == "cispo":  # a part of it stands outside the gradient: no finite differences
        loss.objective = lambda logp, tok: dapo(logp, tok)
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.ones_like(x), tok), logp)


def test_at_the_start_all_are_the_plain_policy_gradient() -> None:
    """Where pi is pi_old, the slope of each token is -A, or A shared among an output's tokens."""
    logp, tok, divisor = by_hand("output", 0.0)
    for name, objective in OBJECTIVES.items():
        loss = (objective(logp, tok) * tok.weights).sum() / divisor
        (slope,) = torch.autograd.grad(loss, logp)
        length = torch.tensor(LENGTHS)[tok.columns["output"]]
        wanted = -tok.columns["advantages"] / divisor / (1 if name == "grpo_output" else length)
        torch.testing.assert_close(slope, wanted, msg=name)


def test_what_papers_prescribe() -> None:
    assert plugins.Kind("objective", policy.__name__).names() == [
        "cispo",
        "dapo",
        "dr_grpo",
        "grpo",
        "gspo",
    ]
    assert prescribed(grpo) == prescribed(lambda logp, tok: logp) == Prescribed("output", "z_score")
    assert prescribed(dr_grpo) == Prescribed("length", "mean_only")
    assert prescribed(dapo) == prescribed(cispo) == Prescribed("token", "z_score")
    assert prescribed(gspo) == Prescribed("output", "z_score")
    knobs = plugins.knobs_model(grpo)
    assert knobs(clip=0.2, ratio="output").model_dump() == {"clip": 0.2, "ratio": "output"}


def test_r1s_clip_binds_above_eleven_alone() -> None:
    """With e = 10 the lower bound, -9, can never be reached."""
    ratios = torch.tensor([1e-6, 0.5, 10.9, 11.1, 1e-6, 11.1, 500.0]).double()
    advantages = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0]).double()
    columns = {"old_logp": torch.zeros(7), "advantages": advantages, "output": torch.arange(7)}
    logp = ratios.log().requires_grad_()
    (slope,) = torch.autograd.grad(
        grpo(logp, Tokens(torch.zeros(7), torch.ones(7), columns)).sum(), logp
    )
    assert (slope == 0).tolist() == [False, False, False, True, False, False, False]


# Estimates of the KL


def kl_case() -> tuple[Tensor, Tensor, Tensor]:
    """Logits (5,) of a policy, of the one that draws, and of the reference."""
    generator = torch.Generator().manual_seed(6)
    return tuple(2 * torch.randn(3, 5, generator=generator, dtype=torch.float64))


def expected(estimate: Callable[..., Tensor], drawn_by: str) -> tuple[Tensor, Tensor, Tensor]:
    """(mean of an estimate over all draws, its gradient, the policy's logits)."""
    policy_logits, old, reference = kl_case()
    policy_logits.requires_grad_()
    logp = policy_logits.log_softmax(-1)
    old_logp = logp.detach() if drawn_by == "policy" else old.log_softmax(-1)
    columns = {
        "old_logp": old_logp,
        "ref_logp": reference.log_softmax(-1),
        "output": torch.arange(5),
    }
    tok = Tokens(torch.arange(5), torch.ones(5), columns)
    mean = (old_logp.exp() * estimate(logp, tok)).sum()
    return mean, torch.autograd.grad(mean, policy_logits)[0], policy_logits


def exact_kl(reverse: bool = False) -> tuple[Tensor, Tensor]:
    policy_logits, _, reference = kl_case()
    policy_logits.requires_grad_()
    one, other = policy_logits.log_softmax(-1), reference.log_softmax(-1)
    if reverse:
        one, other = other, one
    value = (one.exp() * (one - other)).sum()
    return value, torch.autograd.grad(value, policy_logits)[0]


def test_unbiased_k3_has_value_and_gradient_of_the_kl_whoever_drew() -> None:
    for drawn_by in ("policy", "another"):
        mean, slope, _ = expected(unbiased_k3, drawn_by)
        torch.testing.assert_close((mean, slope), exact_kl())


def test_k3_has_the_value_and_another_gradient() -> None:
    mean, slope, _ = expected(k3, "policy")
    torch.testing.assert_close(mean, exact_kl()[0])
    torch.testing.assert_close(slope, exact_kl(reverse=True)[1])
    assert (slope - exact_kl()[1]).abs().max() > 0.1
    away, _, _ = expected(k3, "another")
    assert (away - exact_kl()[0]).abs() > 0.1  # where another policy drew, not even the value


def test_k3_of_outputs_is_r1s_formula() -> None:
    logp, tok, _ = by_hand("output")
    found = output_k3(logp, tok)
    for k, (own, reference) in enumerate(
        zip(rows(logp.detach(), tok), rows(tok.columns["ref_logp"], tok), strict=True)
    ):
        ratio = math.prod(math.exp(x) for x in reference) / math.prod(math.exp(x) for x in own)
        wanted = ratio - math.log(ratio) - 1
        mine = found[tok.columns["output"] == k].tolist()
        assert mine == pytest.approx([wanted] * LENGTHS[k], rel=1e-12)


# The head


@pytest.mark.parametrize("tile_tokens", [1, 5, None])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature: float, tile_tokens: int | None) -> None:
    """Against the definition in double precision, and twice backward, as a tile is kept for once;
    float32: logits of some 10 are off by 1e-6, which a temperature of 0.3 triples."""
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(n, 6, generator=generator) for n in (17, 50))
    targets = torch.randint(50, (17,), generator=generator)
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    p = ((exact[0] @ exact[1].T) / temperature).softmax(-1)
    wanted = [p.gather(1, targets[:, None])[:, 0].log(), -(p * p.log()).sum(-1)]
    given = [hidden.requires_grad_(), weight.requires_grad_()]
    found = logp_and_entropy(*given, targets, tile_tokens, temperature)
    pulls = torch.randn(2, 17, generator=generator)
    for chosen in ([0], [0, 1], [1], [0]):
        pull = [pulls[i] for i in chosen]
        ours = torch.autograd.grad([found[i] for i in chosen], given, pull, retain_graph=True)
        pull = [x.double() for x in pull]
        true = torch.autograd.grad([wanted[i] for i in chosen], exact, pull, retain_graph=True)
        for one, other in zip(ours, true, strict=True):
            torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=5e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


# TRL


def make_plain(seed: int = 3, **sizes: Any) -> Any:
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    shape |= {"initializer_range": 0.2, "eos_token_id": 1, "pad_token_id": 0, **sizes}
    return newborn.create_model("llama", VOCAB, seed, **shape)


def make_trainer(method: str = "grpo", plain: Any = None, **options: Any) -> Any:
    """TRL's GRPOTrainer or RLOOTrainer around a tiny model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

        config, trainer = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[
            method
        ]
        settings = {"num_generations": 4, "per_device_train_batch_size": 4, **options}
        settings["per_device_train_batch_size"] = settings["num_generations"]
        arguments = config(
            output_dir=tempfile.mkdtemp(prefix="trl-"),
            report_to=[],
            use_cpu=True,
            bf16=False,
            beta=0.0,  # a reference would be loaded from the Hub
            steps_per_generation=1,
            max_completion_length=MAX_TOKENS,
            gradient_checkpointing=False,
            **settings,
        )
        made = trainer(
            plain or make_plain(),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "1+1="}] * 4),
            processing_class=newborn.train_tokenizer(iter(["1+1=2"]), VOCAB),
        )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


@dataclass(frozen=True)
class Round:
    """What was written: prompts and outputs of ids, and what each output's tokens are told."""

    prompts: list[list[int]]
    outputs: list[list[int]]
    columns: list[dict[str, Any]]

    def groups(self, average: str = "output") -> tuple[list[Group], float]:
        """(the same for Limbeck, the step's divisor)."""
        weights, divisor = weights_of(average, [len(ids) for ids in self.outputs])
        groups: dict[tuple[int, ...], Group] = {}
        for index, (prompt, ids) in enumerate(zip(self.prompts, self.outputs, strict=True)):
            group = groups.setdefault(tuple(prompt), Group(prompt, []))
            output = Output(ids, weights[index], f"o{index}", self.columns[index])
            group.outputs.append(output)
        return list(groups.values()), divisor

    def padded(self) -> dict[str, Tensor]:
        """The same for TRL."""

        def right(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
            longest = max(map(len, rows))
            return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)

        longest = max(map(len, self.prompts))
        prompts = [[*[0] * (longest - len(p)), *p] for p in self.prompts]
        masks = [[*[0] * (longest - len(p)), *[1] * len(p)] for p in self.prompts]
        ones = [[1] * len(ids) for ids in self.outputs]
        return {
            "prompt_ids": torch.tensor(prompts),
            "prompt_mask": torch.tensor(masks),
            "completion_ids": right(self.outputs, torch.long),
            "completion_mask": right(ones, torch.long),
            "advantages": torch.tensor([c["advantages"] for c in self.columns]),
            "old_per_token_logps": right([c["old_logp"] for c in self.columns], torch.float32),
            "ref_per_token_logps": right([c["ref_logp"] for c in self.columns], torch.float32),
            "importance_sampling_ratio": right(
                [c["correction"] for c in self.columns], torch.float32
            ),
            "num_items_in_batch": torch.tensor(sum(map(len, self.outputs))),
        }


def make_round(plain: Any, temperature: float, noise: float, seed: int = 0) -> Round:
    """Two groups of four outputs, whose old log-probs lie around the model's own."""
    rng = random.Random(seed)
    prompts = [prompt for prompt in ([5, 9, 3], [7, 8]) for _ in range(4)]
    outputs = [[rng.randrange(2, VOCAB) for _ in range(rng.randrange(1, 9))] for _ in prompts]
    bare = [{"advantages": 0.0} for _ in outputs]
    groups, _ = Round(prompts, outputs, bare).groups()
    own = own_logprobs(
        TokenModel(copy.deepcopy(plain)), pack_groups(groups, 1000), Sampling(temperature)
    )
    columns = []
    for index, ids in enumerate(outputs):
        logp = own[f"o{index}"].whole
        columns.append(
            {
                "advantages": rng.choice([-1.2, -0.3, 0.4, 1.7]),
                "old_logp": [x + noise * rng.gauss(0, 1) for x in logp],
                "ref_logp": [x + 0.5 * rng.gauss(0, 1) for x in logp],
                "correction": [rng.uniform(0, 2) for _ in ids],
            }
        )
    return Round(prompts, outputs, columns)


@dataclass(frozen=True)
class Case:
    """An objective, the options that make TRL's trainer compute the same, and how far the old
    log-probs lie from the model's."""

    objective: Callable[..., Tensor]
    average: str
    options: Mapping[str, Any]
    noise: float = 0.3


SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
CASES = {
    "grpo": Case(grpo, "output", {"loss_type": "grpo", "epsilon": 10.0}, noise=2.0),
    "grpo_02": Case(OBJECTIVES["grpo_02"], "output", {"loss_type": "grpo", "epsilon": 0.2}),
    "bnpo": Case(OBJECTIVES["grpo_02"], "token", {"loss_type": "bnpo", "epsilon": 0.2}),
    "dr_grpo": Case(dr_grpo, "length", {"loss_type": "dr_grpo", "epsilon": 0.2}),
    "dapo": Case(dapo, "token", {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
    "gspo": Case(gspo, "output", {**SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4}, 1e-3),
    "cispo": Case(cispo, "token", {"loss_type": "cispo", "epsilon_high": 5.0}, noise=2.0),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("extras", ["", "kl", "unbiased_kl", "correction", "correction_kl"])
@pytest.mark.parametrize("name", CASES)
def test_equals_grpo_trainer(name: str, extras: str, temperature: float) -> None:
    """Loss, gradients, entropy, KL and clip share of TRL's own `_compute_loss`.

    TRL's loss is told apart by `use_bias_correction_kl`, which it has on by default: with a KL
    that is DeepSeek-V3.2's and not R1's.
    """
    case = CASES[name]
    if extras == "unbiased_kl" and name == "gspo":
        pytest.skip("TRL takes the ratio of whole outputs there, DeepSeek-V3.2 that of tokens")
    plain = make_plain()
    written = make_round(plain, temperature, case.noise)
    options = {**case.options, "use_bias_correction_kl": extras == "unbiased_kl"}
    trainer = make_trainer(plain=copy.deepcopy(plain), temperature=temperature, **options)
    trainer.beta = 0.04 if "kl" in extras else 0.0
    trainer.use_vllm = "correction" in extras  # it then multiplies by the given weights
    wanted = trainer.compute_loss(trainer.model, written.padded())
    wanted.backward()
    told = {key: values[-1] for key, values in trainer._metrics["train"].items()}

    if "correction" not in extras:
        for columns in written.columns:
            del columns["correction"]
    estimate = unbiased_k3 if extras == "unbiased_kl" else k3
    loss = PolicyLoss(case.objective, trainer.beta, estimate, temperature)
    model = TokenModel(plain)
    groups, divisor = written.groups(case.average)
    result = step(model, pack_groups(groups, 30), loss, divisor)
    # float32 and two orders of sums: measured, 1e-7 to 6e-7 and 1e-6 to 2e-6. No epsilon of TRL's
    # is in the way: it divides by lengths of at least 1, its 1e-4 is in the advantages alone.
    assert result.loss == pytest.approx(wanted.item(), rel=1e-6, abs=1e-6)
    for (key, ours), theirs in zip(
        model.model.named_parameters(), trainer.model.parameters(), strict=True
    ):
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm(), key
    ours = means_of_all(loss.take())
    assert ours["entropy"] == pytest.approx(told["entropy"], rel=1e-5)
    if "kl" in extras:
        assert ours["kl"] == pytest.approx(told["kl"], rel=1e-4)
    if name == "gspo":  # TRL counts outputs, Limbeck their tokens
        assert (ours["clip_share"] > 0) == (told["clip_ratio/region_mean"] > 0)
    elif name != "cispo":  # which takes no token's gradient away
        assert ours["clip_share"] == pytest.approx(told["clip_ratio/region_mean"])
    assert "mismatch_kl" not in ours


def step(
    model: TokenModel, batches: list[TokenBatch], loss: PolicyLoss, divisor: float, lr: float = 0.0
) -> StepResult:
    optimizer = make_optimizer(model, lr=0.1)
    return train_step(
        model, batches, optimizer, lr=lr, clip=None, token_loss=loss, total_weight=divisor
    )


# However it is split


@pytest.mark.parametrize("name", OBJECTIVES)
def test_splitting_changes_nothing(name: str) -> None:
    plain = make_plain()
    written = make_round(plain, 1.0, 0.3)
    groups, divisor = written.groups(AVERAGES.get(name, "output"))
    results, grads, told = [], [], []
    for max_tokens in (1000, 30, 1):
        model, loss = TokenModel(copy.deepcopy(plain)), PolicyLoss(OBJECTIVES[name], 0.04)
        results.append(step(model, pack_groups(groups, max_tokens), loss, divisor))
        grads.append(gradients(model.model))
        told.append({**means_of_all(loss.take()), **loss.maxima()})
        assert loss.take() == {} == loss.maxima()
    for result, grad, numbers in zip(results[1:], grads[1:], told[1:], strict=True):
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5, abs=1e-7)  # float32 sums
        assert result.weight == divisor
        assert_same_gradients(grad, grads[0])
        assert numbers == pytest.approx(told[0], rel=1e-5)


def test_the_divisor_is_the_one_that_is_given() -> None:
    plain = make_plain()
    groups, divisor = make_round(plain, 1.0, 0.3).groups("length")
    norms = []
    for total in (divisor, 2 * divisor):
        norms.append(
            step(TokenModel(plain), pack_groups(groups, 40), PolicyLoss(dr_grpo), total).grad_norm
        )
    assert norms[0] == pytest.approx(2 * norms[1], rel=1e-6)


# What the loss tells


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_round_begins_at_ratio_one_to_the_bit(
    temperature: float, autocast: torch.dtype | None
) -> None:
    """The trainer's own log-probs of the same batches; others, or an engine's, miss the mark."""
    plain = make_plain()
    written = make_round(plain, temperature, 0.0)
    groups, divisor = written.groups()
    batches = pack_groups(groups, 40)
    assert len(batches) > 1
    model = TokenModel(plain)
    own = own_logprobs(model, batches, Sampling(temperature), autocast)
    for group in groups:
        for output in group.outputs:
            output.columns["old_logp"] = own[output.name].whole
    for objective in (grpo, gspo):
        loss = PolicyLoss(objective, temperature=temperature)
        train_step(
            model,
            pack_groups(groups, 40),
            make_optimizer(model, 0.1),
            lr=0.0,
            clip=None,
            token_loss=loss,
            autocast=autocast,
            total_weight=divisor,
        )
        assert means_of_all(loss.take())["clip_share"] == 0
        assert loss.maxima() == {"ratio_max": 1.0}


def test_tokens_of_no_weight_tell_nothing() -> None:
    """As a process gets them that would go short of batches."""
    logp, tok, _ = by_hand("output")
    loss = PolicyLoss(grpo)
    loss(logp, torch.ones_like(logp), tok)
    told, most = means_of_all(loss.take()), loss.maxima()
    nothing = Tokens(tok.targets, torch.zeros_like(tok.weights), tok.columns)
    loss(logp + 1, torch.zeros_like(logp), nothing)
    loss(logp, torch.ones_like(logp), tok)
    assert means_of_all(loss.take()) == pytest.approx(told)
    assert loss.maxima() == pytest.approx(most)


def test_an_endless_ratio_is_told_and_stops_no_clipped_output() -> None:
    """exp(1000) is no number: of an output that became so likely nothing is left to learn."""
    tokens = torch.arange(2)
    columns = {
        "old_logp": torch.tensor([-1000.0, -1.0]),
        "advantages": torch.tensor([1.0, 1.0]),
        "output": tokens,
    }
    logp = torch.tensor([0.0, -1.0], requires_grad=True)
    for objective in (grpo, partial(grpo, ratio="output"), gspo):
        loss = PolicyLoss(objective)
        loss(logp, torch.zeros(2), Tokens(tokens, torch.ones(2), columns)).sum().backward()
        assert means_of_all(loss.take())["clip_share"] == 0.5
        assert math.isfinite(loss.maxima()["ratio_max"])
    assert logp.grad is not None and logp.grad.tolist() == [0, -3]


def test_an_objective_gives_a_number_for_each_token() -> None:
    logp, tok, _ = by_hand("output")
    loss = PolicyLoss(lambda logp, tok: grpo(logp, tok).sum())
    with pytest.raises(UserError, match=r"objective: gives \[\] for log-probabilities \[15\]"):
        loss(logp, torch.zeros_like(logp), tok)


# Two processes


def train_together(out: Path) -> None:
    """Two steps by as many processes as there are, and what the trainer itself gives."""
    model = TokenModel(make_plain())
    written = make_round(model.model, 0.7, 0.3)
    groups, divisor = written.groups()
    sharding.shard(model)
    optimizer = make_optimizer(model, lr=0.01)
    told: list[Any] = []
    for max_tokens in (25, 1):
        batches = pack_groups(groups, max_tokens)
        own = own_logprobs(model, batches, Sampling(0.7, top_p=0.9))
        told.append({name: row.whole for name, row in sorted(own.items())})
        loss = PolicyLoss(gspo, 0.04, unbiased_k3, 0.7)
        result = train_step(
            model, batches, optimizer, lr=0.01, clip=1.0, token_loss=loss, total_weight=divisor
        )
        numbers = {**means_of_all(loss.take()), **loss.maxima()}
        told.append({"loss": result.loss, "norm": result.grad_norm, **numbers})
    if processes.leads():
        out.write_text(json.dumps(told))


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    from tests.numerics.test_sharding import in_two

    train_together(tmp_path / "one")
    assert in_two(train_together, tmp_path / "two") == [0, 0]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    for wanted, found in itertools.zip_longest(one, two):
        assert wanted.keys() == found.keys()
        for key in wanted:
            # float32 sums; the second step is behind one of AdamW's, which enlarges them
            assert found[key] == pytest.approx(wanted[key], rel=1e-3, abs=1e-5), key
