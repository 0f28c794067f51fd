"""reward_model: a model learns to say how good an answer is, as one number.

From pairs which of two answers is better, as DeepSeek-R1's helpfulness was learned; or from
labelled answers whether one is safe, as its harmlessness was (2501.12948v2, 3.1). The numbers that
stand here as defaults are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from limbeck import chat, ledger, metrics, outside, store, tables
from limbeck.config import DatasetPath, PairsPath
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.rewards.reading import Reads, encode
from limbeck.train.config import TrainingConfig
from limbeck.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.train.preferences import Judged
    from limbeck.train.training import Training

WRITES = {"model": "model"}
RESUMES = True
SCRATCH = ("checkpoints",)  # until the manifest is there
USES = ("limbeck.rewards",)
NOT_HERE = ("num_tokens", "num_flops", "lora", "validation", "context", "rope_theta")


class Config(TrainingConfig):
    BUDGETS: ClassVar[tuple[str, ...]] = ("num_epochs",)

    pairs: PairsPath | None = None
    """Pairs of answers, the better one first, as stage `prefer` writes them, or rows of `messages`,
    `chosen` and `rejected`; or"""
    labelled: DatasetPath | None = None
    """answers that are acceptable or are not: rows of `messages`, the last of them the assistant's,
    and `safe`, true or false."""
    heldout: PairsPath | None = None
    """Pairs that nobody learns from: how many of them are ranked right is reported."""
    heldout_labelled: DatasetPath | None = None
    """The same for labelled answers."""
    reads: Reads | None = None
    """What is read of an answer, in training and ever after: by default the summary of pairs, and
    the whole of labelled answers."""
    lr: Annotated[float, Field(gt=0, le=1)] | None = 6e-6
    num_epochs: PositiveFloat = 1.0
    """How often each pair or answer is seen."""
    batch_size: PositiveInt = 256
    """Pairs or answers per step."""
    max_length: PositiveInt = 8192
    """Tokens of an answer with its question; longer ones are left out whole and counted. There is
    no limit once it is trained."""

    @model_validator(mode="after")
    def _is_a_reward_model(self) -> Self:
        for name in NOT_HERE:
            if getattr(self, name) is not None:
                raise ValueError(f"a reward model takes no {name}; drop it")
        if (self.pairs is None) == (self.labelled is None):
            raise ValueError("needs something to learn from; give one of pairs and labelled")
        other = "heldout_labelled" if self.pairs else "heldout"
        if getattr(self, other) is not None:
            raise ValueError(f"{other} is not what it learns from; hold out rows of the same kind")
        return self

    @property
    def part(self) -> Reads:
        """What is read."""
        return self.reads or ("summary" if self.pairs else "whole")


@dataclass(frozen=True)
class Rows:
    """What is learned from, or ranked: `problems` says which problem each is of."""

    judged: list[Judged]
    problems: list[str]
    num_too_long: int


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`; resumes exactly at the newest checkpoint that verifies."""
    from limbeck import models, sharding
    from limbeck.train.preferences import ScoreModel, pack_judged, pairwise, pointwise
    from limbeck.train.training import Training

    tokenizer = models.load_tokenizer(config.model)
    seed, device = store.seed_of(config.seed, out.name), out.machine.device
    student = models.load_reward_model(config.model, device=device, seed=seed % 2**63)
    student.config.reads = config.part
    set_padding(student, tokenizer)
    if config.gradient_checkpointing:
        sharding.recompute_activations(student)
    rows = read_rows(config.pairs or config.labelled or "", config, tokenizer)
    heldout_path = config.heldout or config.heldout_labelled
    heldout = read_rows(heldout_path, config, tokenizer) if heldout_path else None
    if heldout is not None:
        refuse_known(heldout_path or "", heldout, rows)
    steps = plan(config, len(rows.judged), seed)
    training = Training(config, out, student, tokenizer, len(steps), ScoreModel)
    out.log(f"{training.num_parameters:,} parameters, {len(rows.judged):,} rows to learn from")
    loss = pairwise if config.pairs else pointwise
    with training:
        for step in training.steps():
            chosen = [rows.judged[index] for index in steps[step]]
            training.step(pack_judged(chosen, config.micro_batch_tokens, device), loss)
    found = None if heldout is None else ranked(heldout, training)
    num, too_long = len(rows.judged), rows.num_too_long
    return training.save() | {
        "accounts": out.balance(num + too_long, num, rejected=too_long),
        "reads": config.part,
        "heldout": found,
    }


