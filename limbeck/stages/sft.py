"""sft: a student learns the texts of a data set, token by token; the loop is written out here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from limbeck import chat, ledger, store, tables
from limbeck.config import DatasetPath, HowRun, ModelPath, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from limbeck.train.batch import Example, TokenBatch
    from limbeck.train.step import NotFinite

WRITES = {"model": "model"}
RESUMES = True
SCRATCH = ("checkpoints",)  # until the manifest is there

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Config(StageConfig):
    model: ModelPath
    """The student: a model of this run, a folder or a Hub name."""
    data: DatasetPath
    """What to learn: rows of `messages` whose last is the assistant's."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """The highest learning rate, reached after warm-up."""
    final_lr_ratio: Share = 0.1
    """The cosine ends at this share of it (the paper: one tenth)."""
    warmup_ratio: Share = 0.03
    """The share of all steps in which the rate climbs."""
    batch_size: PositiveInt = 64
    """Examples per step, however they are packed."""
    num_epochs: PositiveFloat | None = None
    """How often each example is seen (the paper: 2 to 3), or"""
    num_tokens: PositiveInt | None = None
    """a budget: stop once so many tokens, prompts included, have been trained on."""
    context: PositiveInt | None = None
    """Stretches the student's context to so many tokens, and"""
    rope_theta: PositiveFloat | None = None
    """its rotary base with it."""
    max_length: PositiveInt = 32_768
    """Longer examples are left out whole and counted; nothing is cut silently."""
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    """AdamW's."""
    weight_decay: Share = 0.0
    clip: PositiveFloat = 1.0
    """The gradient's norm at most."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 computes in it and keeps weights in float32; it pays from about 10M parameters."""
    seed: int = 0
    """Orders the data."""
    micro_batch_tokens: HowRun[PositiveInt] = 16_384
    """Tokens that are computed at once; a step is accumulated over as many pieces as it needs."""
    checkpoint_steps: HowRun[PositiveInt] = 200
    """Steps between checkpoints; a killed training goes on at the newest, exactly."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.num_epochs is None) == (self.num_tokens is None):
            raise ValueError("needs either num_epochs or num_tokens; give one of the two")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`; resumes exactly at the newest checkpoint that verifies."""
    import torch

    from limbeck import models
    from limbeck.train.checkpoint import load_newest, save_checkpoint
    from limbeck.train.head import TokenModel
    from limbeck.train.losses import cross_entropy
    from limbeck.train.step import NotFinite, cosine_lr, make_optimizer, train_step

    tokenizer = models.load_tokenizer(config.model)
    student = models.load_model(
        config.model, "float32", out.machine.device, config.context, config.rope_theta
    )
    rows = tables.read_table(config.data).to_pylist()
    longest = min(config.max_length, student.config.max_position_embeddings)
    examples, refused = _examples(rows, tokenizer, longest, config.data)
    out.log(chat.preflight(tokenizer, examples[0].ids, examples[0].loss_mask))
    lengths = [len(example.ids) for example in examples]
    steps = plan_steps(lengths, config, store.seed_of(config.seed, out.name))

    model = TokenModel(student)
    optimizer = make_optimizer(
        model, config.lr, (config.betas[0], config.betas[1]), config.weight_decay
    )
    checkpoints = out.path / "checkpoints"
    state = load_newest(checkpoints, model, optimizer)
    state = state or {"step": 0, "loss_tokens": 0, "prompt_tokens": 0}
    size = models.num_parameters(student)
    warmup = round(config.warmup_ratio * len(steps))
    autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
    out.log(_begin(len(examples), refused, len(steps), state["step"], size))

    begin = state["step"]
    with out.progress(len(steps) - begin, "steps") as advance, ExitStack() as books:
        row = books.enter_context(out.account("train"))
        for step in range(begin, len(steps)):
            chosen = [examples[i] for i in steps[step]]
            batches = _pack(chosen, config.micro_batch_tokens, out.machine.device)
            lr = cosine_lr(step, len(steps), config.lr, warmup, config.final_lr_ratio)
            try:
                result = train_step(
                    model,
                    batches,
                    optimizer,
                    lr=lr,
                    clip=config.clip,
                    token_loss=cross_entropy,
                    autocast=autocast,
                )
            except NotFinite as error:
                raise _stopped(f"{out.name} step {step + 1}", error, batches) from error
            state["step"] = step + 1
            state["loss_tokens"] += result.num_loss_tokens
            state["prompt_tokens"] += result.num_tokens - result.num_loss_tokens
            row["tokens_in"] += result.num_tokens
            row["flops"] += ledger.training_flops(size, result.num_tokens)
            out.metric(step=step + 1, loss=result.loss, lr=lr, grad_norm=result.grad_norm)
            advance(1, f"loss {result.loss:.3f}")
            if (step + 1) % config.checkpoint_steps == 0 or step + 1 == len(steps):
                books.close()  # an account per checkpoint: a kill forgets no cost but its own
                row = books.enter_context(out.account("train"))
                save_checkpoint(checkpoints, step + 1, model, optimizer, state)
            store.failpoint(f"{out.name}.step-{step + 1}")
    student.set_attn_implementation("sdpa")
    models.save_model(student, tokenizer, out.path / "model")
    return {
        "accounts": out.balance(len(rows), len(examples), rejected=refused.total()),
        "num_parameters": size,
        "num_examples": len(examples),
        "refused": dict(refused),
        "num_steps": len(steps),
        "loss_tokens": state["loss_tokens"],
        "prompt_tokens": state["prompt_tokens"],
        "epochs": round(sum(map(len, steps)) / len(examples), 2),
    }


