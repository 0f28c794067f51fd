"""The proof can fail: each thing that may be wrong with a file is found and named."""

import json
from dataclasses import replace

import pytest

from limbeck.errors import UserError
from tests.export import tiny

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.phrases("Let me check", " ones")


def prove(tokenizer, path, made=None, kind="f32", **changes):
    """Writes a file that is wrong by `changes` of its vocabulary, and proves it."""
    from limbeck.export import gguf, proof, trials, vocabulary

    made = made or tiny.model("llama", tokenizer)
    words = vocabulary.read(tokenizer, len(tokenizer))
    gguf.write(made, replace(words, **changes), kind, path, name="tiny", log=print)
    talks = proof.taken(tokenizer, trials.conversations())
    return proof.prove(path, kind, made, tokenizer, words, talks, print)


def test_another_template(tokenizer, tmp_path):
    other = tokenizer.chat_template.replace("'<|end|>'", "'<|end|>\n'")
    with pytest.raises(UserError, match=r"llama.cpp writes 'Add 2 and 3.' as"):
        prove(tokenizer, tmp_path / "a.gguf", template=other)


def test_another_end_of_a_turn(tokenizer, tmp_path):
    wrong = {"bos": 3, "eos": 1, "pad": 0, "eot": 1}
    with pytest.raises(UserError, match=r"llama.cpp has '<\|user\|>' as eos, not '<\|end\|>'"):
        prove(tokenizer, tmp_path / "a.gguf", special=wrong)


def test_tokens_in_another_order(tokenizer, tmp_path):
    from limbeck.export import vocabulary

    tokens = list(vocabulary.read(tokenizer, len(tokenizer)).tokens)
    tokens[50], tokens[51] = tokens[51], tokens[50]
    with pytest.raises(UserError, match=r"llama\.cpp reads"):
        prove(tokenizer, tmp_path / "a.gguf", tokens=tuple(tokens))


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_rows_of_q_and_k_in_transformers_order(kind, tokenizer, tmp_path, monkeypatch):
    from limbeck.export import decoders

    monkeypatch.setattr(decoders, "_interleaved", lambda weight, num_heads: weight)
    with pytest.raises(UserError, match=r"nats from|chooses another token"):
        prove(tokenizer, tmp_path / "a.gguf", kind=kind)


def test_a_weight_that_is_a_little_wrong_in_a_coarse_file(tokenizer, tmp_path, monkeypatch):
    """Within the price of q4_0, but not what its own weights say."""
    from limbeck.export import gguf

    right = gguf.quantized

    def scaled(name, rows, kind):
        return right(name, rows * 1.3 if name == "blk.0.ffn_down.weight" else rows, kind)

    made = tiny.model("llama", tokenizer)
    monkeypatch.setattr(gguf, "quantized", scaled)
    rounded = gguf.round_weights

    def round_rightly(model, kind):
        monkeypatch.setattr(gguf, "quantized", right)
        rounded(model, kind)

    monkeypatch.setattr(gguf, "round_weights", round_rightly)
    with pytest.raises(UserError, match=r"what the file's own weights say"):
        prove(tokenizer, tmp_path / "a.gguf", made, "q4_0")


def test_what_is_no_gguf_file_is_one_line(tmp_path):
    from limbeck.export import llama

    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 200)
    with (
        pytest.raises(UserError, match=r"llama\.cpp (objects|died)"),
        llama.loaded(path, "export a.gguf", 64, 60.0),
    ):
        pass


def test_llama_cpp_that_is_late_is_ended(tokenizer, tmp_path):
    from limbeck.export import gguf, llama, vocabulary

    path = tmp_path / "a.gguf"
    made, words = tiny.model("llama", tokenizer), vocabulary.read(tokenizer, len(tokenizer))
    gguf.write(made, words, "f32", path, name="tiny", log=print)
    with (
        pytest.raises(UserError, match=r"took more than 0\.01 s"),
        llama.loaded(path, "export a.gguf", 64, 0.01),
    ):
        pass


def test_figures_are_plain_json(tokenizer, tmp_path):
    found = prove(tokenizer, tmp_path / "a.gguf")
    assert json.loads(json.dumps(found)) == found


def test_a_large_vocabulary_counts_the_rest_as_one():
    from limbeck.export import proof

    ours = torch.tensor([0.5, 0.3, 0.1, 0.1]).log().double()
    place = proof._place(ours, [(0, -0.5), (1, -1.5)])
    q0, q1 = torch.tensor([-0.5, -1.5]).exp().tolist()
    expected = 0.5 * (ours[0] + 0.5) + 0.3 * (ours[1] + 1.5)
    expected += 0.2 * torch.tensor(0.2 / (1 - q0 - q1)).log()
    assert place.kl == pytest.approx(float(expected), abs=1e-6)  # of float32 in this test
    assert place.agrees and place.margin == pytest.approx(float(ours[0] - ours[1]))


def test_a_sum_in_float32_makes_no_difference_and_a_larger_factor_does():
    """llama.cpp's log-probs over 49,152 tokens were seen to be too large by 2e-4 each."""
    from limbeck.export import proof

    torch.manual_seed(0)
    ours = (3 * torch.randn(49152, dtype=torch.float64)).log_softmax(-1)
    likeliest = ours.topk(1024)
    told = list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
    assert proof._place(ours, [(id, lp + 2e-4) for id, lp in told]).kl < 1e-12
    assert proof._place(ours, [(id, lp + 0.1) for id, lp in told]).kl > 1e-3


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "f16", "bf16"])
def test_inputs_are_rounded_as_ggml_rounds_them(kind):
    from gguf import GGMLQuantizationType as Type
    from gguf import quants

    from limbeck.export import rounding

    torch.manual_seed(0)
    inputs = torch.randn(5, 96) * torch.logspace(-3, 3, 96)
    inputs[0, :32] = 0.0
    stored = Type.Q8_0 if kind.startswith("q") else Type[kind.upper()]
    expected = quants.dequantize(quants.quantize(inputs.numpy(), stored), stored)
    assert torch.equal(rounding.rounded(inputs, kind), torch.tensor(expected))
    row = torch.randn(1, 80)  # no whole blocks: float16
    if kind.startswith("q"):
        assert torch.equal(rounding.rounded(row, kind), row.half().float())


def test_the_bound_is_of_the_model_and_leaves_it_as_it_was(tokenizer):
    """Twice what rounding does to it; nothing for float32, nothing stays behind."""
    from limbeck.export import proof

    made = tiny.model("llama", tokenizer)
    prompts, answers = [[5, 6, 7, 8]], [[[(9, -1.0)], [(10, -1.0)]]]
    before = proof._next_tokens(made, prompts[0], answers[0])
    coarse, fine = (proof.compare_file(made, kind, prompts, answers)[0] for kind in ("q8_0", "f32"))
    assert fine == proof.LEAST
    assert coarse.kl > 10 * fine.kl and coarse.margin > fine.margin
    assert torch.equal(proof._next_tokens(made, prompts[0], answers[0]), before)
