"""sft: a student learns the texts of a data set, token by token."""

from __future__ import annotations

from collections import Counter
from typing import Any

from limbeck import chat, store
from limbeck.folder import StageFolder
from limbeck.student.validation import validation
from limbeck.train.config import TrainingConfig

WRITES = {"model": "model"}
RESUMES = True
DISTRIBUTED = True
SCRATCH = ("checkpoints",)  # until the manifest is there


class Config(TrainingConfig):
    pass


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`; resumes exactly at the newest checkpoint that verifies."""
    from limbeck import models
    from limbeck.train.adapters import num_parameters
    from limbeck.train.examples import pack_batches, plan_steps, read_lessons
    from limbeck.train.losses import cross_entropy
    from limbeck.train.training import Training, load_student

    tokenizer = models.load_tokenizer(config.model)
    student = load_student(config, out)
    size = num_parameters(student)
    longest = min(config.max_length, student.config.max_position_embeddings)
    lessons = read_lessons(config.data, tokenizer, longest)
    examples = lessons.examples
    out.log(chat.preflight(tokenizer, examples[0].ids, examples[0].loss_mask))
    steps = plan_steps(lessons.lengths, config, store.seed_of(config.seed, out.name), size)
    training = Training(config, out, student, tokenizer, len(steps))
    validate = validation(training, lessons)
    out.log(_begin(len(examples), lessons.refused, len(steps), training.state["step"], size))
    with training:
        for step in training.steps():
            chosen = [examples[i] for i in steps[step]]
            batches = pack_batches(chosen, config.micro_batch_tokens, out.machine.device)
            training.step(batches, cross_entropy)
            validate()
    num_refused = lessons.refused.total()
    num_rows = len(examples) + num_refused
    return training.save() | {
        "accounts": out.balance(num_rows, len(examples), rejected=num_refused),
        "num_examples": len(examples),
        "refused": dict(lessons.refused),
        "epochs": round(sum(map(len, steps[: training.state["step"]])) / len(examples), 2),
    }


def _begin(examples: int, refused: Counter[str], steps: int, step: int, size: int) -> str:
    left_out = "".join(f" ({num:,} {why}, left out)" for why, num in refused.items())
    going_on = f", going on at step {step:,}" if step else ""
    return f"{size:,} parameters, {examples:,} examples{left_out}, {steps:,} steps{going_on}"
