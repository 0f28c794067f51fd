"""Training speed and memory: Limbeck's step against TRL's SFTTrainer.

An 11M-parameter Qwen2 with random weights (22M with 32,768 words) learns ragged samples of 20 to
400 random tokens, in bfloat16, on one thread. TRL runs `train()` over the same samples: as it comes
(`default`), and at the quickest of the settings that were tried (`packed`: packing bfd into rows
of 512, one a step, no gradient checkpointing; rows of 1,024, two of them, padding_free, sorting by
length and other batch sizes are slower here). Real tokens count, padding does not.

    python bench/sft.py           # everything, some 5 minutes
    python bench/sft.py --quick   # two rounds instead of five, and 70 % of the targets
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure

IS_MEMORY = "--memory" in sys.argv  # under the allocator's own settings, as users have them
if not IS_MEMORY:
    measure.one_thread()

import numpy as np  # noqa: E402  (behind the environment that torch reads when it is imported)
import torch  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

from limbeck import models, newborn  # noqa: E402
from limbeck.train.batch import Example, collate  # noqa: E402
from limbeck.train.head import TokenModel  # noqa: E402
from limbeck.train.losses import cross_entropy  # noqa: E402
from limbeck.train.step import make_optimizer, train_step  # noqa: E402

Samples = list[list[int]]
WORDS = {"v4k": 4096, "v32k": 32768}
SIZES = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}
NUM_SAMPLES = 8  # of a round; a step of Limbeck's, as TRL's unpacked ones
LR = 2e-5  # SFTConfig's
BFLOAT16 = {"bf16": True, "gradient_checkpointing": False}
PEERS: dict[str, dict[str, Any]] = {
    "default": {},
    "unpacked": BFLOAT16,
    "packed_step": {
        **BFLOAT16, "packing": True, "max_length": 1024, "per_device_train_batch_size": 2,
    },
    "packed": {
        **BFLOAT16, "packing": True, "max_length": 512, "per_device_train_batch_size": 1,
    },
}  # fmt: skip
# case -> (vocabulary, TRL's settings, how often as fast Limbeck has to be)
SPEED = {
    "v4k_packed": ("v4k", "packed", 1.7),
    "v4k_default": ("v4k", "default", 2.0),
    "v32k_packed": ("v32k", "packed", 2.0),
    "v32k_unpacked": ("v32k", "unpacked", 4.0),
}


def make_samples(num: int, vocabulary: int) -> Samples:
    random = np.random.default_rng(0)
    return [
        random.integers(2, vocabulary, length).tolist() for length in random.integers(20, 401, num)
    ]


def make_model(vocabulary: int) -> PreTrainedModel:
    return newborn.create_model("qwen2", vocabulary, 0, eos_token_id=1, pad_token_id=0, **SIZES)


def ours(vocabulary: int, samples: Samples) -> Callable[[], float]:
    model = TokenModel(make_model(vocabulary))
    optimizer = make_optimizer(model, LR)
    examples = [Example(ids, [1] * len(ids)) for ids in samples]

    def learn() -> float:
        for start in range(0, len(examples), NUM_SAMPLES):
            train_step(
                model,
                [collate(examples[start : start + NUM_SAMPLES])],
                optimizer,
                lr=LR,
                clip=1.0,
                token_loss=cross_entropy,
                autocast=torch.bfloat16,
            )
        return num_tokens(samples)

    return learn


def theirs(vocabulary: int, samples: Samples, settings: Mapping[str, Any]) -> Callable[[], float]:
    import datasets
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    words = WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<end>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="<end>"
    )
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    trainer = SFTTrainer(
        make_model(vocabulary),
        config,
        train_dataset=datasets.Dataset.from_dict({"input_ids": samples}),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)

    def learn() -> float:
        before = trainer._total_train_tokens
        trainer.train()
        assert trainer._total_train_tokens - before == num_tokens(samples), "not the same tokens"
        return num_tokens(samples)

    return learn


def num_tokens(samples: Samples) -> int:
    return sum(map(len, samples))


def check(vocabulary: int, samples: Samples) -> dict[str, float]:
    """The gate: loss and gradients are transformers' own. The largest relative differences.

    In float32 both sides round sums of up to 32,768 terms at 6e-8 each, in another order: 1e-5
    leaves room for that alone. In bfloat16 (8 bits) transformers' own gradients are up to 2.1 % off
    after six layers, so 3 % may be here, and 0.1 % of a loss, which is a mean of many tokens.
    """
    model = make_model(vocabulary)
    total = torch.zeros(())
    for ids in samples:
        logits = model(torch.tensor([ids])).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(
            logits, torch.tensor(ids[1:]), reduction="sum"
        )
    total.backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    found = {}
    for name, tolerance, loss_tolerance in (("float32", 1e-5, 1e-6), ("bfloat16", 3e-2, 1e-3)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
            loss = TokenModel(model)(
                collate([Example(ids, [1] * len(ids)) for ids in samples]), cross_entropy
            )
        loss.backward()
        off = [
            float((p.grad - wanted[key]).norm() / wanted[key].norm())
            for key, p in model.named_parameters()
            if p.grad is not None and key in wanted
        ]
        loss_off = abs(loss.item() / total.item() - 1)
        assert len(off) == len(wanted) and max(off) < tolerance, (
            f"{name}: gradients differ by {max(off)}"
        )
        assert loss_off < loss_tolerance, f"{name}: losses differ"
        found |= {f"{name}_gradient": max(off), f"{name}_loss": loss_off}
    return found


def peak_memory(side: str) -> float:
    """MB that a process of its own held at most while it learned (VmHWM)."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, __file__, "--memory", side]
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(text.stdout.split()[-1])


