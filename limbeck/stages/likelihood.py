"""likelihood: how probable a model finds the gold answers, and how far it is from its teacher.

Small models are told apart by it long before they answer anything right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from limbeck import chat, ledger, metrics, tables
from limbeck.config import HowRun, ModelPath, ProblemsPath, StageConfig
from limbeck.engines.local import signature
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.types import Problem

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from limbeck.train.batch import Example, TokenBatch, Tokens
    from limbeck.train.head import TokenLoss, TokenModel

WRITES = {"scores": "scores"}


class Config(StageConfig):
    model: ModelPath
    """The model under test."""
    problems: Annotated[dict[str, ProblemsPath], Field(min_length=1)]
    """Splits by name; the gold answer of each problem is the text."""
    teacher: ModelPath | None = None
    """Also tells KL(teacher || model), over the whole vocabulary at temperature 1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What both compute in."""
    micro_batch_tokens: HowRun[PositiveInt] = 8192
    """Tokens that are computed at once."""


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `scores`: a row per split, metric (`nll`, `kl`) and problem, in nats per token."""
    import torch

    from limbeck import models
    from limbeck.train.head import TokenModel

    splits = {name: tables.read_problems(path) for name, path in config.problems.items()}
    tokenizer = models.load_tokenizer(config.model)
    loaded = models.load_model(config.model, config.dtype, out.machine.device)
    size = models.num_parameters(loaded)
    examples = _examples(tokenizer, splits, loaded.config.max_position_embeddings)
    model = TokenModel(loaded).eval()
    nats: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        nll, about = _nll(model, examples, size, config, out)
        if config.teacher:
            nats["kl"] = _kl(model, tokenizer, examples, size, config, out)
        nats["nll"] = nll
    rows = [
        _row(split, metric, problem, examples[problem.id], found[problem.id], size)
        for split, problems in splits.items()
        for metric, found in nats.items()
        for problem in problems
    ]
    tables.write_part(out.path / "scores", tables.to_table("scores", rows))
    results = metrics.summarise(rows, ("split", "metric"))
    for row in results:
        out.log(f"{row['split']:<10} {row['metric']:<10} {row['value']:8.4f}")
    return {
        "model": signature(config.model),
        "num_parameters": size,
        "num_bytes": sum(p.numel() * p.element_size() for p in loaded.parameters()),
        **about,
        "results": results,
    }


def _examples(
    tokenizer: PreTrainedTokenizerBase, splits: dict[str, list[Problem]], longest: int
) -> dict[str, Example]:
    """Each problem's prompt and gold answer, by its id; the answer alone is learned from."""
    from limbeck.train.batch import Example

    asked = {problem.id: problem for problems in splits.values() for problem in problems}
    pairs = [(problem.messages, problem.answer) for problem in asked.values()]
    examples = {}
    for name, (ids, mask) in zip(asked, chat.encode_examples(tokenizer, pairs), strict=True):
        if len(ids) > longest:
            what = f"has {len(ids):,} tokens, the model's context {longest:,}"
            raise UserError(f"problem {name}", what, "leave it out, or shorten its context")
        examples[name] = Example(ids, mask, name=name)
    return examples


def _nll(
    model: TokenModel, examples: dict[str, Example], size: int, config: Config, out: StageFolder
) -> tuple[dict[str, float], dict[str, float]]:
    """(nats of each answer, what reading them took), the first batch having gone before."""
    import torch

    from limbeck.train.losses import cross_entropy

    device = model.model.device
    batches = _batches(examples, config, out)
    num_tokens = sum(batch.num_tokens for batch in batches)
    with out.account("likelihood") as row:
        row |= {"tokens_in": num_tokens, "flops": ledger.forward_flops(size, num_tokens)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        _by_problem(model, batches[:1], cross_entropy, examples)
        begun = time.perf_counter()
        nats = _by_problem(model, batches, cross_entropy, examples)
        seconds = time.perf_counter() - begun
    peak = row["peak_memory_mib"]
    if device.type == "cuda":
        peak = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return nats, {"tokens_per_second": round(num_tokens / seconds, 1), "peak_memory_mib": peak}


def _kl(
    model: TokenModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: dict[str, Example],
    size: int,
    config: Config,
    out: StageFolder,
) -> dict[str, float]:
    """KL(teacher || model) over each answer, at temperature 1, in nats."""
    from limbeck.train import teaching
    from limbeck.train.divergences import forward_kl

    assert config.teacher is not None
    teacher = teaching.live(config.teacher, config.dtype, model.model, tokenizer, 1.0)
    if not teacher.width:  # they would have to be compared span by span
        what = "it cuts texts into other tokens, so there is no KL between the two"
        raise UserError(f"teacher {config.teacher}", what, "leave it out, or name another")

    def kl(logits: Tensor, tok: Tokens) -> Tensor:
        return forward_kl(*teacher.view(logits, tok, 1.0))

    batches = _batches(examples, config, out)
    num_tokens = sum(batch.num_tokens for batch in batches)
    with out.account("against teacher") as row:
        both = size + teacher.num_parameters
        row |= {"tokens_in": num_tokens, "flops": ledger.forward_flops(both, num_tokens)}
        seen = (replace(batch, columns=teacher.columns(batch)) for batch in batches)
        return _by_problem(model, seen, kl, examples)


def _batches(examples: dict[str, Example], config: Config, out: StageFolder) -> list[TokenBatch]:
    from limbeck.train.examples import pack_batches

    return pack_batches([*examples.values()], config.micro_batch_tokens, out.machine.device)


def _by_problem(
    model: TokenModel,
    batches: Iterable[TokenBatch],
    token_loss: TokenLoss,
    examples: dict[str, Example],
) -> dict[str, float]:
    """The sum of a loss over each document's learned tokens, by its name."""
    found = {}
    for batch in batches:
        each = _each(model, batch, token_loss).double().cpu()  # (M,)
        sizes = [_num_learned(examples[name]) for name in batch.document_names]
        for name, piece in zip(batch.document_names, each.split(sizes), strict=True):
            found[name] = float(piece.sum())
            if not math.isfinite(found[name]):
                what = "its nats are not finite"
                raise UserError(f"problem {name}", what, "take another dtype, or other weights")
    return found


def _each(model: TokenModel, batch: TokenBatch, token_loss: TokenLoss) -> Tensor:
    """A loss of each token that is learned, (M,); the head gives it tile by tile."""
    import torch

    tiles: list[Tensor] = []

    def keep(logits: Tensor, tok: Tokens) -> Tensor:
        tiles.append(token_loss(logits, tok))
        return tiles[-1]

    model(batch, keep)
    return torch.cat(tiles)


def _row(
    split: str, metric: str, problem: Problem, example: Example, nats: float, size: int
) -> dict[str, Any]:
    """A problem's score: nats per token, which counts as many times as there are tokens."""
    num_learned = _num_learned(example)
    return {
        "split": split,
        "metric": metric,
        "problem_id": problem.id,
        "domain": problem.domain,
        "num_samples": 1,
        "num_correct": 0,
        "num_failed": 0,
        "num_truncated": 0,
        "prompt_tokens": len(example.ids) - num_learned,
        "completion_tokens": num_learned,
        "flops": ledger.forward_flops(size, len(example.ids)),
        "value": nats / num_learned,
        "weight": float(num_learned),
    }


def _num_learned(example: Example) -> int:
    """Tokens of the answer; the first of all follows nothing, so it is never one."""
    return sum(example.loss_mask[1:])
