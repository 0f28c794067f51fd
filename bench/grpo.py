"""A step of GRPO: Limbeck's building blocks against TRL's GRPOTrainer.

Qwen2 with random weights, of 1M parameters (tiny: 16 questions x 8 answers) and 11M (small: 8 x 8),
prompts of 16 to 96 tokens, bfloat16 products over float32 weights, on one thread. A step writes all
answers, rewards them and updates once. How long each answer becomes is drawn beforehand, anew in
each step and the same for both sides (fixed: 64; variable: lognormal, mean about 61, cap 128), and
neither knows before it is reached: TRL's last token is forced to be the end, Limbeck's is the last.

TRL runs `train()` over one step's questions, at the quickest of the settings that were tried: bf16,
no gradient checkpointing, no KL, one iteration, micro-batches of 16 or 32 rows (8 to 128 differ by
less than this machine's noise). A static cache does not run under its bf16 and is no quicker
without; continuous batching is slower. Weights that are bfloat16 themselves are 10 % quicker at 11M
parameters, but too coarse for a learning rate of 1e-6: that is another training.

    python bench/grpo.py           # everything, some 6 minutes
    python bench/grpo.py --quick   # tiny alone, two rounds instead of five, 70 % of the targets
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import measure

measure.one_thread()

import numpy as np  # noqa: E402  (behind the environment that torch reads when it is imported)
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import (  # noqa: E402
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from limbeck import models, newborn  # noqa: E402
from limbeck.engines.decoder import kernel, weights  # noqa: E402
from limbeck.engines.drafts import Draft  # noqa: E402
from limbeck.engines.pool import Pool  # noqa: E402
from limbeck.train.advantages import z_score  # noqa: E402
from limbeck.train.batch import Group, Output, pack_groups  # noqa: E402
from limbeck.train.head import TokenModel  # noqa: E402
from limbeck.train.policy import grpo  # noqa: E402
from limbeck.train.policy_loss import PolicyLoss  # noqa: E402
from limbeck.train.step import make_optimizer, train_step  # noqa: E402
from limbeck.types import Sampling  # noqa: E402

PAD, END = 0, 1
NUM_SAMPLES = 8
CAP = 128
LR, CLIP_RATIO, CLIP_NORM = 1e-6, 0.2, 1.0  # GRPOConfig's
MICRO_BATCH_TOKENS = 16384
COMMON = {"num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 512}


@dataclass(frozen=True)
class Size:
    """A model, how many questions a step asks, and how many rows TRL is quickest with."""

    vocabulary: int
    fields: Mapping[str, int]
    num_questions: int
    peer_rows: int


SIZES = {
    "tiny": Size(
        2048,
        {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 384,
        },
        16,
        32,
    ),
    "small": Size(
        4096,
        {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "intermediate_size": 1024,
        },
        8,
        16,
    ),
}
TARGETS = {"fixed": 3.0, "variable": 4.0}


@dataclass
class Parts:
    """CPU-seconds of a step's parts, step by step."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        self.seconds[name].append(time.process_time() - begin)

    def medians(self) -> dict[str, float]:
        """Of all steps but the first, which warms up."""
        return {name: float(np.median(values[1:])) for name, values in self.seconds.items()}


@dataclass(frozen=True)
class Task:
    """Questions, and of every step how long each answer becomes (questions * NUM_SAMPLES,)."""

    size: Size
    prompts: list[list[int]]
    kind: str

    def lengths(self, step: int) -> np.ndarray:
        random = np.random.default_rng(step)
        num = len(self.prompts) * NUM_SAMPLES
        if self.kind == "fixed":
            return np.full(num, 64)
        drawn = random.lognormal(np.log(61) - 0.13, 0.6, num)
        return drawn.round().clip(4, CAP).astype(int)

    @property
    def longest(self) -> int:
        return 64 if self.kind == "fixed" else CAP


def make_task(size: Size, kind: str) -> Task:
    random = np.random.default_rng(0)
    prompts = [
        random.integers(2, size.vocabulary, random.integers(16, 97)).tolist()
        for _ in range(size.num_questions)
    ]
    return Task(size, prompts, kind)


