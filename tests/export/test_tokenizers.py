"""Tokenizers in llama.cpp: the same tokens for any text, or a refusal that says why."""

import pytest

from limbeck.errors import UserError
from tests.export import tiny

pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


def reads_alike(tokenizer, path, texts=(), splitting=None):
    """Writes a small model with this tokenizer, and proves texts and tokens, not next tokens."""
    from dataclasses import replace

    from limbeck.export import gguf, llama, proof, trials, vocabulary

    made = tiny.model("llama", tokenizer, hidden_size=32, num_hidden_layers=1)
    words = vocabulary.read(tokenizer, len(tokenizer))
    if splitting:
        words = replace(words, splitting=splitting)
    gguf.write(made, words, "f32", path, name="tiny", log=print)
    with llama.loaded(path, "tiny", 256, 60.0) as server:
        proof._same_tokens(server, "tiny", [*texts, *trials.texts(tokenizer)], tokenizer)
        proof._same_special(server, "tiny", tokenizer, words)
        drawn = proof._same_drawn(server, "tiny", tokenizer)
    return drawn["equal"] == drawn["of"]


def split_by(name):
    """A byte-level BPE that splits as one of llama.cpp's kinds."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    from limbeck import newborn
    from limbeck.export import splitting, trials

    known = splitting.KNOWN[name]
    made = Tokenizer(BPE(ignore_merges=known.whole_words))
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in known.patterns]
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, own])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=newborn.SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(trials.QUESTIONS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=newborn.END,
        pad_token=newborn.PAD,
        chat_template=newborn.CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


NAMES = ["gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "dbrx", "deepseek-v3", "tekken",
         "gpt-4o", "superbpe"]  # fmt: skip


def test_these_are_all_the_splittings_that_are_known():
    from limbeck.export import splitting

    assert list(splitting.KNOWN) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_splits_as_its_names_say(name, tmp_path):
    every = reads_alike(split_by(name), tmp_path / "a.gguf", splitting=name)
    assert every or name in ("tekken", "gpt-4o")  # which know the case of a to z alone


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "deepseek-v3"])
def test_a_splitting_is_found_by_what_it_does(name):
    from limbeck.export import vocabulary

    tokenizer = split_by(name)
    tokenizer.name_or_path = "misleading-gpt-2"
    assert vocabulary.read(tokenizer, len(tokenizer)).splitting == name


def test_merges_beyond_words_are_refused():
    from limbeck.export import vocabulary

    tokenizer = tiny.tokenizer(r"[A-Za-z](?=[A-Za-z]*\z)|\d")
    with pytest.raises(UserError, match="splits texts before its merges in a way that"):
        vocabulary.read(tokenizer, len(tokenizer))


def test_phrases_without_any_merge_are_read_exactly(tmp_path):
    """The vocabulary of miniatures: phrases with white space at either end, within one another."""
    phrases = (" ones", "tens", " +", "Let me check", "Let me check that", "check", "\n\nSo")
    texts = [f"{a}{space}{b}" for a in phrases for b in phrases for space in ("", " ", "\n")]
    tokenizer = tiny.phrases(*phrases)
    assert reads_alike(tokenizer, tmp_path / "a.gguf", texts)
    ids = tokenizer("Let me check that", add_special_tokens=False)["input_ids"]
    assert len(ids) == 1  # the longest


def test_phrases_that_overlap_are_found_and_refused(tmp_path):
    """transformers takes the first, llama.cpp the longest: ' on' + 'es pray' here."""
    tokenizer = tiny.phrases(" ones", "es praying")
    with pytest.raises(UserError, match="no added token may begin within another"):
        reads_alike(tokenizer, tmp_path / "a.gguf")


def test_phrases_that_transformers_itself_writes_wrongly_are_refused(tmp_path):
    """Its decoder takes an added token's letters for bytes, where they all could be some."""
    tokenizer = tiny.phrases("né")
    assert tokenizer.decode(tokenizer("né", add_special_tokens=False)["input_ids"]) != "né"
    with pytest.raises(UserError, match=r"llama\.cpp writes"):
        reads_alike(tokenizer, tmp_path / "a.gguf", ["né"])


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_eat_white_space_are_refused(flag):
    from limbeck.export import vocabulary

    tokenizer = tiny.phrases("word", **{flag: True})
    with pytest.raises(UserError, match=f"'word' has {flag}, which llama.cpp does not know"):
        vocabulary.read(tokenizer, len(tokenizer))


def test_types_and_special_ids(tmp_path):
    from limbeck.export import vocabulary

    tokenizer = tiny.phrases("Let me check")
    words = vocabulary.read(tokenizer, len(tokenizer) + 2)
    types = dict(zip(words.tokens, words.types, strict=True))
    assert types["<|end|>"] == vocabulary.CONTROL
    assert types["Let me check"] == vocabulary.USER_DEFINED
    assert types["a"] == vocabulary.NORMAL
    assert words.types[-2:] == (vocabulary.UNUSED,) * 2  # rows that no token has
    assert words.special == {"bos": 3, "eos": 3, "pad": 0, "eot": 3}
    assert (words.adds_bos, words.adds_eos) == (False, False)


def test_a_template_that_asks_for_a_token_that_is_not_there(tmp_path):
    """transformers leaves its name undefined; llama.cpp always has some token for it."""
    tokenizer = tiny.phrases("Let me check")
    tokenizer.chat_template = "{{ bos_token | default('', true) }}" + tokenizer.chat_template
    found = tiny.proved(tiny.model("llama", tokenizer), tokenizer, "f32", tmp_path / "a.gguf")
    assert found["templates"] >= 20


def test_a_tokenizer_that_opens_texts(tmp_path):
    """Its template writes the opening token, too; llama.cpp puts it there once."""
    from tokenizers import processors

    from limbeck.export import vocabulary

    tokenizer = tiny.phrases("Let me check")
    tokenizer.bos_token = "<think>"
    id = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<think> $A", special_tokens=[("<think>", id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert vocabulary.read(tokenizer, len(tokenizer)).adds_bos
    tiny.proved(tiny.model("llama", tokenizer), tokenizer, "f32", tmp_path / "a.gguf")
