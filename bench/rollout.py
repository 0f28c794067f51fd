"""Sampling speed: Limbeck's local engine against transformers' generate.

64 prompts of 16 to 96 tokens, 8 samples each, an 11M-parameter Qwen2 with random weights. Both
sides write the same number of useful tokens: every text's length is drawn beforehand (variable:
lognormal, mean about 61, cap 128; fixed: 64), and neither knows it before it is reached.

    python bench/rollout.py           # everything, some 25 minutes
    python bench/rollout.py --quick   # 16 prompts, two rounds, bfloat16
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import measure

measure.one_thread()

import numpy as np  # noqa: E402  (behind the environment that torch reads when it is imported)
import torch  # noqa: E402
from transformers import StoppingCriteria, StoppingCriteriaList  # noqa: E402

from limbeck import models, newborn  # noqa: E402
from limbeck.engines.decoder import kernel, weights  # noqa: E402
from limbeck.engines.decoder.plain import Plain  # noqa: E402
from limbeck.engines.drafts import Draft  # noqa: E402
from limbeck.engines.pool import Pool  # noqa: E402
from limbeck.types import Sampling  # noqa: E402

SAMPLES = 8
CAP = 128
RED = "#c0392b"
SIZES = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True)
class Task:
    """Prompts, and how long each of their samples becomes (prompts x SAMPLES)."""

    prompts: list[tuple[int, ...]]
    lengths: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


def make_task(num_prompts: int, fixed: bool) -> Task:
    random = np.random.default_rng(0)
    prompts = [
        tuple(random.integers(1, 4096, random.integers(16, 97)).tolist())
        for _ in range(num_prompts)
    ]
    drawn = random.lognormal(np.log(61) - 0.13, 0.6, (num_prompts, SAMPLES))
    lengths = np.full(drawn.shape, 64) if fixed else drawn.round().clip(4, CAP).astype(int)
    return Task(prompts, lengths)


class Lengths(StoppingCriteria):
    """Ends each row of a batch where the task says."""

    def __init__(self, prompt: int, lengths: torch.Tensor) -> None:
        self.prompt, self.lengths = prompt, lengths

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return input_ids.shape[1] - self.prompt >= self.lengths


def theirs(model: torch.nn.Module, task: Task) -> Callable[[], float]:
    """generate with all samples in one batch."""
    longest = max(map(len, task.prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + [*p] for p in task.prompts])
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in task.prompts])
    ended = Lengths(longest, torch.from_numpy(task.lengths.flatten()))

    def write() -> float:
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=seen,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=SAMPLES,
                max_new_tokens=int(task.lengths.max()),
                stopping_criteria=StoppingCriteriaList([ended]),
                eos_token_id=None,
                pad_token_id=0,
            )
        return task.num_tokens

    return write


def ours(model: torch.nn.Module, task: Task, compiled: bool) -> Callable[[], float]:
    decoder = weights.read(model)
    built = kernel.load()
    assert built, "no C++ compiler"
    num_rows = task.lengths.size

    def write() -> float:
        pool = Pool(
            decoder,
            built if compiled else Plain(),
            stops=(),
            decode=lambda ids: "",
            num_rows=num_rows,
            num_prompts=len(task.prompts),
            longest_prompt=max(map(len, task.prompts)),
            longest_own=CAP,
        )
        drafts = []
        for prompt, lengths in zip(task.prompts, task.lengths, strict=True):
            for length in lengths.tolist():
                drafts.append(Draft(prompt, len(drafts), Sampling(1.0, 1.0, length)))
                pool.add(drafts[-1])
        while pool.num_waiting or pool.num_writing:
            pool.step()
        assert sum(len(draft.ids) for draft in drafts) == task.num_tokens
        return task.num_tokens

    return write


def check(model: torch.nn.Module, task: Task) -> int:
    """The gate: greedy texts in float32 are generate's. How many were compared."""
    decoder, built = weights.read(model), kernel.load()
    assert built
    for operations in (built, Plain()):
        pool = Pool(
            decoder, operations, stops=(), decode=lambda ids: "", num_rows=7, num_prompts=7,
            longest_prompt=96, longest_own=32,
        )  # fmt: skip
        drafts = [Draft(p, 0, Sampling(0.0, max_tokens=32)) for p in task.prompts[:32]]
        for draft in drafts:
            pool.add(draft)
        while pool.num_waiting or pool.num_writing:
            pool.step()
        for draft in drafts:
            ids = torch.tensor([draft.prompt])
            wanted = model.generate(
                ids, do_sample=False, max_new_tokens=32, eos_token_id=None, pad_token_id=0
            )
            assert draft.ids == wanted[0, ids.shape[1] :].tolist(), "greedy texts differ"
    return len(drafts)


