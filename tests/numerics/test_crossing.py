"""A teacher with another tokenizer: naive references, TRL's ULD, gradients, and a toy task."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl.experimental.gold.gold_trainer import ULDLoss

from limbeck import chat
from limbeck.errors import UserError
from limbeck.newborn import create_model
from limbeck.train import divergences
from limbeck.train.alignment import align_texts, align_vocabularies, token_bytes
from limbeck.train.batch import Example, TokenBatch, collate
from limbeck.train.buckets import Buckets, Unshared, first_pieces, make_buckets
from limbeck.train.crossing import Crossing
from limbeck.train.distillation import Mix, whole
from limbeck.train.head import TokenLoss, TokenModel
from limbeck.train.losses import cross_entropy
from limbeck.train.step import Columns, make_optimizer, train_step
from limbeck.train.sums import means
from limbeck.types import Message
from tests.numerics.test_alignment import KINDS, byte_level

ROWS = [
    ("What is 12 + 34?", "Let me think. 12 + 34 = 46, so the answer is 46."),
    ("Write a function.", "def add(first, second):\n    return first + second"),
    ("Übersetze.", "Füße und Äpfel: 我们先计算 🙂, the lazy dog."),
]
ALL = [
    divergences.forward_kl,
    divergences.reverse_kl,
    divergences.jsd,
    divergences.skew_kl,
    divergences.skew_reverse_kl,
    divergences.total_variation,
]


def examples(tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    pairs = [([Message("user", question)], answer) for question, answer in ROWS]
    encoded = chat.encode_examples(tokenizer, pairs)
    return [Example(ids, mask, 1.0, str(i)) for i, (ids, mask) in enumerate(encoded)]


def make_model(rows: int, width: int = 16, seed: int = 0) -> TokenModel:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = create_model(
        "llama",
        rows,
        seed,
        eos_token_id=0,
        pad_token_id=0,
        hidden_size=width,
        intermediate_size=2 * width,
        max_position_embeddings=512,
        initializer_range=0.3,
        **sizes,
    )
    return TokenModel(model)


def head(model: TokenModel) -> Tensor:
    weight: Tensor = model.model.get_output_embeddings().weight
    return weight


def cross(
    student: str,
    teacher: str,
    temperature: float = 1.0,
    unshared: Unshared = "first_piece",
    padding: int = 5,
) -> tuple[Crossing, TokenModel, TokenBatch]:
    """A crossing, its teacher, and a batch of ROWS in the student's tokens."""
    own, other = KINDS[student], KINDS[teacher]
    model = make_model(len(other) + 8)
    crossing = Crossing(
        own, other, len(own) + padding, head(model).detach(), model.hidden, temperature, unshared
    )
    students = examples(own)
    crossing.read(students, examples(other))
    return crossing, model, collate(students)


def distributions(model: TokenModel, ids: list[int], temperature: float) -> Tensor:
    """What a model says behind each of a text's tokens, (N, V) float64."""
    with torch.no_grad():
        hidden = model.hidden(collate([Example(ids, [1] * len(ids))]))
        return (hidden.double() @ head(model).double().T / temperature).softmax(-1)


def naive_kl(teacher: dict[int, float], student: dict[int, float]) -> float:
    return sum(p * math.log(p / student[i]) for i, p in teacher.items() if p > 1e-30)


def summed(probs: Tensor, bucket: Tensor) -> dict[int, float]:
    sums: dict[int, float] = {}
    for place, p in zip(bucket.tolist(), probs.tolist(), strict=True):
        sums[place] = sums.get(place, 0.0) + p
    return sums


