"""Tokenizers of newborn models: bytes and what stands between matches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import models, newborn

ISOLATE = r"\d|[a-z](?=[a-z]*\z)| (?=\d)"
TEXTS = [
    "Spell this word (sun -> nus): tree",
    "Spell this word (sun -> nus): moss",
    "How many legs have 3 ants, 12 bees?",
    "How many legs have 4 ants, 1 bees?",
    "<think>tens 1+2=3 ones 4</think>34",
    "<think>tens 5-2=3 ones 6</think>36",
]


@pytest.fixture(scope="module")
def tokenizer():
    return newborn.phrase_tokenizer(iter(TEXTS), 400, ISOLATE)


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_what_stands_between_matches_is_one_token(tokenizer):
    assert pieces(tokenizer, TEXTS[0]) == ["Spell this word (sun -> nus): ", *"tree"]
    assert pieces(tokenizer, TEXTS[2]) == [
        *("How many legs have", " ", "3", " ants,", " ", "1", "2", " bees?")
    ]
    assert pieces(tokenizer, TEXTS[4]) == [
        *("<think>", "tens", " ", "1", "+", "2", "=", "3", " ones", " ", "4", "</think>", "3", "4")
    ]


def test_words_that_were_never_met_are_bytes(tokenizer):
    assert pieces(tokenizer, "Spell this word (sun -> nus): sunny")[1:] == [*"sunny"]


@given(st.text(alphabet="Spel th(sun)->: tree34 ants,é漢\n", max_size=60))
def test_any_text_comes_back(text):
    tokenizer = newborn.phrase_tokenizer(iter(TEXTS), 400, ISOLATE)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_the_vocabulary_ends_where_it_is_told_to_and_takes_what_saves_most():
    small = newborn.phrase_tokenizer(iter(TEXTS), 263, ISOLATE)
    assert len(small) == 263
    assert small.convert_ids_to_tokens(262) == "Spell this word (sun -> nus): "
    # Six special tokens, 256 bytes; what is met once is no phrase.
    whole = newborn.phrase_tokenizer(iter(TEXTS), 10_000, ISOLATE)
    assert {whole.convert_ids_to_tokens(i) for i in range(262, len(whole))} == {
        *("Spell this word (sun -> nus): ", "How many legs have", " ants,", " bees?"),
        *("tens", " ones"),
    }


def test_of_phrases_that_two_programs_would_take_otherwise_the_better_is_one():
    """In "ab cd" transformers takes the first to begin, llama.cpp the longest."""
    texts = ["1ab 2", "1ab 2", "1ab 2", "1 cd2", "1 cd2", "1é 2", "1é 2"]
    whole = newborn.phrase_tokenizer(iter(texts), 400)
    assert [whole.convert_ids_to_tokens(i) for i in range(262, len(whole))] == ["ab "]
    # Where the first to begin is the longest, too, both take it.
    texts = ["1abc 2", "1abc 2", "1 cd2", "1 cd2"]
    whole = newborn.phrase_tokenizer(iter(texts), 400)
    assert [whole.convert_ids_to_tokens(i) for i in range(262, len(whole))] == ["abc ", " cd"]


def test_it_is_saved_and_read_as_it_is(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    read = models.load_tokenizer(tmp_path)
    for text in [*TEXTS, "<|user|>How many legs have 3 ants, <|assistant|>\n x"]:
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (read.eos_token, read.pad_token) == (newborn.END, newborn.PAD)
