"""How a teacher comes to the batches that its student learns: live, or from what was kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import chat, models
from limbeck.errors import UserError
from limbeck.train.alignment import Vocabulary, align_vocabularies
from limbeck.train.batch import Example, TokenBatch, Tokens
from limbeck.train.cache import hash_tokenizer, open_cache
from limbeck.train.crossing import Crossing
from limbeck.train.distillation import Buckets, View, sampled, top_k, whole
from limbeck.train.examples import Lessons
from limbeck.train.head import TokenModel
from limbeck.train.step import Columns
from limbeck.train.sums import Sums
from limbeck.types import Message


class Text(NamedTuple):
    """An example as a text: what was asked and what follows; whether it ends its turn."""

    prompt: Sequence[Message]
    written: str
    is_whole: bool = True


def text_of(row: Mapping[str, Any]) -> Text:
    """A data set's row."""
    *prompt, answer = (Message(m["role"], m["content"]) for m in row["messages"])
    return Text(prompt, answer.content)


@dataclass(frozen=True)
class Teaching:
    """`columns` brings the teacher to a batch, `view` is how a loss sees it there.

    `start` takes all there is to learn, tells how well it can be taught or raises a UserError where
    it cannot. `read` takes examples that were written since, and the texts that they are: a teacher
    with another tokenizer reads these. `take` tells what could be compared since the last call.
    `bucket_of` gives the bucket of each of the student's tokens, None where it is not one each.
    `longest` is the most tokens that it reads, None where that is not known; `num_parameters` is 0
    where it is not in memory; `width` that of hidden states that stand beside the student's, or 0.
    `told` goes into the stage's summary.
    """

    view: View
    columns: Columns
    start: Callable[[Lessons], str] = lambda lessons: ""
    read: Callable[[Sequence[Example], Sequence[Text]], None] = lambda examples, texts: None
    take: Callable[[], Sums] = dict
    bucket_of: Callable[[Tensor], Tensor] | None = None
    longest: int | None = None
    num_parameters: int = 0
    width: int = 0
    told: dict[str, Any] = field(default_factory=dict)


# -- live ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A frozen teacher; its head is left to the loss, which computes it tile by tile."""

    name: str
    model: TokenModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def head(self) -> Tensor:
        """(W, C)."""
        return self.model.model.get_output_embeddings().weight

    @property
    def longest(self) -> int:
        """The most tokens that it reads."""
        return int(self.model.model.config.max_position_embeddings)

    @torch.no_grad()
    def hidden(self, batch: TokenBatch) -> Tensor:
        """Its last hidden states, (N, C). UserError names the rows where they are not finite."""
        hidden = self.model.hidden(batch)
        if not bool(torch.isfinite(hidden).all()):
            rows = ", ".join(batch.document_names[:8])
            what = f"its hidden states are not finite in the batch of rows {rows}"
            way_out = "nothing of this step was kept; take another teacher_dtype, or other rows"
            raise UserError(f"teacher {self.name}", what, way_out)
        return hidden


def live(
    name: str,
    dtype: str,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
) -> Teaching:
    """The teacher beside the student.

    Their tokens may have other ids and other padding; where the tokenizers cut texts otherwise,
    the teacher reads the texts themselves. UserError where that cannot be.
    """
    loaded = models.load_model(name, dtype, str(student.device))
    model = TokenModel(loaded.requires_grad_(False)).eval()
    teacher = Reader(name, model, models.load_tokenizer(name))
    rows = student.get_output_embeddings().weight.shape[0]
    taught = _compared(teacher, tokenizer, rows, temperature)
    return replace(taught, num_parameters=models.num_parameters(loaded))


def _compared(
    teacher: Reader, tokenizer: PreTrainedTokenizerBase, rows: int, temperature: float
) -> Teaching:
    """By the most direct way that the tokens allow; `rows` are those of the student's head."""
    is_same = hash_tokenizer(tokenizer) == hash_tokenizer(teacher.tokenizer)
    if is_same and rows == len(teacher.head):
        return _of_same_ids(teacher)
    vocabulary = align_vocabularies(tokenizer, teacher.tokenizer, rows, len(teacher.head))
    if vocabulary.is_same:
        return _of_same_ids(teacher)
    if vocabulary.reads_alike:
        taught = _of_shared_tokens(teacher, vocabulary, rows)
    else:
        taught = _of_other_tokens(teacher, tokenizer, rows, temperature)
    return replace(taught, told={**taught.told, "shared_tokens": vocabulary.shared})


def _of_same_ids(teacher: Reader) -> Teaching:
    return Teaching(
        view=whole(teacher.head),
        columns=lambda batch: {"teacher_hidden": teacher.hidden(batch)},
        bucket_of=lambda ids: ids,
        longest=teacher.longest,
        width=teacher.head.shape[1],
        told={"tokens": "the same ids", "shared_tokens": 1.0},
    )