def naive_loss(
    crossing: Crossing, student: TokenModel, teacher: TokenModel, pair: tuple[str, str], t: float
) -> float:
    """Span by span and token by token, from whole distributions."""
    own, other = KINDS[pair[0]], KINDS[pair[1]]
    buckets, total = crossing.buckets, 0.0
    for mine, theirs in zip(examples(own), examples(other), strict=True):
        begin, their_begin = mine.loss_mask.index(1), theirs.loss_mask.index(1)
        p_own, p_other = distributions(student, mine.ids, t), distributions(teacher, theirs.ids, t)
        spans = align_texts(mine.ids[begin:], theirs.ids[their_begin:], own, other)
        for (a, b), (c, d) in zip(spans.student + begin, spans.teacher + their_begin, strict=True):
            q = math.prod(p_other[i - 1, theirs.ids[i]].item() for i in range(c, d))
            first = int(buckets.student[mine.ids[a]]), int(buckets.teacher[theirs.ids[c]])
            later = range(a, b)
            if first[0] == first[1] < buckets.num:
                there = summed(p_other[c - 1], buckets.teacher)
                here = summed(p_own[a - 1], buckets.student)
                q_rest = q / there[first[0]]
                is_split = b - a == 1 and d - c > 1
                if is_split or (buckets.student == first[0]).sum() > 1:
                    part = q if is_split else there[first[0]] * (1 - 1e-6)
                    there |= {first[0]: there[first[0]] - part, -1: part}
                    p = p_own[a - 1, mine.ids[a]].item()
                    here |= {first[0]: here[first[0]] - p, -1: p}
                total += naive_kl(there, here)
                later = range(a + 1, b)
            else:
                q_rest = q
            for i in later:
                r, p = q_rest ** (1 / len(later)), p_own[i - 1, mine.ids[i]].item()
                total += naive_kl({0: r, 1: 1 - r}, {0: p, 1: 1 - p})
    return total


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "pair", [("small", "large"), ("large", "small"), ("llama", "phrases"), ("bytes", "unigram")]
)
def test_equals_a_naive_loop(pair: tuple[str, str], temperature: float) -> None:
    crossing, teacher, batch = cross(*pair, temperature)
    student = make_model(len(KINDS[pair[0]]) + 5, seed=1)
    mix = Mix(crossing.view(), temperature=temperature)
    with torch.no_grad():
        loss = student(replace(batch, columns=crossing.columns(batch)), mix).item()
    expected = temperature**2 * naive_loss(crossing, student, teacher, pair, temperature)
    assert math.isclose(loss, expected, rel_tol=1e-4)  # float32 sums of small masses


@pytest.mark.parametrize("padding", [5, 0])
def test_equal_tokenizers_give_the_plain_loss(padding: int) -> None:
    """Whether the student has rows of its own for what the teacher has behind the tokens or not."""
    crossing, teacher, batch = cross("small", "small", 2.0, padding=padding)
    rows = len(KINDS["small"])
    student = make_model(rows + padding, seed=1)
    vocabulary = align_vocabularies(KINDS["small"], KINDS["small"], rows + padding, rows + 8)
    with torch.no_grad():
        columns = crossing.columns(batch)
        losses = [
            student(replace(batch, columns=columns), Mix(view, divergence, 2.0, 0.7))
            for divergence in ALL
            for view in (crossing.view(), whole(head(teacher), vocabulary))
        ]
    for ours, plain in zip(losses[::2], losses[1::2], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)  # exp and log of float32
    assert means(crossing.take())["one_to_one"] == 1


def test_padded_family_equals_shared_tokens_and_the_rest() -> None:
    """As Qwen2.5: one tokenizer of 300 tokens, matrices of 320 and 336 rows."""
    tokenizer = byte_level(298)
    assert len(tokenizer) == 300
    vocabulary = align_vocabularies(tokenizer, tokenizer, 320, 336)
    assert vocabulary.is_prefix
    assert not vocabulary.is_same
    student, teacher = make_model(320, seed=1), make_model(336)
    batch = collate(examples(tokenizer))
    with torch.no_grad():
        columns = {"teacher_hidden": teacher.hidden(batch)}
        loss = student(replace(batch, columns=columns), Mix(whole(head(teacher), vocabulary)))
        hidden = student.hidden(batch), teacher.hidden(batch)
    expected = 0.0
    for row in batch.loss_positions.tolist():
        p, q = (
            (h[row].double() @ head(m).detach().double().T).softmax(-1)
            for h, m in zip(hidden, (student, teacher), strict=True)
        )
        p, q = (torch.cat([x[:300], x[300:].sum()[None]]) for x in (p, q))
        expected += float((q * (q / p).log()).sum())
    assert math.isclose(loss.item(), expected, rel_tol=1e-5)  # float32