def set_padding(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Other programs read the last token that is no padding: none of these may end a text."""
    end = chat.end_of_turn(tokenizer)
    fit = [tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    padding = next((token for token in fit if token not in (None, end)), None)
    if padding is None:
        what = "has no special token for padding but the one that ends a turn"
        raise UserError(f"tokenizer {tokenizer.name_or_path}", what, "add a padding token")
    tokenizer.pad_token_id = student.config.pad_token_id = padding


def read_rows(path: str, config: Config, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows of a table as tokens, without those that are too long.

    UserError for a row that is not what it should be, and where none is left.
    """
    from limbeck.train.preferences import Judged

    table = tables.read_table(path).to_pylist()
    if not table:
        raise UserError(path, "is empty", "give a table with rows")
    read = _pair if config.pairs else _labelled
    told = [read(row, f"{path}: row {number}") for number, row in enumerate(table)]
    encoded = iter(encode(tokenizer, [pair for texts, _ in told for pair in texts], config.part))
    judged, problems = [], []
    for number, (row, (texts, label)) in enumerate(zip(table, told, strict=True)):
        ids = tuple(islice(encoded, len(texts)))
        if max(map(len, ids)) <= config.max_length:
            judged.append(Judged(ids, f"{number} {row.get('id') or ''}".strip(), label))
            problems.append(str(row.get("problem_id") or number))
    if not judged:
        what = f"holds nothing of at most {config.max_length} tokens ({len(table):,} longer)"
        raise UserError(path, what, "raise max_length, or give other rows")
    return Rows(judged, problems, len(table) - len(judged))


Told = tuple[list[tuple[list[Message], str]], float]
"""The texts of a row, each behind what was asked, and its label."""


def _pair(row: dict[str, Any], where: str) -> Told:
    texts = [row.get("chosen"), row.get("rejected")]
    answers = [{"role": "assistant", "content": text} for text in texts]
    asked = row.get("messages")
    if not all(outside.is_lesson([*(asked or []), answer]) for answer in answers):
        what = "is no pair: it needs messages, chosen and rejected"
        raise UserError(where, what, "give texts, and at least one message")
    messages = [Message(turn["role"], turn["content"]) for turn in row["messages"]]
    return [(messages, str(text)) for text in texts], 1.0


def _labelled(row: dict[str, Any], where: str) -> Told:
    if not outside.is_lesson(row.get("messages")) or not isinstance(row.get("safe"), bool):
        what = "is no labelled answer: it needs messages, the last the assistant's, and safe"
        raise UserError(where, what, "let safe be true or false in each row")
    *messages, answer = (Message(turn["role"], turn["content"]) for turn in row["messages"])
    return [(messages, answer.content)], float(row["safe"])


def refuse_known(path: str, heldout: Rows, rows: Rows) -> None:
    """UserError where held-out rows are learned from, too."""
    known = {tuple(map(tuple, each.texts)) for each in rows.judged}
    if num := sum(tuple(map(tuple, each.texts)) in known for each in heldout.judged):
        what = f"{num:,} of its {len(heldout.judged):,} rows are trained on"
        raise UserError(path, what, "hold rows out: take another split")


def plan(config: Config, num_rows: int, seed: int) -> list[list[int]]:
    """Which rows each step learns."""
    from limbeck.train.examples import endless

    order = list(islice(endless(num_rows, seed), max(1, round(config.num_epochs * num_rows))))
    return [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]


def ranked(heldout: Rows, training: Training) -> dict[str, Any]:
    """The share of held-out rows that the model ranks right, and what length alone could reach."""
    from limbeck.train.preferences import is_right, right_by_length, score_judged

    out, size = training.out, training.config.micro_batch_tokens
    with out.account("held-out rows") as row:
        scores = score_judged(training.model.eval(), heldout.judged, size, out.machine.device)
        row["tokens_in"] = sum(each.num_tokens for each in heldout.judged)
        row["flops"] = ledger.forward_flops(training.num_parameters, row["tokens_in"])
    right = [is_right(each, found) for each, found in zip(heldout.judged, scores, strict=True)]
    by_problem = _by_problem(right, heldout.problems)
    by_length = _by_problem(right_by_length(heldout.judged), heldout.problems)
    accuracy, length_alone = _told(by_problem), _told(by_length)
    p = metrics.paired_test(by_problem, by_length).p
    out.log(f"held out: {_said(accuracy)} of {len(right):,} ranked right")
    out.log(f"by length alone at best {_said(length_alone)}, p = {p:.2g}")
    return {"num": len(right), "accuracy": accuracy, "length_alone": length_alone, "p": p}


def _by_problem(right: Sequence[float], problems: Sequence[str]) -> list[float]:
    """Each problem's mean: problems are what was drawn at random."""
    groups: dict[str, list[float]] = {}
    for value, problem in zip(right, problems, strict=True):
        groups.setdefault(problem, []).append(value)
    return [sum(values) / len(values) for values in groups.values()]


def _told(means: Sequence[float]) -> dict[str, float]:
    low, high = metrics.interval(means)
    return {"value": sum(means) / len(means), "low": low, "high": high}


def _said(told: dict[str, float]) -> str:
    return f"{told['value']:.1%} ({told['low']:.1%} to {told['high']:.1%})"