def _of_shared_tokens(teacher: Reader, vocabulary: Vocabulary, rows: int) -> Teaching:
    """The same tokens by other ids, or with other rows behind them that no token has."""
    device = teacher.head.device
    vocabulary = replace(
        vocabulary,
        student_ids=vocabulary.student_ids.to(device),
        teacher_ids=vocabulary.teacher_ids.to(device),
    )
    shared = SharedMass(whole(teacher.head, vocabulary), vocabulary.teacher_ids)

    num_shared = len(vocabulary.student_ids)
    last = num_shared if min(rows, len(teacher.head)) > num_shared else num_shared - 1

    def bucket_of(ids: Tensor) -> Tensor:
        # A student may draw a row of its head that no token has: the last bucket, which is all such
        place = torch.searchsorted(vocabulary.student_ids, ids)
        known = torch.isin(ids, vocabulary.student_ids)
        return place.where(known, last)

    def columns(batch: TokenBatch) -> Mapping[str, Tensor]:
        place = bucket_of(batch.ids).clamp_max(len(vocabulary.teacher_ids) - 1)
        theirs = replace(batch, ids=vocabulary.teacher_ids[place])
        return {"teacher_hidden": teacher.hidden(theirs)}

    return Teaching(
        view=View(shared.rows, shared.view.tile),
        columns=columns,
        take=shared.take,
        bucket_of=bucket_of,
        longest=teacher.longest,
        width=teacher.head.shape[1],
        told={"tokens": "the same, aligned by what they are"},
    )


class SharedMass:
    """A view that also adds up the teacher's probability on the tokens that both have."""

    def __init__(self, view: View, teacher_ids: Tensor) -> None:
        self.view, self.teacher_ids = view, teacher_ids
        self.sums = torch.zeros(2, dtype=torch.float64)

    def rows(self, logits: Tensor, tok: Tokens, temperature: float) -> Buckets:
        """The view's buckets. Where they have no rest, the mass is what was renormalised."""
        student, teacher = self.view.rows(logits, tok, temperature)
        if teacher.shape[1] > len(self.teacher_ids):
            mass = -torch.expm1(teacher[:, -1])
        else:
            whole = tok.columns["teacher_logits"].float() / temperature
            mass = whole.log_softmax(-1).index_select(1, self.teacher_ids).exp().sum(-1)
        self.sums += torch.stack([(mass * tok.weights).sum(), tok.weights.sum()]).cpu()
        return student, teacher

    def take(self) -> Sums:
        """The sum of "shared_mass" since the last call."""
        mass, weight = self.sums.tolist()
        self.sums = torch.zeros_like(self.sums)
        return {"shared_mass": (mass, weight)}


def _of_other_tokens(
    teacher: Reader, tokenizer: PreTrainedTokenizerBase, rows: int, temperature: float
) -> Teaching:
    """The teacher reads each text in its own tokens, which are then matched with the student's."""
    crossing = Crossing(
        tokenizer, teacher.tokenizer, rows, teacher.head, teacher.hidden, temperature
    )

    def read(examples: Sequence[Example], texts: Sequence[Text]) -> None:
        theirs = _in_its_tokens(teacher, examples, texts)
        # Of what the student wrote it judges as much as it can read.
        crossing.read(examples, [_cut(example, teacher.longest) for example in theirs])

    def start(lessons: Lessons) -> str:
        theirs = _in_its_tokens(teacher, lessons.examples, [text_of(row) for row in lessons.rows])
        _refuse_too_long(teacher, theirs)
        crossing.read(lessons.examples, theirs)
        return crossing.check(lessons.examples, theirs)

    return Teaching(
        view=crossing.view(),
        columns=crossing.columns,
        start=start,
        read=read,
        take=crossing.take,
        told={"tokens": "others, compared through the text"},
    )


def _in_its_tokens(
    teacher: Reader, examples: Sequence[Example], texts: Sequence[Text]
) -> list[Example]:
    """The same examples as the teacher reads them."""
    pairs = [(text.prompt, text.written) for text in texts]
    encoded = chat.encode_examples(teacher.tokenizer, pairs)
    theirs = []
    for example, text, (ids, mask) in zip(examples, texts, encoded, strict=True):
        whole = Example(ids, mask, example.weight, example.name)
        end = len(ids) if text.is_whole else len(ids) - 1  # that of the turn
        theirs.append(_cut(whole, end))
    return theirs


def _cut(example: Example, end: int) -> Example:
    return replace(example, ids=example.ids[:end], loss_mask=example.loss_mask[:end])


def _refuse_too_long(teacher: Reader, theirs: Sequence[Example]) -> None:
    """UserError for a row that the teacher has no room for."""
    for example in theirs:
        if (num := len(example.ids)) > teacher.longest:
            what = f"reads {teacher.longest:,} tokens, row {example.name} is {num:,} of its own"
            raise UserError(f"teacher {teacher.name}", what, "lower max_length, or drop the row")


# -- from disk ----------------------------------------------------------------------------------


def cached(
    path: str,
    temperature: float,
    divergence: str,
    teacher: str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> Teaching:
    """What stage `score` kept of a teacher, which is not in memory.

    UserError where it cannot serve this divergence at this temperature, or is of another teacher.
    """
    cache = open_cache(path, tokenizer)
    if cache.method == "sample" and divergence != "forward_kl":
        what = f"random draws serve forward_kl alone, not {divergence}"
        raise UserError(path, what, "take forward_kl, or score by top_k")

    def start(lessons: Lessons) -> str:
        cache.check(lessons, temperature, teacher)
        return ""

    view = sampled() if cache.method == "sample" else top_k()
    return Teaching(view, cache.columns, start, told={"method": cache.method})
