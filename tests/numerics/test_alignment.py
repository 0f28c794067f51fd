"""Two tokenizers: shared tokens by identity, and spans that tile any text."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

from limbeck import chat
from limbeck.errors import UserError
from limbeck.train.alignment import (
    Aligner,
    Spans,
    align_texts,
    align_vocabularies,
    read_alike,
    token_bytes,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog; the dog hardly noticed the other foxes.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1234, 5678))\n",
    "Let me think. 12 + 34 = 46, so the answer is 46. Therefore the answer is \\boxed{46}.",
    "Ein schöner Übungssatz über Füße, Größe und Äpfel; naïve café, señor.",
    "我们先计算一下这个问题的答案,然后再检查。日本語のテキストもあります。",
    "Emoji: 🙂🚀👩‍👩‍👧‍👦 and 𝕏, math: ∑ᵢ xᵢ ≤ ∞, spaces:    tabs:\t\tend.\r\n",
] * 4


def wrap(
    tokenizer: Tokenizer, end: str = "<|end|>", added: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    template = (
        "{% for m in messages %}<|user|>{{ m.content }}"
        "{% if m.role == 'assistant' %}" + end + "{% endif %}{% endfor %}"
    )
    tokenizer.add_special_tokens(["<|user|>", end])
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, chat_template=template
    )


def byte_level(
    vocab_size: int,
    regex: bool = True,
    texts: Sequence[str] = TEXTS,
    end: str = "<|end|>",
    added: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap(tokenizer, end, added)


def with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same with `<0x00>` to `<0xFF>`, as SentencePiece's byte fallback has them."""
    whole = json.loads(tokenizer.to_str())
    vocab, names = whole["model"]["vocab"], [f"<0x{byte:02X}>" for byte in range(256)]
    if isinstance(vocab, dict):
        vocab |= {name: len(vocab) + i for i, name in enumerate(names)}
    else:
        vocab += [[name, -20.0] for name in names]
    whole["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(whole))


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=320, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS[:3] * 4, trainer)
    return wrap(with_bytes(tokenizer), end="</s>")


def llama() -> PreTrainedTokenizerFast:
    """Llama 2's kind: a BPE of SentencePiece, a space before every text."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<unk>"], show_progress=False)
    words = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    tokenizer.pre_tokenizer = words
    tokenizer.train_from_iterator(TEXTS[:3] * 4, trainer)
    return wrap(with_bytes(tokenizer), end="</s>", added=("<think>", "</think>"))


def word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return wrap(tokenizer, end="[SEP]")


KINDS: dict[str, PreTrainedTokenizerFast] = {
    "bytes": byte_level(256),
    "small": byte_level(320),
    "large": byte_level(700, added=("<think>", "</think>")),
    "phrases": byte_level(500, regex=False, end="<|eot|>"),
    "unigram": unigram(),
    "llama": llama(),
}
"""Tokenizers that keep every byte of a text."""

ALIGNERS = {(a, b): Aligner(KINDS[a], KINDS[b]) for a in KINDS for b in KINDS}


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def assert_tiles(spans: Spans, student: list[int], teacher: list[int]) -> None:
    for side, ids in ((spans.student, student), (spans.teacher, teacher)):
        assert side[0, 0] == 0
        assert side[-1, 1] == len(ids)
        assert (side[1:, 0] == side[:-1, 1]).all()
        assert (np.diff(side) > 0).all()


UNICODE = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), min_size=1)
CODE = st.text("abcdef (){}[]=+-*/0123456789\n\t_'\"", min_size=1)
CHINESE = st.text("我们先计算一下日本語🙂👩‍👧é ", min_size=1)
MIXED = st.lists(st.sampled_from(TEXTS[:6]) | CODE | CHINESE, min_size=1, max_size=3)


@pytest.mark.parametrize("pair", [("small", "large"), ("large", "llama"), ("unigram", "phrases")])
@given(text=UNICODE | CODE | CHINESE | MIXED.map("".join))
@settings(max_examples=150, deadline=None)
def test_spans_tile_both_texts(pair: tuple[str, str], text: str) -> None:
    one, other = KINDS[pair[0]], KINDS[pair[1]]
    student, teacher = encode(one, text), encode(other, text)
    spans = ALIGNERS[pair](student, teacher)
    assert_tiles(spans, student, teacher)
    bytes_of = ALIGNERS[pair].student_bytes, ALIGNERS[pair].teacher_bytes
    for (a, b), (c, d), same in zip(spans.student, spans.teacher, spans.same, strict=True):
        ours = b"".join(bytes_of[0][id] for id in student[a:b])
        theirs = b"".join(bytes_of[1][id] for id in teacher[c:d])
        assert same == (ours in (theirs, b" " + theirs) or theirs == b" " + ours)
    assert spans.num_bytes.sum() == sum(len(bytes_of[0][id]) for id in student)


@pytest.mark.parametrize("pair", [("small", "large"), ("bytes", "phrases"), ("llama", "unigram")])
@given(text=UNICODE | CODE | CHINESE | MIXED.map("".join))
@settings(max_examples=100, deadline=None)
def test_no_span_could_be_smaller(pair: tuple[str, str], text: str) -> None:
    """Where both texts are equal, they are cut wherever both have a token's end."""
    one, other = KINDS[pair[0]], KINDS[pair[1]]
    student, teacher = encode(one, text), encode(other, text)
    aligner = ALIGNERS[pair]
    ends = [
        np.cumsum([len(bytes_of[id]) for id in ids])
        for bytes_of, ids in ((aligner.student_bytes, student), (aligner.teacher_bytes, teacher))
    ]
    if ends[0][-1] == ends[1][-1]:
        spans = aligner(student, teacher)
        assert ends[0][spans.student[:, 1] - 1].tolist() == sorted({*ends[0]} & {*ends[1]})
        assert spans.same.all()


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_whole_texts_can_be_compared(one: str, other: str) -> None:
    for text in TEXTS[:6]:
        spans = align_texts(encode(KINDS[one], text), encode(KINDS[other], text), *both(one, other))
        assert spans.same.all()
        if one == other:
            assert spans.one_to_one.all()