def bound(model: torch.nn.Module, task: Task, gflops: float) -> float:
    """Tokens a second if nothing but the matrix products took time, at the rate measured now."""
    context = float(np.mean([len(p) for p in task.prompts])) + task.lengths.mean() / 2
    return 1e9 * gflops / models.flops_per_token(model, context)


def measured(
    name: str, model: torch.nn.Module, task: Task, repeats: int, plain: bool
) -> tuple[list[dict], dict[str, float]]:
    """(cases, tokens a second by contestant) of one task in the model's own type."""
    print(f"\n{name}: {task.num_tokens:,} tokens, mean length {task.lengths.mean():.1f}")
    contestants = {"transformers": theirs(model, task), "limbeck": ours(model, task, True)}
    if plain:
        contestants["limbeck, no kernel"] = ours(model, task, False)
    before = measure.gemm_gflops(model.dtype)
    rates = measure.interleaved(contestants, repeats)
    gflops = (before + measure.gemm_gflops(model.dtype)) / 2
    found = {who: float(np.median([r.per_second for r in many])) for who, many in rates.items()}
    noisy = sum(rate.noisy for many in rates.values() for rate in many)
    cases = []
    for who, many in rates.items():
        if who != "transformers":
            median, low, high = measure.ratio(many, rates["transformers"])
            more = {"low": round(low, 3), "high": round(high, 3), "noisy": noisy}
            cases.append({"who": who, "ratio": median, **more})
    found["gemm_gflops"], found["bound"] = gflops, bound(model, task, gflops)
    return cases, found


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    quick = options.parse_args().quick
    num_prompts = 16 if quick else 64
    model = newborn.create_model("qwen2", 4096, 0, eos_token_id=0, pad_token_id=0, **SIZES).eval()
    variable, fixed = make_task(num_prompts, False), make_task(num_prompts, True)
    print(
        f"{models.num_parameters(model):,} parameters; {check(model, variable)} greedy texts equal"
    )
    cases, rates = [], {}
    targets = {"variable": 5.0, "fixed": 2.5, "variable_no_kernel": 2.0}
    for dtype in (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32):
        model = model.to(dtype)
        suffix = "" if dtype == torch.bfloat16 else "_float32"
        for name, task in (("variable", variable), ("fixed", fixed)):
            repeats = 2 if quick else 3 if suffix else 5  # float32 stands beside, without targets
            plain = name == "variable" and not suffix
            found, speeds = measured(f"{name}, {dtype}", model, task, repeats, plain)
            rates[name + suffix] = {who: round(value, 1) for who, value in speeds.items()}
            for line in found:
                what = name + ("_no_kernel" if line.pop("who") != "limbeck" else "")
                target = None if suffix else targets[what]
                value = line.pop("ratio")
                cases.append(measure.case(what + suffix, value, "x generate", target, **line))
            if name == "variable" and not suffix:
                share = speeds["limbeck"] / speeds["bound"]
                cases.append(measure.case("roof_share", share, "of the GEMM bound", 0.4))
    packages = ["torch", "transformers", "limbeck"]
    results = Path(__file__).parent / "results"
    if not quick:
        draw_chart(rates, results / "rollout.png")
    to = None if quick else results / "rollout.json"
    measure.finish("rollout", cases, packages, to, tokens_per_second=rates, threads=1)


def draw_chart(rates: dict[str, dict[str, float]], path: Path) -> None:
    """Bars of tokens a second, a group for each task and type."""
    from matplotlib import pyplot

    contestants: Sequence[str] = ("transformers", "limbeck, no kernel", "limbeck")
    colours = {"transformers": "#b8b8c0", "limbeck, no kernel": "#7fb2d9", "limbeck": "#1f6fb2"}
    figure, axes = pyplot.subplots(figsize=(8, 4.2))
    for place, speeds in enumerate(rates.values()):
        shown = [who for who in contestants if who in speeds]
        for offset, who in enumerate(shown):
            x = place + (offset - (len(shown) - 1) / 2) * 0.27
            axes.bar(x, speeds[who], 0.25, color=colours[who], label=who if place == 0 else None)
            times = f"{speeds[who] / speeds['transformers']:.1f}x"
            axes.text(
                x, speeds[who], f"{speeds[who]:,.0f}\n{times}", ha="center", va="bottom", size=8
            )
        axes.hlines(speeds["bound"], place - 0.42, place + 0.42, colors="#c0392b", linestyles=":")
    axes.plot([], [], color="#c0392b", linestyle=":", label="matrix products alone")
    labels = [
        name.replace("_", ", ") if "float32" in name else f"{name}, bfloat16" for name in rates
    ]
    axes.set_xticks(range(len(rates)), labels)
    axes.set_ylabel("tokens per CPU-second, one thread")
    axes.set_title("64 prompts x 8 samples, 11M parameters", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