def _stopped(where: str, error: NotFinite, batches: Sequence[TokenBatch]) -> UserError:
    rows = [name for index in error.batches for name in batches[index].document_names]
    what = f"{error.what} is not finite in the batch of rows {', '.join(rows[:8])}"
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    way_out = "nothing of this step was kept; lower the lr, or look at these rows"
    return UserError(where, what + more, way_out)


def _begin(examples: int, refused: Counter[str], steps: int, step: int, size: int) -> str:
    left_out = "".join(f" ({num:,} {why}, left out)" for why, num in refused.items())
    going_on = f", going on at step {step:,}" if step else ""
    return f"{size:,} parameters, {examples:,} examples{left_out}, {steps:,} steps{going_on}"


def _examples(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, longest: int, where: str
) -> tuple[list[Example], Counter[str]]:
    """The data set's rows as tokens and loss masks, and how many were left out, by reason."""
    from limbeck.train.batch import Example

    pairs, weights, names = [], [], []
    for number, row in enumerate(rows):
        messages = [Message(m["role"], m["content"]) for m in row.get("messages") or ()]
        if len(messages) < 2 or messages[-1].role != "assistant":
            what = f"row {number} does not end with an assistant's message"
            raise UserError(where, what, "give rows of `messages`: user, then assistant")
        pairs.append((messages[:-1], messages[-1].content))
        weights.append(1.0 if row.get("weight") is None else row["weight"])
        names.append(str(number if row.get("id") is None else row["id"]))
    encoded = chat.encode_examples(tokenizer, pairs)
    examples, refused = [], Counter[str]()
    for (ids, mask), weight, name in zip(encoded, weights, names, strict=True):
        if len(ids) > longest:
            refused["too long"] += 1
        elif weight <= 0:
            refused["of no weight"] += 1
        else:
            examples.append(Example(ids, mask, weight, name))
    if not examples:
        told = ", ".join(f"{num:,} {why}" for why, num in refused.items()) or "it is empty"
        what = f"holds no example of at most {longest} tokens to learn from ({told})"
        raise UserError(where, what, "raise max_length and context, or give other rows")
    return examples, refused


def plan_steps(lengths: Sequence[int], config: Config, seed: int) -> list[list[int]]:
    """Which examples each step learns: shuffled epochs, one behind the other, cut into batches."""
    steps: list[list[int]] = []
    batch: list[int] = []
    num_examples = round((config.num_epochs or 0) * len(lengths))
    tokens = 0
    for seen, index in enumerate(_endless(len(lengths), seed), 1):
        batch.append(index)
        tokens += lengths[index]
        enough = seen >= num_examples if config.num_tokens is None else tokens >= config.num_tokens
        if len(batch) == config.batch_size or enough:
            steps.append(batch)
            batch = []
        if enough:
            return steps
    raise AssertionError("an endless stream ended")


def _endless(num: int, seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(num).tolist()


def _pack(examples: Sequence[Example], max_tokens: int, device: str) -> list[TokenBatch]:
    from limbeck.train.batch import collate, pack

    bins = pack([len(example.ids) for example in examples], max_tokens)
    return [collate([examples[i] for i in chosen], device) for chosen in bins]