def both(one: str, other: str) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    return KINDS[one], KINDS[other]


def test_characters_in_pieces() -> None:
    """é is two bytes: as one token, and as two that are no text by themselves."""
    small, plain = both("small", "bytes")
    spans = align_texts(encode(small, "ö né"), encode(plain, "ö né"), small, plain)
    assert spans.same.all()
    assert (np.diff(spans.student)[:, 0] == 1).all()
    assert np.diff(spans.teacher)[:, 0].sum() == len("ö né".encode())


def test_ends_of_turn_are_one_span() -> None:
    student, teacher = both("llama", "phrases")
    ids = [[*encode(t, "yes 12"), chat.end_of_turn(t)] for t in (student, teacher)]
    assert student.convert_ids_to_tokens(ids[0][-1]) == "</s>"
    assert teacher.convert_ids_to_tokens(ids[1][-1]) == "<|eot|>"
    spans = align_texts(*ids, student, teacher)
    assert_tiles(spans, *ids)
    assert spans.one_to_one[-1]
    assert spans.num_bytes[-1] == 0
    cut_off = align_texts(ids[0], ids[1][:-1], student, teacher)
    assert_tiles(cut_off, ids[0], ids[1][:-1])
    assert not cut_off.same[-1]  # `</s>` is no text that the teacher read


def test_a_tag_against_its_letters() -> None:
    """`<think>` is one token for one model, and text for the other."""
    student, teacher = both("large", "small")
    text = "<think>12 + 34</think>46"
    ids = encode(student, text), encode(teacher, text)
    spans = align_texts(*ids, student, teacher)
    assert spans.same.all()
    assert np.diff(spans.student[0]) == 1
    assert np.diff(spans.teacher[0]) == len(encode(teacher, "<think>"))


def test_texts_that_differ_meet_again() -> None:
    """A tokenizer that composes letters (NFC, as Qwen's): only what it changed is lost."""
    student, composed = KINDS["large"], byte_level(320)
    composed.backend_tokenizer.normalizer = normalizers.NFC()
    text = "The cafe\u0301 is near; the answer is 46."
    ids = encode(student, text), encode(composed, text)
    spans = align_texts(*ids, student, composed)
    assert_tiles(spans, *ids)
    lost = [student.decode(ids[0][a:b]) for a, b in spans.student[~spans.same]]
    assert len(lost) == 1
    assert "e\u0301" in lost[0]
    assert len(lost[0]) < 10
    assert spans.same[-5:].all()


def test_texts_of_nothing_in_common() -> None:
    student, teacher = both("small", "large")
    ids = encode(student, "abc" * 40), encode(teacher, "12 + 34 = 46")
    spans = align_texts(*ids, student, teacher)
    assert_tiles(spans, *ids)
    assert not spans.same.any()


def test_word_pieces_and_bytes() -> None:
    student, teacher = word_piece(), KINDS["small"]
    text = "the dog jumps over the other dog"
    ids = encode(student, text), encode(teacher, text)
    spans = align_texts(*ids, student, teacher)
    assert_tiles(spans, *ids)
    assert spans.same.all()