def make_model(size: Size) -> PreTrainedModel:
    return newborn.create_model(
        "qwen2", size.vocabulary, 0, eos_token_id=END, pad_token_id=PAD, **size.fields, **COMMON
    )


def make_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """One word a token."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    words = {"<pad>": PAD, "<end>": END} | {f"w{i}": i for i in range(2, size.vocabulary)}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<end>")


def reward(text: str) -> float:
    """How many different words it has."""
    return float(len({word for word in text.split() if word[0] == "w"}))


def ours(task: Task, parts: Parts) -> Callable[[], float]:
    student = make_model(task.size)
    model, optimizer = TokenModel(student), make_optimizer(student, LR)
    tokenizer = make_tokenizer(task.size)
    decoder = weights.read(copy.deepcopy(student).to(torch.bfloat16))
    step = iter(range(1_000_000))

    def learn() -> float:
        lengths = task.lengths(next(step))
        with parts.part("rollout"):
            decoder.load(student.state_dict(), student.config)
            drafts = write(decoder, task, lengths)
        with parts.part("reward"):
            rewards = [reward(tokenizer.decode(draft.ids)) for draft in drafts]
        with parts.part("update"):
            update(model, optimizer, groups_of(task, drafts, rewards))
        return float(lengths.sum())

    return learn


def write(decoder: weights.Decoder, task: Task, lengths: np.ndarray) -> list[Draft]:
    """A draft for each length, in their order; NUM_SAMPLES of them to a prompt."""
    operations = kernel.load()
    assert operations, "no C++ compiler"
    pool = Pool(
        decoder,
        operations,
        stops=(),
        decode=lambda ids: "",
        num_rows=len(lengths),
        num_prompts=len(task.prompts),
        longest_prompt=max(map(len, task.prompts)),
        longest_own=task.longest,
    )
    drafts = [
        Draft(
            tuple(task.prompts[index // NUM_SAMPLES]),
            seed=index,
            sampling=Sampling(1.0, 1.0, int(length)),
        )
        for index, length in enumerate(lengths)
    ]
    for draft in drafts:
        pool.add(draft)
    while pool.num_waiting or pool.num_writing:
        pool.step()
    return drafts


def groups_of(task: Task, drafts: Sequence[Draft], rewards: Sequence[float]) -> list[Group]:
    """What GRPO learns: each output's tokens weigh 1 / |o|."""
    advantages = z_score(np.array(rewards).reshape(-1, NUM_SAMPLES)).flatten()
    outputs = [
        Output(
            draft.ids,
            1 / len(draft.ids),
            str(index),
            {"advantages": float(advantages[index]), "old_logp": draft.logprobs},
        )
        for index, draft in enumerate(drafts)
    ]
    return [
        Group(prompt, outputs[index * NUM_SAMPLES : (index + 1) * NUM_SAMPLES])
        for index, prompt in enumerate(task.prompts)
    ]


def policy_loss() -> PolicyLoss:
    return PolicyLoss(lambda logp, tok: grpo(logp, tok, clip=CLIP_RATIO))


def update(model: TokenModel, optimizer: torch.optim.Optimizer, groups: Sequence[Group]) -> None:
    train_step(
        model,
        pack_groups(groups, MICRO_BATCH_TOKENS),
        optimizer,
        lr=LR,
        clip=CLIP_NORM,
        token_loss=policy_loss(),
        autocast=torch.bfloat16,
        total_weight=sum(len(group.outputs) for group in groups),
    )


class Ends(LogitsProcessor):
    """Each row of a batch says the end as its last token, and never before."""

    def __init__(self, num_prompt_tokens: int, lengths: Tensor) -> None:
        self.num_prompt_tokens, self.lengths = num_prompt_tokens, lengths

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        is_last = input_ids.shape[1] - self.num_prompt_tokens >= self.lengths - 1
        end = scores[:, END].clone()
        scores[is_last] = float("-inf")
        scores[:, END] = torch.where(is_last, end, float("-inf"))
        return scores