@pytest.mark.parametrize("unshared", ["first_piece", "sorted"])
@pytest.mark.parametrize("divergence", ALL, ids=lambda d: d.__name__)
def test_gradients_by_finite_differences(
    divergence: Callable[[Tensor, Tensor], Tensor], unshared: Unshared
) -> None:
    crossing, _, batch = cross("large", "llama", 2.0, unshared)
    tok = replace(batch, columns=crossing.columns(batch)).loss_tokens()
    assert set(tok.columns["kind"].tolist()) >= {1, 4}
    view = crossing.view()
    tok = view.tile(tok)
    generator = torch.Generator().manual_seed(4)
    shape = (len(tok.targets), len(crossing.buckets.student))
    logits, towards = torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return divergence(*view.rows(x, tok, 2.0)).sum()

    logits.requires_grad_()
    (grad,) = torch.autograd.grad(loss(logits), logits)
    with torch.no_grad():
        step = 1e-5
        difference = loss(logits + step * towards) - loss(logits - step * towards)
    assert grad.isfinite().all()
    # ranks change within a step here and there: a sorted loss has kinks
    exact = 1e-6 if unshared == "first_piece" else 1e-4
    told = (grad * towards).sum().item()
    assert math.isclose(difference.item() / (2 * step), told, rel_tol=exact)


@pytest.mark.parametrize("pair", [("small", "large"), ("llama", "phrases"), ("large", "bytes")])
def test_a_span_has_the_teachers_probability(pair: tuple[str, str]) -> None:
    """The chain rule: what the rows of a span are told multiplies to the teacher's."""
    crossing, teacher, batch = cross(*pair)
    columns = crossing.columns(batch)
    tok = replace(batch, columns=columns).loss_tokens()
    view = crossing.view()
    tok = view.tile(tok)
    said = crossing._teacher(tok, 1.0)
    kind, bucket = tok.columns["kind"], tok.columns["span_bucket"]
    row = 0
    own, other = KINDS[pair[0]], KINDS[pair[1]]
    for mine, theirs in zip(examples(own), examples(other), strict=True):
        begin, their_begin = mine.loss_mask.index(1), theirs.loss_mask.index(1)
        p = distributions(teacher, theirs.ids, 1.0).log()
        spans = align_texts(mine.ids[begin:], theirs.ids[their_begin:], own, other)
        for (a, b), (c, d) in zip(spans.student, spans.teacher + their_begin, strict=True):
            q = sum(p[i - 1, theirs.ids[i]].item() for i in range(c, d))
            rows = range(row, row + b - a)
            told = sum(said[i, -1].item() for i in rows if kind[i] > 1)
            if kind[row] == 1:  # its first token's bucket says the rest
                told += said[row, bucket[row]].item()
            if kind[row] > 2 or len(rows) > 1:  # else its text alone says which token it is
                assert math.isclose(told, q, rel_tol=1e-4, abs_tol=1e-4)
            row += b - a
    assert row == len(kind)
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(row))


def uld(config: dict[str, object], *tokenizers: PreTrainedTokenizerFast) -> ULDLoss:
    defaults: dict[str, object] = {
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_student_temperature": 2.0,
        "uld_teacher_temperature": 2.0,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
        "use_extended_uld": False,
        "uld_token_merge_strategy": "bayesian",
    }
    return ULDLoss(SimpleNamespace(**defaults | config), *tokenizers)