def test_long_texts_take_no_quadratic_time() -> None:
    student, teacher = both("small", "llama")
    text = TEXTS[0] * 1500  # 126 kB
    spans = align_texts(encode(student, text), encode(teacher, text), student, teacher)
    assert spans.same.all()
    assert len(spans.same) == 24_000


def test_padding_is_shared_by_nobody() -> None:
    """Qwen2.5: one tokenizer, matrices of 151,936 and 152,064 rows."""
    tokenizer = KINDS["small"]
    vocabulary = align_vocabularies(tokenizer, tokenizer, 400, 416)
    assert vocabulary.student_ids.tolist() == vocabulary.teacher_ids.tolist() == [*range(322)]
    assert (vocabulary.shared, vocabulary.is_same, vocabulary.is_prefix) == (1, False, True)
    assert vocabulary.reads_alike
    assert align_vocabularies(tokenizer, tokenizer, 400, 400).is_same
    assert align_vocabularies(tokenizer, tokenizer, 310, 416).student_ids.tolist() == [*range(310)]


def test_the_same_tokens_by_other_ids() -> None:
    tokenizer = KINDS["small"]
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    names = sorted(whole["model"]["vocab"], reverse=True)
    whole["model"]["vocab"] = {name: id for id, name in enumerate(names)}
    other = wrap(Tokenizer.from_str(json.dumps(whole)))
    vocabulary = align_vocabularies(tokenizer, other, 400, 400)
    assert (vocabulary.shared, vocabulary.is_same, vocabulary.is_prefix) == (1, False, False)
    assert vocabulary.reads_alike
    to_teacher = dict(
        zip(vocabulary.student_ids.tolist(), vocabulary.teacher_ids.tolist(), strict=True)
    )
    for text in TEXTS[:6]:
        assert [to_teacher[id] for id in encode(tokenizer, text)] == encode(other, text)


def test_a_few_tokens_more() -> None:
    student, teacher = KINDS["small"], byte_level(320, added=("<tool>",))
    vocabulary = align_vocabularies(student, teacher, 400, 400)
    assert (vocabulary.shared, vocabulary.is_same, vocabulary.is_prefix) == (1, False, True)
    assert not vocabulary.reads_alike  # it reads <tool> otherwise
    assert len(vocabulary.student_ids) == len(student)


def test_tokens_are_bytes_however_they_are_spelled() -> None:
    student, teacher = both("unigram", "large")
    vocabulary = align_vocabularies(student, teacher, 1000, 1000)
    bytes_of = token_bytes(student), token_bytes(teacher)
    pairs = zip(vocabulary.student_ids.tolist(), vocabulary.teacher_ids.tolist(), strict=True)
    shared = {bytes_of[0][a]: b for a, b in pairs}
    assert all(bytes_of[1][id] == text for text, id in shared.items())
    assert {b"e", b" ", b"\xe4"} <= set(shared)
    assert any(len(text) > 2 and text.startswith(b" ") for text in shared)
    assert student.convert_tokens_to_ids("<0x65>") not in vocabulary.student_ids  # e has its own
    assert student.convert_tokens_to_ids("<0x05>") in vocabulary.student_ids
    assert vocabulary.student_ids.tolist() == sorted(vocabulary.student_ids.tolist())


def test_a_special_token_is_no_text() -> None:
    student = KINDS["small"]
    plain = wrap(byte_level(256).backend_tokenizer, added=("<|x|>",))
    special = wrap(byte_level(256).backend_tokenizer)
    special.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    vocabulary = align_vocabularies(plain, special, 400, 400)
    assert plain.convert_tokens_to_ids("<|x|>") not in vocabulary.student_ids
    assert student.eos_token_id in align_vocabularies(student, plain, 400, 400).student_ids


def test_reading_alike_is_about_the_text() -> None:
    kinds = list(KINDS.values())
    for i, one in enumerate(kinds):
        assert [read_alike(one, other) for other in kinds] == [i == j for j in range(len(kinds))]
    assert not read_alike(byte_level(320), byte_level(320, regex=False))


def test_unknown_tokenizers_are_refused_by_name() -> None:
    tokenizer = byte_level(256)
    tokenizer.backend_tokenizer.decoder = decoders.CTC()
    tokenizer.name_or_path = "somebody/odd"
    with pytest.raises(UserError, match=r"somebody/odd.*CTC.*sft"):
        Aligner(KINDS["small"], tokenizer)
