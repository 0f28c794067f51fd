import json
import os
import shutil
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from limbeck import chat, models, newborn, sharding
from limbeck.errors import UserError
from limbeck.train.head import TokenModel

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def texts() -> Iterator[str]:
    return (f"What is {a} + {b}? Let me check: {a + b}" for a in range(30) for b in range(30))


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    return newborn.train_tokenizer(texts(), 330)


def make_model(seed: int = 0, architecture: str = "qwen3", **sizes: object) -> PreTrainedModel:
    return newborn.create_model(
        architecture, 330, seed, eos_token_id=3, pad_token_id=0, **{**SIZES, **sizes}
    )


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.save_model(make_model(), make_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def test_create_depends_on_the_seed_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = make_model(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert same(one, make_model(1))
    assert not same(one, make_model(2))
    assert (one.config.eos_token_id, one.generation_config.pad_token_id) == (3, 0)
    with pytest.raises(UserError, match="no hiden_size"):
        make_model(hiden_size=3)
    with pytest.raises(UserError, match="qwen2000"):
        make_model(architecture="qwen2000")


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, architecture: str) -> None:
    model, tokenizer = make_model(architecture=architecture), make_tokenizer()
    models.save_model(model, tokenizer, tmp_path / "a" / "model")
    models.save_model(model, tokenizer, tmp_path / "a" / "model")  # in place of the first
    assert os.listdir(tmp_path / "a") == ["model"]
    loaded = models.load_model(tmp_path / "a" / "model")
    assert same(model, loaded)
    assert loaded.generation_config.eos_token_id == 3
    again = models.load_tokenizer(tmp_path / "a" / "model")
    assert again.chat_template == tokenizer.chat_template
    text = "<|user|>Let me check: 3 + 41 é漢🙂<think></think><|end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.eos_token, again.pad_token) == ("<|end|>", "<|pad|>")


def test_training_leaves_no_trace_in_the_folder(tmp_path: Path) -> None:
    model = make_model()
    TokenModel(model)
    models.save_model(model, make_tokenizer(), tmp_path / "model")
    assert "limbeck" not in (tmp_path / "model" / "config.json").read_text()
    models.load_model(tmp_path / "model")(torch.tensor([[1, 2]]))


def test_load_dtype(folder: Path) -> None:
    model = models.load_model(str(folder), "bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match="float8"):
        models.load_model(folder, "float8")


def test_a_failed_save_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = models.hash_model(folder)
    tokenizer = make_tokenizer()

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        models.save_model(make_model(5), tokenizer, folder)
    assert models.hash_model(folder) == before


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing", "./nothing", "/a/b/c"):
        with pytest.raises(UserError, match="no such folder"):
            models.load_model(missing)
        with pytest.raises(UserError, match="no such folder"):
            models.load_tokenizer(missing)
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickles"):
        models.load_model(pickled)
    foreign = tmp_path / "foreign"
    shutil.copytree(folder, foreign)
    config = json.loads((folder / "config.json").read_text())
    for model_type in (config["model_type"], "mine"):
        config |= {"model_type": model_type, "auto_map": {"AutoConfig": "x.C"}}
        (foreign / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="code of its own"):
            models.load_model(foreign)
    (foreign / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        models.load_model(foreign)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        models.load_tokenizer(empty)


def test_hash_knows_what_matters(folder: Path, tmp_path: Path) -> None:
    before = models.hash_model(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert models.hash_model(tmp_path / "copy") == before
    (folder / "README.md").write_text("hello")
    (folder / "config.json").chmod(stat.S_IRUSR)
    assert models.hash_model(folder) == before
    for name in ("chat_template.jinja", "model.safetensors", "tokenizer.json", "config.json"):
        path = tmp_path / "copy" / name
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        changed = models.hash_model(tmp_path / "copy")
        assert changed != before
        before = changed
    assert models.hash_model("Qwen/Qwen2.5-1.5B@abc") == "Qwen/Qwen2.5-1.5B@abc"
    assert models.hash_model("Qwen/Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B@main"


@pytest.mark.parametrize("tied", [True, False])
def test_counts(tied: bool) -> None:
    model = make_model(architecture="llama", tie_word_embeddings=tied)
    layer = 16 * 16 * 2 + 2 * 16 * 8 + 3 * 16 * 24  # q and o, k and v, the MLP
    norms = 2 * 2 * 16 + 16
    table = 330 * 16
    assert models.num_parameters(model, embeddings=False) == 2 * layer + norms
    assert models.num_parameters(model) == 2 * layer + norms + table * (1 if tied else 2)
    # queries with keys, probabilities with values: 2 * 2 FLOPs for each of 16 = heads * width
    expected = 2 * (2 * layer + table) + 2 * 4 * 16 * 10
    assert models.flops_per_token(model, 10) == expected


def test_flops_equal_torchs_own_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(architecture="llama")
    model.set_attn_implementation("eager")  # a full, not a causal square: context = length
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(12)[None])
    # theirs counts the rotary angles' outer product too, (width / 2) * length a forward
    assert abs(counter.get_total_flops() / 12 / models.flops_per_token(model, 12) - 1) < 1e-3


def test_tokenizer_round_trips_anything() -> None:
    tokenizer = make_tokenizer()
    assert 6 + 256 < len(tokenizer) <= 330
    for text in ["", " ", "  a\n\n b\t", "é漢🙂\u200d\ufeff\x00\x7f", "x = 12345.678e-9", "…\r\n"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_merges_words_but_no_digits() -> None:
    tokenizer = make_tokenizer()
    pieces = [tokenizer.decode([token]) for token in tokenizer("What is 12 + 345")["input_ids"]]
    assert pieces == ["What is ", "1", "2", " + ", "3", "4", "5"]
    specials = "<|pad|><|user|><|assistant|><|end|><think></think>"
    assert tokenizer(specials)["input_ids"] == [0, 1, 2, 3, 4, 5]


def test_tokenizer_is_deterministic() -> None:
    again = newborn.train_tokenizer(texts(), 330)
    assert again.get_vocab() == make_tokenizer().get_vocab()


def test_pick_device() -> None:
    assert sharding.pick_device("cpu") == torch.device("cpu")
    assert sharding.pick_device("auto").type in {"cpu", "cuda"}


def test_gpt2_is_created_by_common_names_and_without_dropout():
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 40}
    config = newborn.create_model("gpt2", 61, 0, eos_token_id=1, pad_token_id=0, **sizes).config
    assert (config.n_embd, config.n_layer, config.n_head) == (16, 3, 2)
    assert (config.n_inner, config.n_positions) == (24, 40)
    assert {config.resid_pdrop, config.embd_pdrop, config.attn_pdrop} == {0.0}
    with pytest.raises(UserError, match="no num_key_value_heads"):
        newborn.create_model("gpt2", 61, 0, eos_token_id=1, pad_token_id=0, num_key_value_heads=2)


def test_rotary_positions_alone_can_be_stretched(folder: Path, tmp_path: Path) -> None:
    stretched = models.load_model(folder, context=4096, rope_theta=3e5).config
    assert (stretched.max_position_embeddings, stretched.rope_parameters["rope_theta"]) == (
        4096,
        3e5,
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    learned = newborn.create_model("gpt2", 330, 0, eos_token_id=3, pad_token_id=0, **sizes)
    models.save_model(learned, make_tokenizer(), tmp_path / "gpt2")
    own = learned.config.max_position_embeddings
    assert models.load_model(tmp_path / "gpt2", context=own).config.max_position_embeddings == own
    for knobs in ({"context": own + 1}, {"rope_theta": 1e5}):
        with pytest.raises(UserError, match="has no rotary positions, its context stays"):
            models.load_model(tmp_path / "gpt2", **knobs)


def test_a_model_whose_config_knows_no_longest_text_is_loaded(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "n_layer": 1, "n_head": 2}
    bloom = newborn.create_model("bloom", 330, 0, eos_token_id=3, pad_token_id=0, **sizes)
    models.save_model(bloom, make_tokenizer(), tmp_path / "bloom")
    assert models.load_model(tmp_path / "bloom").config.model_type == "bloom"


def test_a_saved_model_ends_its_turns_in_other_programs_too(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    end = chat.end_of_turn(tokenizer)
    for eos, told in ((5, [end, 5]), ([7, 5], [end, 7, 5]), (end, end), (None, end)):
        model = make_model()
        model.generation_config.eos_token_id = eos
        models.save_model(model, tokenizer, tmp_path / "model")
        settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
        assert settings["eos_token_id"] == told
