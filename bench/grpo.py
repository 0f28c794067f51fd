"""A step of GRPO: Limbeck's building blocks against TRL's GRPOTrainer.

Qwen2 with random weights, of 1M parameters (tiny: 16 questions x 8 answers) and 11M (small: 8 x 8),
prompts of 16 to 96 tokens, bfloat16 products over float32 weights, on one thread. A step writes all
answers, rewards them and updates once. How long each answer becomes is drawn beforehand, anew in
each step and the same for both sides (fixed: 64; variable: lognormal, mean about 61, cap 128), and
neither knows before it is reached: TRL's last token is forced to be the end, Limbeck's is the last.

TRL runs `train()` over one step's questions, at the quickest of the settings that were tried:
bf16, no gradient checkpointing, beta 0, one iteration, `PEER` rows a micro-batch, a dynamic cache
without compilation.

    python bench/grpo.py           # everything
    python bench/grpo.py --quick   # tiny alone, two rounds instead of seven, 70 % of the targets
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
        32,
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


def update(model: TokenModel, optimizer: torch.optim.Optimizer, groups: Sequence[Group]) -> None:
    train_step(
        model,
        pack_groups(groups, MICRO_BATCH_TOKENS),
        optimizer,
        lr=LR,
        clip=CLIP_NORM,
        token_loss=PolicyLoss(lambda logp, tok: grpo(logp, tok, clip=CLIP_RATIO)),
        autocast=torch.bfloat16,
        total_weight=sum(len(group.outputs) for group in groups),
    )


class Ends(LogitsProcessor):
    """Each row of a batch says the end as its last token, and never before."""

    def __init__(self, prompt: int, lengths: Tensor) -> None:
        self.prompt, self.lengths = prompt, lengths

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        is_last = input_ids.shape[1] - self.prompt >= self.lengths - 1
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