def make_trainer(task: Task, parts: Parts, **settings: Any) -> Any:
    import datasets
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    datasets.disable_progress_bars()

    def rewards(completions: list[str], **_: Any) -> list[float]:
        with parts.part("reward"):
            return [reward(text) for text in completions]

    rows = settings.pop("rows", task.size.peer_rows)
    num_outputs = len(task.prompts) * NUM_SAMPLES
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP_NORM,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=num_outputs // rows,
        num_generations=NUM_SAMPLES,
        max_completion_length=task.longest,
        epsilon=CLIP_RATIO,
        **{
            "beta": 0.0,
            "num_iterations": 1,
            "loss_type": "grpo",
            "bf16": True,
            "gradient_checkpointing": False,
            **settings,
        },
    )
    tokenizer = make_tokenizer(task.size)
    trainer = GRPOTrainer(
        make_model(task.size),
        rewards,
        config,
        train_dataset=datasets.Dataset.from_dict(
            {"prompt": [" ".join(f"w{i}" for i in prompt) for prompt in task.prompts]}
        ),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def theirs(task: Task, parts: Parts, **settings: Any) -> Callable[[], float]:
    trainer = make_trainer(task, parts, **settings)
    step = iter(range(1_000_000))
    generate = trainer.model.generate
    lengths = task.lengths(0)

    def write(input_ids: Tensor, **more: Any) -> Tensor:
        ends = Ends(input_ids.shape[1], torch.from_numpy(lengths))
        with parts.part("rollout"):
            return generate(
                input_ids=input_ids, logits_processor=LogitsProcessorList([ends]), **more
            )

    trainer.model.generate = write

    def learn() -> float:
        nonlocal lengths
        lengths = task.lengths(next(step))
        begin = time.process_time()
        trainer.train()
        seconds = time.process_time() - begin
        others = parts.seconds["rollout"][-1] + parts.seconds["reward"][-1]
        parts.seconds["update"].append(seconds - others)
        return float(lengths.sum())

    return learn


def check(size: Size) -> dict[str, tuple[float, float]]:
    """The gate: from the same texts and rewards the same loss and gradients as TRL's trainer.

    Old log-probabilities are moved by 0.1 or 0.5, either way: some ratios are clipped, and none is
    so near the edge that rounding decides. In float32 TRL adds 1e-4 to the deviation of the
    rewards, which is some 3 here: 1e-4 leaves room for that and for sums in another order. In
    bfloat16 (8 bits) TRL's own gradients are held against its own in float32, and ours may be off
    by 1.3 times as much, losses by 3e-3. The relative differences of whole gradients and of losses.
    """
    task = make_task(replace(size, num_questions=4), "variable")
    student, random = make_model(size), np.random.default_rng(0)
    drafts = write(weights.read(student), task, task.lengths(0))
    for draft in drafts:
        draft.ids[:] = [*(token if token > END else 2 for token in draft.ids[:-1]), END]
        draft.logprobs[:] = [
            logprob + random.choice((-0.5, -0.1, 0.1, 0.5)) for logprob in draft.logprobs
        ]
    rewards = [reward(make_tokenizer(size).decode(draft.ids)) for draft in drafts]
    (batch,) = pack_groups(groups_of(task, drafts, rewards), MICRO_BATCH_TOKENS)
    exact = their_gradient(task, drafts, bf16=False)
    found = {"trl_bfloat16": difference(their_gradient(task, drafts, bf16=True), exact)}
    for name in ("float32", "bfloat16"):
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
            loss = TokenModel(student)(batch, policy_loss()) / len(drafts)
        loss.backward()
        found[name] = difference((whole_gradient(student), loss.item()), exact)
    assert max(found["float32"]) < 1e-4, f"in float32 it is not TRL's step: {found}"
    gradient, loss_off = found["bfloat16"]
    assert gradient < 1.3 * found["trl_bfloat16"][0], f"in bfloat16 it is further off: {found}"
    assert loss_off < 3e-3, f"in bfloat16 its loss is another: {found}"
    return found


def difference(found: tuple[Tensor, float], exact: tuple[Tensor, float]) -> tuple[float, float]:
    """Of (gradient, loss) from what is exact, relatively."""
    (gradient, loss), (right_gradient, right_loss) = found, exact
    off = (gradient - right_gradient).norm() / right_gradient.norm()
    return float(off), abs(loss / right_loss - 1)


def whole_gradient(model: PreTrainedModel) -> Tensor:
    named = sorted(model.named_parameters())
    return torch.cat([parameter.grad.flatten() for _, parameter in named])


def their_gradient(task: Task, drafts: Sequence[Draft], bf16: bool) -> tuple[Tensor, float]:
    """(gradient, loss) of TRL's own trainer, made to write these drafts."""
    trainer = make_trainer(task, Parts(), rows=len(drafts), bf16=bf16)

    def padded(rows: Sequence[Sequence[float]]) -> Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PAD)

    def generate(input_ids: Tensor, **_: Any) -> Tensor:
        return torch.cat([input_ids, padded([draft.ids for draft in drafts])], 1)

    trainer.model.generate = generate
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [row for row in trainer.train_dataset for _ in range(NUM_SAMPLES)]
    inputs = trainer._generate_and_score_completions(rows)
    inputs["old_per_token_logps"] = padded([draft.logprobs for draft in drafts])
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return whole_gradient(trainer.model), loss.item()


