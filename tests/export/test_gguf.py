"""GGUF files: every architecture computes in llama.cpp what it computes here; whole, or none."""

import errno
from pathlib import Path

import pytest

from limbeck.errors import UserError, disk_is_full
from tests.export import tiny

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 64}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.phrases("Let me check", " ones", "tens")


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": None, "head_dim": 32}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"rope_parameters": YARN}),
        ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 0.7}}),
        ("llama", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
        ("qwen3", {"head_dim": 32}),
        ("gpt2", {}),
    ],
)
def test_llama_cpp_computes_the_same_next_tokens(architecture, sizes, tokenizer, tmp_path):
    made = tiny.model(architecture, tokenizer, **sizes)
    found = tiny.proved(made, tokenizer, "f32", tmp_path / "f32.gguf")
    # float32 sums in another order, and log-probs that come as float32: 1e-6 at most, measured.
    assert found["model"]["kl_max"] < 1e-5
    assert found["model"]["positions"] >= 100 and found["prompts"] >= 20


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_each_type_is_as_far_as_its_bits(kind, tokenizer, tmp_path):
    path = tmp_path / f"{kind}.gguf"
    found = tiny.proved(tiny.model("llama", tokenizer), tokenizer, kind, path)
    assert found["file"]["kl_mean"] <= found["file"]["kl_bound"]
    if kind.startswith("q"):  # rounding loses something, and that is the price, not the file
        assert found["model"]["kl_mean"] > found["file"]["kl_mean"]


def test_matrices_have_the_type_and_all_else_is_float32(tokenizer, tmp_path):
    from gguf import GGUFReader

    tiny.proved(tiny.model("llama", tokenizer), tokenizer, "q4_0", tmp_path / "q4_0.gguf")
    reader = GGUFReader(tmp_path / "q4_0.gguf")
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["blk.0.attn_q.weight"] == types["output.weight"] == "Q4_0"
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"


def test_a_row_that_is_no_whole_blocks_is_kept_in_float16_and_said(tokenizer, tmp_path):
    from limbeck.export import gguf, vocabulary

    made = tiny.model("llama", tokenizer, hidden_size=80, intermediate_size=96)
    words, said = vocabulary.read(tokenizer, len(tokenizer)), []
    gguf.write(made, words, "q8_0", tmp_path / "a.gguf", name="tiny", log=said.append)
    assert any("attn_q.weight is kept as f16: rows of 80 are no multiple of 32" in s for s in said)
    assert not any("ffn_down" in line for line in said)  # its rows are 96


def test_weights_beyond_float16_are_refused(tokenizer, tmp_path):
    from limbeck.export import gguf, vocabulary

    made = tiny.model("llama", tokenizer)
    with torch.no_grad():
        made.lm_head.weight[0, 0] = 1e5
    words = vocabulary.read(tokenizer, len(tokenizer))
    with pytest.raises(UserError, match=r"output\.weight is beyond float16; take bf16"):
        gguf.write(made, words, "f16", tmp_path / "a.gguf", name="tiny", log=print)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("architecture", "sizes", "what"),
    [
        ("mistral", {"sliding_window": 64}, "slides over 64 tokens of 256"),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("qwen2", {"rope_parameters": LLAMA3}, "scaled by llama3"),
        ("gpt_neox", {}, "cannot write a gpt_neox model"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(architecture, sizes, what, tokenizer):
    from transformers import AutoConfig

    from limbeck.export import decoders

    config = AutoConfig.for_model(architecture, **{**tiny.SIZES, **sizes})
    with pytest.raises(UserError, match=what):
        decoders.architecture(config)


@pytest.mark.parametrize("number", [errno.ENOSPC, None])  # numpy tells no number
def test_a_full_disk_leaves_nothing(number, tokenizer, tmp_path, monkeypatch):
    from gguf import GGUFWriter

    from limbeck.export import gguf, vocabulary

    written = []

    def full(self, data, **_):
        written.append(data)
        if len(written) > 3:
            raise OSError(number, "4096 requested and 0 written") if number else OSError("0 of 9")

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", full)
    words = vocabulary.read(tokenizer, len(tokenizer))
    made = tiny.model("llama", tokenizer)
    with pytest.raises(OSError, match=r"written|No space") as raised:
        gguf.write(made, words, "f32", Path(tmp_path / "a.gguf"), name="tiny", log=print)
    assert disk_is_full(raised.value)
    assert not list(tmp_path.iterdir())
