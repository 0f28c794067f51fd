"""What stages take that train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limbeck import ledger
from limbeck.estimates.memory import TrainingMemory
from limbeck.estimates.shapes import Shape
from limbeck.estimates.work import Effort, Given, Work, forward_flops, reading


def sft(config: Any, given: Given) -> Work:
    shape = given.model(config.model)
    tokens = _trained(config, given, shape)
    efforts = (_training(config, shape, tokens),)
    data = given.table(config.data)
    longest = min(config.max_length, data.longest)
    at_once = _at_once(config, longest, config.batch_size * data.tokens)
    memory = _training_memory(config, shape, at_once)
    return Work(shape, tokens, data.rows, 1, efforts, memory, model=shape)


def distill(config: Any, given: Given) -> Work:
    work = sft(config, given)
    if config.teacher is None:
        return work
    assert work.shape and isinstance(work.memory, TrainingMemory)
    teacher = given.model(config.teacher)
    efforts = [*work.efforts, reading(teacher, work.tokens, config.teacher_dtype)]
    if config.on_policy is not None:
        own = forward_flops(work.shape, work.tokens) * config.on_policy.student_share
        efforts.append(Effort("writing", own))
    beside = 2 if config.teacher_dtype == "bfloat16" else 4
    share = teacher.num_parameters / work.shape.num_parameters
    memory = replace(work.memory, whole_copies=beside * share)
    return replace(work, efforts=tuple(efforts), memory=memory)


def grpo(config: Any, given: Given) -> Work:
    """A rollout is written once, read by the reference and for log-probabilities of the trainer's
    own, where there are any, and trained on."""
    shape, length = given.model(config.model), given.length(config.max_tokens)
    each = config.questions_per_step * config.num_samples * length
    tokens = _steps(config, given, shape, each) * each
    dtype = config.engine.knobs.get("dtype", "float32") if config.engine else "float32"
    efforts = (
        Effort("writing", forward_flops(shape, tokens), dtype, spread=config.engine is not None),
        reading(shape, tokens * _num_readers(config), config.dtype),
        _training(config, shape, tokens),
    )
    memory = replace(
        _training_memory(config, shape, _at_once(config, config.max_tokens, each)),
        copies=4.0 if config.kl else 0.0,
        whole_copies=0.0 if config.engine else 4.0,
    )
    rows = given.table(config.problems).rows
    return Work(shape, tokens, rows, 1, efforts, memory, model=shape)


def reward_model(config: Any, given: Given) -> Work:
    """Of a pair both answers are read; no more of each than `max_length` tokens."""
    shape = given.model(config.model)
    rows = given.table(config.pairs or config.labelled)
    length = min(config.max_length, rows.tokens)
    tokens = config.num_epochs * rows.rows * length * (2 if config.pairs else 1)
    efforts = (_training(config, shape, tokens),)
    at_once = _at_once(config, min(config.max_length, rows.longest), config.batch_size * length)
    memory = _training_memory(config, shape, at_once)
    return Work(shape, tokens, rows.rows, 1, efforts, memory, spread=False, model=shape)


def choose(config: Any, given: Given) -> Work:
    """The trials are of one shape, as a rule; of the first it is known."""
    return Work(model=given.model(next(iter(config.trials.values())).model))


def _trained(config: Any, given: Given, shape: Shape) -> float:
    """Tokens that a training sees, by whichever budget it has."""
    if config.num_tokens is not None:
        return float(config.num_tokens)
    if config.num_flops is not None:
        return _left(config, given) / config.training_flops(1, 1) / shape.num_active
    return config.num_epochs * given.table(config.data).total


def _left(config: Any, given: Given) -> float:
    """Of a budget of FLOPs what others' writing leaves; NaN where nobody knows what that takes."""
    return max(config.num_flops - sum(map(given.flops_of, config.charge)), 0.0)


def _steps(config: Any, given: Given, shape: Shape, each: float) -> float:
    if config.num_steps is not None:
        return float(config.num_steps)
    if config.num_tokens is not None:
        return config.num_tokens / each
    forward = ledger.forward_flops(1, 1)
    per_token = config.training_flops(1, 1) + forward * (1 + _num_readers(config))
    return _left(config, given) / (per_token * shape.num_active * each)


def _num_readers(config: Any) -> int:
    """How often a rollout is read: by the reference, and by the trainer where it was not drawn
    from the model as it is, or where its log-probabilities are corrected."""
    as_it_is = (config.temperature > 0, config.top_p, config.top_k, config.min_p)
    needs_own = config.correction is not None or as_it_is != (True, 1.0, None, 0.0)
    return bool(config.kl) + needs_own


def _training(config: Any, shape: Shape, tokens: float) -> Effort:
    return Effort("training", config.training_flops(1, 1) * shape.num_active * tokens, config.dtype)


def _at_once(config: Any, longest: float, step: float) -> float:
    """Tokens of a piece: an example is never cut, whatever a piece may hold."""
    return max(min(longest, config.context or longest), min(config.micro_batch_tokens, step))


def _training_memory(config: Any, shape: Shape, at_once: float) -> TrainingMemory:
    return TrainingMemory(
        shape,
        at_once,
        config.dtype,
        config.gradient_checkpointing,
        config.optimizer,
        config.lora.rank if config.lora else None,
        config.lora.base if config.lora else "float32",
    )