def measured(name: str, kind: str, repeats: int, gate: float) -> tuple[dict[str, Any], dict]:
    """(the case, CPU-seconds of a step and of its parts by contestant)."""
    task = make_task(SIZES[name], kind)
    print(f"\n{name}, {kind}: {len(task.prompts)} questions x {NUM_SAMPLES} answers a step")
    parts = {"limbeck": Parts(), "trl": Parts()}
    contestants = {"limbeck": ours(task, parts["limbeck"]), "trl": theirs(task, parts["trl"])}
    before = measure.gemm_gflops(torch.bfloat16)
    rates = measure.interleaved(contestants, repeats)
    gflops = (before + measure.gemm_gflops(torch.bfloat16)) / 2
    median, low, high = measure.ratio(rates["limbeck"], rates["trl"])
    noisy = sum(rate.noisy for many in rates.values() for rate in many)
    seconds = {
        who: {k: round(v, 3) for k, v in part.medians().items()} for who, part in parts.items()
    }
    for who, found in seconds.items():
        print(f"  {who:<8}" + "".join(f"  {part} {value:.3f} s" for part, value in found.items()))
    times = {
        part: round(seconds["trl"][part] / seconds["limbeck"][part], 2)
        for part in ("rollout", "update")
    }
    more = {"low": round(low, 3), "high": round(high, 3), "noisy": noisy, **times}
    case = measure.case(f"{name}_{kind}", median, "x TRL", gate * TARGETS[kind], **more)
    limit = {"seconds": round(bound(task, gflops), 3), "gemm_gflops": round(gflops, 1)}
    return case, seconds | {"bound": limit}


def bound(task: Task, gflops: float) -> float:
    """Seconds of a step if nothing but the matrix products took time, at the rate measured now.

    Each prompt is read once and each answer once to write, and both thrice more to learn.
    """
    lengths = np.mean([task.lengths(step).sum() for step in range(100)])
    num_tokens = lengths + sum(map(len, task.prompts))
    context = float(np.mean([len(prompt) for prompt in task.prompts])) + 30
    return 4e-9 * num_tokens * models.flops_per_token(make_model(task.size), context) / gflops


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    options.add_argument("--out", type=Path, help="keeps the JSON line in this file")
    chosen = options.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    repeats, gate = (2, 0.7) if chosen.quick else (5, 1.0)
    cases, seconds, off = [], {}, {}
    for name in ("tiny",) if chosen.quick else SIZES:
        off[name] = check(SIZES[name])
        told = (f"{what} {a:.1e}, {b:.1e}" for what, (a, b) in off[name].items())
        print(f"{name}, gradient and loss off TRL's in float32: {'; '.join(told)}", flush=True)
        for kind in TARGETS:
            case, seconds[f"{name}_{kind}"] = measured(name, kind, repeats, gate)
            cases.append(case)
    packages = ["torch", "transformers", "trl", "limbeck"]
    more = {"seconds": seconds, "differences": off, "threads": 1}
    measure.finish("grpo", cases, packages, chosen.out, **more)
    sys.exit(not all(case["met"] for case in cases))


if __name__ == "__main__":
    main()
