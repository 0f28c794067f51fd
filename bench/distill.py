"""Logit distillation, loss and head alone, against TRL: tokens a second and peak memory.

512 tokens, student 512 wide, teacher 1024 wide, temperature 2, forward KL, bfloat16 weights,
vocabularies of 32,768 and 151,936, one thread. The peers are the chunked divergence of TRL's
DistillationTrainer and the loss of its GKDTrainer, which has all logits at once: in float32, as
they come in its own setting (bf16 by autocast), and in bfloat16, which is quicker and smaller, and
off by 2 % in the gradient. Speed is measured against bfloat16, memory against both.

    python bench/distill.py           # everything, some 8 minutes
    python bench/distill.py --quick   # two rounds instead of five
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure

IS_MEMORY = "--memory" in sys.argv  # under the allocator's own settings, as users have them
if not IS_MEMORY:
    measure.one_thread()

import torch  # noqa: E402  (behind the environment that it reads when it is imported)
from torch import Tensor  # noqa: E402

from limbeck.train.batch import Tokens  # noqa: E402
from limbeck.train.distillation import Mix, top_k, whole  # noqa: E402
from limbeck.train.divergences import forward_kl  # noqa: E402
from limbeck.train.head import chunked_loss  # noqa: E402

NUM_TOKENS, STUDENT, TEACHER, TOP = 512, 512, 1024, 64
TEMPERATURE = 2.0
VOCABULARIES = {"32k": 32_768, "152k": 151_936}


@dataclass(frozen=True)
class Heads:
    """Last hidden states (N, C) and heads (V, C) of both."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor

    def gradients(self, loss: Tensor) -> tuple[float, Tensor, Tensor]:
        grads = torch.autograd.grad(loss, [self.hidden, self.weight])
        return loss.item(), *grads


def make_heads(vocabulary: int, num_tokens: int = NUM_TOKENS) -> Heads:
    """Random ones, with logits of a spread of 3; made in place, so that nothing is left behind."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, scale, generator=generator)

    return Heads(
        normal(num_tokens, STUDENT).requires_grad_(),
        normal(vocabulary, STUDENT, scale=3 * STUDENT**-0.5).requires_grad_(),
        normal(num_tokens, TEACHER),
        normal(vocabulary, TEACHER, scale=3 * TEACHER**-0.5),
    )


Work = Callable[[Heads], tuple[float, Tensor, Tensor]]


def ours(heads: Heads, columns: dict[str, Tensor] | None = None) -> tuple[float, Tensor, Tensor]:
    """The mean forward KL without T^2, as the peers give it; from a cache's `columns`, if any."""
    num = heads.hidden.shape[0]
    weights = torch.full((num,), 1 / num / TEMPERATURE**2)
    view = top_k() if columns else whole(heads.teacher_weight)
    columns = columns or {"teacher_hidden": heads.teacher_hidden}
    tok = Tokens(torch.zeros(num, dtype=torch.long), weights, columns)
    mix = Mix(view, forward_kl, TEMPERATURE, alpha=1.0)
    return heads.gradients(chunked_loss(heads.hidden, heads.weight, tok, mix))


def chunked(heads: Heads) -> tuple[float, Tensor, Tensor]:
    """The loss of TRL's DistillationTrainer."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    loss, *_ = _chunked_divergence_loss(
        heads.hidden[None],
        heads.teacher_hidden[None],
        heads.weight,
        heads.teacher_weight,
        torch.ones(1, heads.hidden.shape[0]),
        beta=0.0,
        temperature=TEMPERATURE,
    )
    return heads.gradients(loss)


def gkd(heads: Heads, dtype: torch.dtype) -> tuple[float, Tensor, Tensor]:
    """The loss of TRL's GKDTrainer, from logits of a type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        from trl.experimental.gkd import GKDTrainer

    student = (heads.hidden @ heads.weight.T).to(dtype)
    with torch.no_grad():
        teacher = (heads.teacher_hidden @ heads.teacher_weight.T).to(dtype)
    loss = GKDTrainer.generalized_jsd_loss(
        student[None],
        teacher[None],
        torch.zeros(1, heads.hidden.shape[0], dtype=torch.long),
        beta=0.0,
        temperature=TEMPERATURE,
    )
    return heads.gradients(loss)


SIDES: dict[str, Work] = {
    "limbeck": ours,
    "chunked": chunked,
    "gkd": partial(gkd, dtype=torch.float32),
    "gkd_bfloat16": partial(gkd, dtype=torch.bfloat16),
}


def cached(heads: Heads) -> dict[str, Tensor]:
    """What a cache keeps of the teacher: its k likeliest tokens, and the mass of the rest."""
    parts: dict[str, list[Tensor]] = {"top_ids": [], "top_logprobs": [], "tails": []}
    for hidden in heads.teacher_hidden.split(64):
        logits = (hidden @ heads.teacher_weight.T).float()
        logp, ids = logits.log_softmax(-1).topk(TOP)
        top = (logits / TEMPERATURE).log_softmax(-1).gather(1, ids)
        tails = torch.log1p(-top.exp().sum(-1))
        for part, found in zip(parts.values(), (ids, logp, tails), strict=True):
            part.append(found)
    return {name: torch.cat(found) for name, found in parts.items()}


