"""Distillation from a teacher with another tokenizer: each model reads the text in its own tokens.

A stage that distils so makes, once,

    crossing = Crossing(student_tokenizer, teacher_tokenizer, student_rows, teacher_head_weight,
                        hidden, temperature)
    out.log(crossing.check(students, teachers))    # a UserError where too little can be compared
    crossing.read(students, teachers)              # on-policy: before each step
    mix = Mix(crossing.view(), divergence, temperature, alpha)

and then learns by `training.step(batches, mix, columns=crossing.columns)`. `students` and
`teachers` are the same rows, in the same order, each encoded by the model's own tokenizer and chat
template; `hidden(batch)` gives the teacher's last hidden states (N, C) of a packed batch.
`crossing.take()` tells how much was compared since the last time.

What is compared. Where the texts of both are cut at the same place, both models say what comes
next, each in its own tokens. A bucket is a token of both vocabularies, together with all tokens of
only one of them that begin with it: if the student must write `hello` as `hel` `lo`, the teacher's
`hello` counts as `hel`. With one bucket for all that is not shared instead, the student would be
told that `hel` is wrong where the teacher says `hello`. The bytes are in nearly every vocabulary,
so nearly every token has a bucket; `unshared="sorted"` compares them by rank instead, as ULD
(arXiv:2402.12030) and GOLD do.

Where one model needs several tokens for a span and the other does not, the chain rule gives the
probability of the span in each, and what the first tokens' bucket does not tell of it is learned as
{these tokens, anything else}: evenly over the student's further tokens, whose product then is the
teacher's. So every row has its own target, and the loss is one of tokens like any other. Of several
tokens of the student's in one bucket that of the text counts as right: on average it is.

Not exact: a teacher's token says that the text does not go on as a longer token would, a student's
shorter ones do not. Texts far from both vocabularies suffer from that, and reverse KL most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbeck.errors import UserError
from limbeck.train.alignment import Aligner, Spans
from limbeck.train.batch import Example, TokenBatch, Tokens, collate
from limbeck.train.buckets import Unshared, make_buckets
from limbeck.train.distillation import View
from limbeck.train.sums import Sums, means

# What is compared in a row: nothing; all buckets; these, with the row's own token apart, which has
# all of its bucket or what the chain rule gives it; this token alone.
NOTHING, BUCKETS, OWN, SPLIT, ALONE = range(5)

EMPTY = 1e-37  # the mass of an empty bucket: its log is finite in float32
NEARLY_ALL = 1 - 1e-6
TILE_BYTES = 64 * 2**20  # of the teacher's logits at once
FEWEST_SHARED, FEWEST_ONE_TO_ONE, FEWEST_SAME = 0.1, 0.1, 0.5
NUM_CHECKED = 256  # texts


class Crossing:
    """A live teacher that reads every text in its own tokens; see above.

    `student_rows` are those of the student's head, `teacher_head_weight` (W, C).
    """

    def __init__(
        self,
        student_tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase,
        student_rows: int,
        teacher_head_weight: Tensor,
        hidden: Callable[[TokenBatch], Tensor],
        temperature: float = 1.0,
        unshared: Unshared = "first_piece",
    ) -> None:
        names = teacher_tokenizer.name_or_path, student_tokenizer.name_or_path
        self.where = "teacher {}, student {}".format(*names)
        self.head, self.hidden = teacher_head_weight, hidden
        self.temperatures = list({temperature: 0, 1.0: 0})  # the loss's, and what is told of it
        self.aligner = Aligner(student_tokenizer, teacher_tokenizer)
        self.buckets = make_buckets(
            student_tokenizer, teacher_tokenizer, student_rows, len(self.head), unshared
        ).to(self.head.device)
        # What the student has no bucket for it could never learn: left out, as among shared tokens
        has_rest = bool((self.buckets.student == self.buckets.num).any())
        self.left_out = self.buckets.teacher == (-1 if has_rest else self.buckets.num)  # (W,)
        self.teachers: dict[str, Example] = {}
        self._bytes = np.zeros(3)  # of all spans, of those of the same text, of those one to one
        self._mass = torch.zeros(2, device=self.head.device)  # on shared tokens, and of all

    def check(self, students: Sequence[Example], teachers: Sequence[Example]) -> str:
        """How well the texts can be compared, in words. UserError where too little of them can."""
        both = (_completions(collate(some[:NUM_CHECKED])) for some in (students, teachers))
        for own, other in zip(*both, strict=True):
            self._count(self.aligner(own.ids.tolist(), other.ids.tolist()))
        told = {"same_text": 0.0, "one_to_one": 0.0, **means(self.take())}
        shared = self.buckets.shared
        what = (
            f"{shared:.1%} of the student's tokens are the teacher's too; of the texts "
            f"{told['same_text']:.1%} can be compared, {told['one_to_one']:.1%} token by token"
        )
        few = shared < FEWEST_SHARED and told["one_to_one"] < FEWEST_ONE_TO_ONE
        if few or told["same_text"] < FEWEST_SAME:
            way_out = "take a teacher of the student's family, or learn the texts alone by `sft`"
            raise UserError(self.where, what, way_out)
        return what

    def read(self, students: Sequence[Example], teachers: Sequence[Example]) -> None:
        """From now on batches are of these examples, known by their names.

        UserError where two have one name, but not one text.
        """
        pairs = [(s.name, t) for s, t in zip(students, teachers, strict=True)]
        self.teachers = dict(pairs)
        for name, theirs in pairs:
            if self.teachers[name] != theirs:
                what = f"finds two texts of the id {name}"
                raise UserError(self.where, what, "give each row of the data an id of its own")

    def take(self) -> Sums:
        """How much was compared since the last time.

        `shared_mass`: the teacher's mean probability on tokens that both have. Shares of the texts'
        bytes: `same_text`, where a span of both was found, `one_to_one`, where it is a token each.
        """
        mass, seen = self._mass.tolist()
        total, same, one_to_one = self._bytes.tolist()
        self._mass, self._bytes = torch.zeros_like(self._mass), np.zeros(3)
        return {
            "shared_mass": (mass, seen),
            "same_text": (same, total),
            "one_to_one": (one_to_one, total),
        }

    @torch.no_grad()
    def columns(self, batch: TokenBatch) -> dict[str, Tensor]:
        """What `view` needs of a batch's rows, (N, ...).

        `kind`: what is compared. Of the span that the row's target is in: `teacher_hidden` (N, C)
        where it begins; `span_logprobs` (N, T), the teacher's at each temperature; `span_bucket`,
        that of its first tokens, -1 where they differ; and `span_rows`, the rows among which the
        rest of it is divided.
        """
        theirs = collate([self.teachers[n] for n in batch.document_names], self.head.device)
        hidden = self.hidden(theirs)  # (M, C)
        logprobs = self._logprobs(hidden, theirs).double().cpu().numpy()
        tables = self.buckets.student.cpu().numpy(), self.buckets.teacher.cpu().numpy()
        num, parts = self.buckets.num, []
        several = np.bincount(tables[0], minlength=num + 1) > 1
        for own, other in zip(_completions(batch), _completions(theirs), strict=True):
            spans = self.aligner(own.ids.tolist(), other.ids.tolist())
            if batch.total_weight:  # not what a process reads to keep the others company
                self._count(spans)
            first = tables[0][own.ids[spans.student[:, 0]]]
            is_told = (first == tables[1][other.ids[spans.teacher[:, 0]]]) & (first < num)
            bucket = np.where(is_told, first, -1)
            part = _lay_out(spans, bucket, several[first], logprobs[other.rows])
            parts.append(part | {"row": own.rows, "teacher_row": other.rows[part["teacher_row"]]})
        device = self.head.device
        found = {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts])).to(device)
            for name in parts[0]
        }
        row, teacher_row = found.pop("row"), found.pop("teacher_row")
        columns = {name: _spread(x, row, batch.num_tokens) for name, x in found.items()}
        return columns | {"teacher_hidden": _spread(hidden[teacher_row], row, batch.num_tokens)}

    def view(self) -> View:
        """Student and teacher side by side, at the temperature of the loss, or at 1."""
        return View(self._rows, self._tile)

    def _tile(self, tok: Tokens) -> Tokens:
        """Adds `teacher_logits` (N, W)."""
        has_buckets = _has_buckets(tok.columns["kind"])
        with torch.no_grad():
            logits = tok.columns["teacher_hidden"].to(self.head.dtype) @ self.head.T
            weights = tok.weights * has_buckets
            shared = logits.float().softmax(-1) @ self.buckets.is_shared  # (N,)
            self._mass += torch.stack([weights @ shared, weights.sum()])
            logits.masked_fill_(self.left_out, float("-inf"))
        return replace(tok, columns={**tok.columns, "teacher_logits": logits})

    def _rows(self, logits: Tensor, tok: Tokens, temperature: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            teacher = self._teacher(tok, temperature)
        kind, target = tok.columns["kind"], tok.targets[:, None]
        probs = (logits / temperature).softmax(-1)  # (N, V)
        own = probs.gather(1, target)
        left = own.masked_fill((kind >= OWN)[:, None], 0.0)
        masses = self.buckets.masses(probs.scatter(1, target, left), self.buckets.student)
        return _side(masses, own[:, 0], masses.sum(1), kind), teacher

    def _teacher(self, tok: Tokens, temperature: float) -> Tensor:
        """(N, B + 1) log-probabilities: of the buckets, and of what the row's own token tells."""
        kind, bucket = tok.columns["kind"], tok.columns["span_bucket"]
        probs = (tok.columns["teacher_logits"].float() / temperature).softmax(-1)
        masses = self.buckets.masses(probs, self.buckets.teacher)
        told = masses.gather(1, bucket.clamp_min(0)[:, None])[:, 0]
        told = told.where(bucket >= 0, 1.0).clamp_min(EMPTY)
        whole = tok.columns["span_logprobs"][:, self.temperatures.index(temperature)]
        own = ((whole - told.log()) / tok.columns["span_rows"]).exp().clamp_max(NEARLY_ALL)
        is_part = (kind == OWN) | (kind == SPLIT)
        own = own.where(kind != OWN, NEARLY_ALL) * told.where(is_part, 1.0)
        taken = (own * is_part)[:, None]
        masses = masses.scatter_add(1, bucket.clamp_min(0)[:, None], -taken)
        return _side(masses, own, 1 - own, kind)

    def _logprobs(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """The teacher's log-probabilities of what follows each learned row, (M, temperatures)."""
        tile = max(16, TILE_BYTES // (4 * len(self.head)))
        parts = []
        for rows in batch.loss_positions.split(tile):
            logits = (hidden[rows].to(self.head.dtype) @ self.head.T).float()
            targets = batch.targets[rows, None]
            at_each = [(logits / t).log_softmax(-1) for t in self.temperatures]
            parts.append(torch.cat([logp.gather(1, targets) for logp in at_each], 1))
        return _spread(torch.cat(parts), batch.loss_positions, batch.num_tokens)

    def _count(self, spans: Spans) -> None:
        counted = np.stack([np.ones_like(spans.same), spans.same, spans.one_to_one])
        self._bytes += counted @ spans.num_bytes


class _Completion(NamedTuple):
    """A document's learned tokens to its end, and the rows of logits that name them."""

    ids: np.ndarray
    rows: np.ndarray


def _completions(batch: TokenBatch) -> Iterator[_Completion]:
    """Those of a packed batch's documents, each from its first learned token on."""
    ids, learned = batch.ids.cpu().numpy(), batch.loss_positions.cpu().numpy()
    for begin, end in pairwise(accumulate(batch.document_lengths, initial=0)):
        first = next(iter(learned[np.searchsorted(learned, begin) :]), end)
        rows = np.arange(min(first, end - 1), end - 1)
        yield _Completion(ids[rows + 1], rows)


def _lay_out(
    spans: Spans, bucket: np.ndarray, has_several: np.ndarray, logprobs: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of a completion's L rows, (L, ...); `teacher_row` counts from its first.

    `bucket` (S,): that of both first tokens of a span, or -1; `has_several` (S,) of the student's.
    `logprobs` (L', T): the teacher's.
    """
    size, of_teacher = (np.diff(side)[:, 0] for side in (spans.student, spans.teacher))
    total = np.concatenate([np.zeros_like(logprobs[:1]), logprobs.cumsum(0)])[spans.teacher]
    first = np.where(has_several, OWN, BUCKETS)
    first = np.where((size == 1) & (of_teacher > 1), SPLIT, first)
    first = np.where(bucket < 0, ALONE, first)
    begins = np.arange(size.sum()) == spans.student[:, 0].repeat(size)
    kind = np.where(begins, first.repeat(size), ALONE)
    return {
        "kind": np.where(spans.same.repeat(size), kind, NOTHING),
        "teacher_row": spans.teacher[:, 0].repeat(size),
        "span_logprobs": (total[:, 1] - total[:, 0]).astype(np.float32).repeat(size, 0),
        "span_bucket": bucket.repeat(size),
        "span_rows": np.maximum(1, size - (bucket >= 0)).repeat(size),
    }


def _spread(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Values (L, ...) in their rows of (N, ...), 0 in all others: nothing is compared there."""
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy_(0, rows, values)


def _side(masses: Tensor, own: Tensor, others: Tensor, kind: Tensor) -> Tensor:
    """One side's log-probabilities (N, B + 1) by what is compared in each row.

    `masses` (N, B) of the buckets; `own` (N,) of the row's own token, or the span's part that
    falls to it; `others` (N,) of anything else.
    """
    others = others.where(kind == ALONE, 1.0)
    only = F.pad(others[:, None], (0, masses.shape[1] - 1))
    masses = masses.where(_has_buckets(kind)[:, None], only)
    own = own.where(kind >= OWN, 0.0)
    return torch.cat([masses, own[:, None]], 1).clamp_min(EMPTY).log()


def _has_buckets(kind: Tensor) -> Tensor:
    return (kind >= BUCKETS) & (kind <= SPLIT)