@pytest.mark.parametrize("rows", [(37, 50), (50, 37)])
def test_ranks_alone_are_trls_uld(rows: tuple[int, int]) -> None:
    """Twice the total variation between sorted probabilities."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(1, 9, n, generator=generator) for n in rows)
    ids = torch.randint(30, (1, 9), generator=generator)
    labels = ids.masked_fill(torch.arange(9) == 0, -100)
    expected = uld({})(student, teacher, labels, labels, ids, ids)
    nobody = [torch.zeros(n, dtype=torch.long) for n in rows]
    buckets = Buckets(nobody[0], nobody[1], 0, max(rows), torch.zeros(rows[1]), 0.0)
    sides = [
        buckets.masses((logits[0, :-1] / 2).softmax(-1), bucket).log()
        for logits, bucket in ((student, buckets.student), (teacher, buckets.teacher))
    ]
    ours = 2 * divergences.total_variation(*sides).mean()
    torch.testing.assert_close(ours, expected)


def test_ranks_of_what_is_not_shared_are_golds() -> None:
    own, other = KINDS["small"], KINDS["large"]
    crossing, _, batch = cross("small", "large", 2.0, "sorted")
    gold = uld({"uld_use_hybrid_loss": True}, own, other)
    tok = replace(batch, columns=crossing.columns(batch)).loss_tokens()
    view = crossing.view()
    tok = view.tile(tok[tok.columns["kind"] == 1])
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(len(tok.targets), len(own) + 5, generator=generator)
    student, teacher = view.rows(logits, tok, 2.0)
    sides = (logits / 2).softmax(-1), (tok.columns["teacher_logits"] / 2).softmax(-1)
    gold._compute_hybrid_uld_loss(*sides)
    ranked = slice(crossing.buckets.num, crossing.buckets.num + crossing.buckets.ranks)
    unshared = (student.exp() - teacher.exp())[:, ranked].abs().sum() / len(tok.targets)
    torch.testing.assert_close(unshared, gold.last_unmatched_loss)


def test_a_text_begins_with_a_token_of_the_other_side() -> None:
    for name in ("small", "llama", "unigram"):
        bytes_of = token_bytes(KINDS[name])
        texts = [b"answer", b" answer", b"e", "我".encode(), b"\xe6\x88", b"  ", b"\n\n"]
        found = first_pieces(KINDS[name], bytes_of, texts)
        assert found[4] is None  # a part of a character
        for text, piece in zip(texts, found, strict=True):
            assert piece is None or text.startswith(bytes_of[piece])
        assert all(found[i] is not None for i in range(4))


@pytest.mark.parametrize("pair", [("small", "large"), ("large", "small"), ("llama", "phrases")])
def test_every_token_is_in_the_bucket_that_it_begins_with(pair: tuple[str, str]) -> None:
    own, other = KINDS[pair[0]], KINDS[pair[1]]
    buckets = make_buckets(own, other, len(own) + 5, len(other) + 8)
    ends = chat.end_of_turn(own), chat.end_of_turn(other)
    assert buckets.student[ends[0]] == buckets.teacher[ends[1]] < buckets.num
    vocabulary = align_vocabularies(own, other, len(own), len(other))
    bytes_of = token_bytes(own)
    begin = {int(buckets.student[id]): bytes_of[id] for id in vocabulary.student_ids.tolist()}
    for table, tokenizer in ((buckets.student, own), (buckets.teacher, other)):
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        plain = {id: text for id, text in token_bytes(tokenizer).items() if id not in special}
        placed = {id for id in plain if table[id] < buckets.num}
        assert all(plain[id].startswith(begin[int(table[id])]) for id in placed)
        assert len(placed) > 0.99 * len(plain)
        assert (table[len(tokenizer) :] == buckets.num).all()  # padding


def test_packing_changes_nothing() -> None:
    crossing, _, batch = cross("large", "llama")
    student = make_model(len(KINDS["large"]) + 5, seed=1)
    mix = Mix(crossing.view(), alpha=0.5)
    with torch.no_grad():
        together = student(replace(batch, columns=crossing.columns(batch)), mix).item()
        ones = [collate([example]) for example in examples(KINDS["large"])]
        apart = sum(student(replace(x, columns=crossing.columns(x)), mix).item() for x in ones)
    assert math.isclose(together, apart, rel_tol=1e-5)  # float32


def test_what_was_compared_is_told() -> None:
    crossing, teacher, batch = cross("small", "large")
    student = make_model(len(KINDS["small"]) + 5, seed=1)
    with torch.no_grad():
        student(replace(batch, columns=crossing.columns(batch)), Mix(crossing.view()))
    told = means(crossing.take())
    assert told["same_text"] == 1
    assert 0.2 < told["one_to_one"] < 1
    masses = []
    both = KINDS["small"], KINDS["large"]
    for mine, theirs in zip(*map(examples, both), strict=True):
        begin, their_begin = mine.loss_mask.index(1), theirs.loss_mask.index(1)
        spans = align_texts(mine.ids[begin:], theirs.ids[their_begin:], *both)
        rows = torch.from_numpy(spans.teacher[:, 0]) + their_begin - 1
        masses += (
            distributions(teacher, theirs.ids, 1.0)[rows] @ crossing.buckets.is_shared.double()
        ).tolist()
    assert math.isclose(told["shared_mass"], sum(masses) / len(masses), rel_tol=1e-5)  # float32
    assert means(crossing.take()) == {}


def test_texts_that_cannot_be_compared_are_refused_by_name() -> None:
    crossing, *_ = cross("small", "large")
    own, other = examples(KINDS["small"]), examples(KINDS["large"])
    assert "token by token" in crossing.check(own, other)
    with pytest.raises(UserError, match=r"teacher .*student .*% can be compared.*`sft`"):
        crossing.check(own, [other[1], other[2], other[0]])


def sentences(seed: int, num: int) -> list[tuple[list[Message], str]]:
    """Walks over words, each of which has four that may follow it: 0.4, 0.3, 0.2, 0.1."""
    rng = random.Random(0)
    syllables = ["ba", "ko", "li", "mu", "hel", "lo", "win", "ter", "gold", "ing", "est", "ve"]
    words = ["".join(rng.choices(syllables, k=rng.choice([1, 2, 3]))) for _ in range(60)]
    behind = {word: rng.sample(words, 4) for word in words}
    rng, rows = random.Random(seed), []
    for _ in range(num):
        walk = [rng.choice(words[:10])]
        for _ in range(8):
            walk += rng.choices(behind[walk[-1]], [4, 3, 2, 1])
        rows.append(([Message("user", walk[0])], " ".join(walk[1:])))
    return rows


def encoded(
    tokenizer: PreTrainedTokenizerFast, rows: list[tuple[list[Message], str]]
) -> list[Example]:
    pairs = enumerate(chat.encode_examples(tokenizer, rows))
    return [Example(ids, mask, 1.0, str(i)) for i, (ids, mask) in pairs]


def learn(
    model: TokenModel,
    lessons: list[Example],
    num_steps: int,
    loss: TokenLoss = cross_entropy,
    columns: Columns | None = None,
) -> TokenModel:
    optimizer, rng = make_optimizer(model, 1e-2), random.Random(0)
    for _ in range(num_steps):
        batch = collate(rng.sample(lessons, 24))
        train_step(model, [batch], optimizer, lr=1e-2, clip=1.0, token_loss=loss, columns=columns)
    return model


def test_a_student_learns_from_a_teacher_of_other_tokens() -> None:
    """From few texts it learns more than from the texts alone; misreading teaches nothing.

    To misread is what GKD did with two tokenizers (trl#4562, DistillKit#7): the teacher is fed the
    student's token ids, and what it says of its own is taken for the student's.
    """
    many, few, unseen = sentences(1, 600), sentences(2, 48), sentences(3, 60)
    own, other = (byte_level(size, texts=[text for _, text in many]) for size in (290, 330))
    teacher = learn(make_model(len(other), 32), encoded(other, many), 150)
    teacher.requires_grad_(False)
    students, teachers = encoded(own, few), encoded(other, few)
    crossing = Crossing(own, other, len(own), head(teacher), teacher.hidden)
    crossing.check(students, teachers)
    crossing.read(students, teachers)
    misread = whole(head(teacher)[: len(own)])
    ways: dict[str, tuple[TokenLoss, Columns | None]] = {
        "texts": (cross_entropy, None),
        "crossing": (Mix(crossing.view()), crossing.columns),
        "misread": (Mix(misread), lambda batch: {"teacher_hidden": teacher.hidden(batch)}),
    }
    test = collate(encoded(own, unseen))
    nats = {}
    for name, (loss, columns) in ways.items():
        student = learn(make_model(len(own), 24, seed=1), students, 100, loss, columns)
        with torch.no_grad():
            nats[name] = student(test, cross_entropy).item() / test.num_loss_tokens
    assert nats["crossing"] < 0.9 * nats["texts"] < nats["misread"]
