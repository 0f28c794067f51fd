"""sft: a student learns the texts of a data set, token by token."""

from __future__ import annotations

from typing import Any

from limbeck import chat, store
from limbeck.folder import StageFolder
from limbeck.student.validation import validation
from limbeck.train.config import LessonsConfig

WRITES = {"model": "model"}
RESUMES = True
DISTRIBUTED = True
SCRATCH = ("checkpoints",)  # until the manifest is there


class Config(LessonsConfig):
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
    longest = min(config.max_length, student.config.max_position_embeddings)
    lessons = read_lessons(config.data, tokenizer, longest)
    examples = lessons.examples
    out.log(chat.preflight(tokenizer, examples[0].ids, examples[0].loss_mask))
    seed = store.seed_of(config.seed, out.name)
    steps = plan_steps(lessons.lengths, config, seed, num_parameters(student))
    training = Training(config, out, student, tokenizer, len(steps))
    validate = validation(training, lessons)
    out.log(training.told(lessons))
    with training:
        for step in training.steps():
            chosen = [examples[i] for i in steps[step]]
            batches = pack_batches(chosen, config.micro_batch_tokens, out.machine.device)
            training.step(batches, cross_entropy)
            validate()
    seen = sum(map(len, steps[: training.state["step"]]))
    return training.save() | {
        **lessons.account(out),
        "num_examples": len(examples),
        "epochs": round(seen / len(examples), 2),
    }