def tell_memory(side: str) -> None:
    """The child's part of `peak_memory`: two steps, so that the optimizer's state is there."""
    torch.set_num_threads(1)
    samples = make_samples(NUM_SAMPLES, WORDS["v32k"])
    if side == "limbeck":
        learn = ours(WORDS["v32k"], samples)
    else:
        learn = theirs(WORDS["v32k"], samples, PEERS[side])
    learn()
    learn()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def measured(
    words: str, repeats: int, gate: float
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """(cases, real tokens a CPU-second by contestant) of one vocabulary."""
    samples = make_samples(NUM_SAMPLES, WORDS[words])
    off = check(WORDS[words], samples[:4])
    print(f"\n{words}: {num_tokens(samples):,} tokens; largest differences from transformers:")
    print("  " + ", ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in off.items()))
    chosen = {case: line for case, line in SPEED.items() if line[0] == words}
    contestants = {"limbeck": ours(WORDS[words], samples)}
    for _, peer, _ in chosen.values():
        contestants[peer] = theirs(WORDS[words], samples, PEERS[peer])
    before = measure.gemm_gflops(torch.bfloat16)
    rates = measure.interleaved(contestants, repeats)
    gflops = (before + measure.gemm_gflops(torch.bfloat16)) / 2
    cases = []
    for case, (_, peer, target) in chosen.items():
        median, low, high = measure.ratio(rates["limbeck"], rates[peer])
        noisy = sum(rate.noisy for who in ("limbeck", peer) for rate in rates[who])
        more = {"low": round(low, 3), "high": round(high, 3), "noisy": noisy}
        cases.append(measure.case(case, median, "x TRL", gate * target, **more))
    speeds = {who: float(np.median([r.per_second for r in many])) for who, many in rates.items()}
    speeds["gemm_gflops"] = gflops
    speeds["bound"] = bound(make_model(WORDS[words]), samples, gflops)
    return cases, speeds


def bound(model: PreTrainedModel, samples: Samples, gflops: float) -> float:
    """Tokens a second if nothing but the matrix products took time, at the rate measured now."""
    context = sum(len(ids) * (len(ids) + 1) / 2 for ids in samples) / num_tokens(samples)
    return 1e9 * gflops / (3 * models.flops_per_token(model, context))


def memory_case(gate: float) -> dict[str, Any]:
    """Peak memory at 32,768 words against TRL's better setting with the same samples in a step.

    `packed` stands beside: it takes a row of 512 tokens a step, where Limbeck takes 8 samples.
    """
    sides = ("limbeck", "packed_step", "unpacked", "packed")
    peaks = {side: peak_memory(side) for side in sides}
    print("\npeak MB: " + ", ".join(f"{side} {peak:,.0f}" for side, peak in peaks.items()))
    least = min(peaks["packed_step"], peaks["unpacked"])
    more = {f"{side}_mb": round(peak) for side, peak in peaks.items()}
    return measure.case(
        "v32k_memory", least / peaks["limbeck"], "TRL's peak / ours", gate * 2, **more
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    options.add_argument("--out", type=Path, help="keeps the JSON line in this file")
    options.add_argument("--memory", help=argparse.SUPPRESS)  # one side's process
    chosen = options.parse_args()
    logging.disable(logging.WARNING)
    if chosen.memory:
        tell_memory(chosen.memory)
        return
    repeats, gate = (2, 0.7) if chosen.quick else (5, 1.0)
    cases: list[dict[str, Any]] = []
    rates: dict[str, dict[str, float]] = {}
    for words in WORDS:
        found, speeds = measured(words, repeats, gate)
        cases += found
        rates[words] = {who: round(speed, 1) for who, speed in speeds.items()}
    cases.append(memory_case(gate))
    share = rates["v4k"]["limbeck"] / rates["v4k"]["bound"]
    cases.append(measure.case("roof_share", share, "of the bf16 GEMM bound", gate * 0.5))
    packages: Sequence[str] = ["torch", "transformers", "trl", "limbeck"]
    measure.finish("sft", cases, packages, chosen.out, tokens_per_second=rates, threads=1)
    sys.exit(not all(case["met"] for case in cases))


if __name__ == "__main__":
    main()