def check(heads: Heads) -> dict[str, dict[str, float]]:
    """The gate: losses and gradients are those of float32, as far as bfloat16 goes."""
    exact = Heads(*(part.detach().float() for part in vars(heads).values()))
    exact.hidden.requires_grad_()
    exact.weight.requires_grad_()
    wanted = gkd(exact, torch.float32)
    errors = {}
    for side, work in SIDES.items():
        found = work(heads)
        loss = abs(found[0] / wanted[0] - 1)
        gradient = max(_distance(found[i], wanted[i]) for i in (1, 2))
        errors[side] = {"loss": loss, "gradient": gradient}
        print(f"  {side:<24} relative errors: loss {loss:.1e}, gradient {gradient:.1e}")
    assert errors["limbeck"]["loss"] < 1e-3, "another loss"
    assert errors["limbeck"]["gradient"] < 0.015, "other gradients"  # of 8 bits, in two products
    return errors


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def check_cache(heads: Heads) -> float:
    """The share of the whole divergence that the cached one has: never more than all of it."""
    share = ours(heads, cached(heads))[0] / ours(heads)[0]
    assert 0 < share <= 1.001, "a coarser divergence is a smaller one"
    return share


def peak_memory(side: str, vocabulary: int) -> float:
    """MB that a loss and its gradients need beyond hidden states and heads, in this process."""
    torch.set_num_threads(1)
    heads = make_heads(vocabulary)
    SIDES[side](make_heads(64, 8))  # loads what there is to load
    before = _resident("VmRSS")
    for _ in range(2):
        SIDES[side](heads)
    return _resident("VmHWM") - before  # ru_maxrss would begin at the parent's


def _resident(what: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise AssertionError("the system tells no resident size")


def memory(name: str) -> dict[str, float]:
    """Peak MB of each side, each in a process of its own."""
    peaks = {}
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    for side in SIDES:
        command = [sys.executable, __file__, "--memory", side, "--vocabulary", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=plain)
        peaks[side] = round(float(done.stdout.split()[-1]), 1)
        print(f"  {side:<24} {peaks[side]:10,.0f} MB", flush=True)
    return peaks


def speed(heads: Heads, repeats: int) -> dict[str, list[measure.Rate]]:
    """Tokens a second of each side, and of ours from a cache."""
    columns = cached(heads)

    def timed(work: Work) -> Callable[[], float]:
        def run() -> float:
            work(heads)
            return NUM_TOKENS

        return run

    contestants = {side: timed(work) for side, work in SIDES.items()}
    contestants["cached"] = timed(lambda heads: ours(heads, columns))
    return measure.interleaved(contestants, repeats)


def speed_case(
    name: str, target: float, us: list[measure.Rate], them: list[measure.Rate], unit: str
) -> dict[str, Any]:
    median, low, high = measure.ratio(us, them)
    noisy = sum(rate.noisy for rate in (*us, *them))
    more = {"low": round(low, 3), "high": round(high, 3), "noisy": noisy}
    return measure.case(name, median, unit, target, **more)


def memory_case(name: str, target: float, peaks: dict[str, float]) -> dict[str, Any]:
    """How many times the peer's peak is ours; `share` is ours of the peer's."""
    us = peaks["limbeck"]
    more = {"share": us / peaks["gkd"], "share_of_bfloat16_logits": us / peaks["gkd_bfloat16"]}
    more = {key: round(value, 3) for key, value in more.items()}
    return measure.case(name, peaks["gkd"] / us, "x less than GKD", target, **more, peaks=peaks)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    options.add_argument("--memory", choices=SIDES, help="this side's peak alone")
    options.add_argument("--vocabulary", choices=VOCABULARIES, default="152k")
    chosen = options.parse_args()
    if chosen.memory:
        print(peak_memory(chosen.memory, VOCABULARIES[chosen.vocabulary]))
        return
    small = make_heads(VOCABULARIES["32k"], 64)
    errors, share = check(small), check_cache(small)
    print(f"  the top {TOP} have {share:.1%} of the divergence between these random heads")
    cases, rates = {}, {}
    gflops = measure.gemm_gflops(torch.bfloat16)
    for name, vocabulary in VOCABULARIES.items():
        print(f"\nvocabulary {vocabulary:,}")
        peaks = memory(name)
        found = speed(make_heads(vocabulary), 2 if chosen.quick else 5)
        rates[name] = {side: [round(r.per_second, 1) for r in many] for side, many in found.items()}
        us, target = found["limbeck"], {"32k": 2.0, "152k": 1 / 0.45}[name]
        cases[f"memory_{name}"] = memory_case(f"memory_{name}", target, peaks)
        if name == "32k":
            peer = found["gkd_bfloat16"]
            cases["kl_32k"] = speed_case("kl_32k", 0.9, us, peer, "x GKD, bfloat16")
        else:
            cases["kl_152k"] = speed_case("kl_152k", 2.0, us, found["chunked"], "x TRL chunked")
            cases["cached_152k"] = speed_case(
                "cached_152k", 1.5, found["cached"], us, "x our whole KL"
            )
    order = ["kl_152k", "memory_152k", "cached_152k", "kl_32k", "memory_32k"]
    measure.finish(
        "distill",
        [cases[name] for name in order],
        ["torch", "transformers", "trl", "limbeck"],
        None if chosen.quick else Path(__file__).parent / "results" / "distill.json",
        errors=errors,
        tokens_per_second=rates,
        gemm_gflops=round(gflops, 1),
        threads=1,
    )


if __name__ == "__main__":
    main()
