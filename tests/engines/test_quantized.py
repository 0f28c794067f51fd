"""The local engine on folders of codes: what it says is what the format means, in any company."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from limbeck import models, newborn
from limbeck.compress import packing
from limbeck.compress.quantize.grid import Grid
from limbeck.engines import local
from limbeck.engines.decoder import kernel, linear, quantized, weights
from limbeck.engines.foreign import ForeignEngine
from limbeck.engines.local_engine import LocalEngine
from limbeck.errors import UserError
from limbeck.packed import Scheme
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling

torch.set_num_threads(1)

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 80,
    "initializer_range": 0.3,  # texts that differ from each other
}
SCHEMES = {
    "int8": Scheme("int8"),
    "int4": Scheme("int4", 32),
    "int4 with zero points": Scheme("int4", 16, symmetric=False),
    "int8 by int8": Scheme("int8", activations="int8"),
    "fp8": Scheme("fp8"),
    "fp8 by fp8": Scheme("fp8", activations="fp8"),
}
ARCHITECTURES = {"qwen2": {}, "qwen3": {"head_dim": 32}, "llama": {"attention_bias": True}}


@pytest.fixture(scope="module")
def tokenizer():
    return newborn.train_tokenizer(
        (f"{a} plus {b} is {a + b} legs" for a in range(9) for b in range(9)), 300
    )


def tiny(architecture, tokenizer, **special):
    model = newborn.create_model(
        architecture,
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**SIZES, **special},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for key, weight in model.named_parameters():
            if "norm" in key or "bias" in key:  # made 1 and 0, which hides mistakes
                weight.data += 0.3 * torch.randn_like(weight)
    return model.eval()


def codes_of(weight, scheme):
    """To the nearest."""
    grid = Grid(scheme.weights, scheme.group_size, scheme.symmetric)
    return grid.round(weight, *grid.fit(weight))


def save(model, tokenizer, scheme, folder, leaves=("lm_head",)):
    """The model's folder, all its matrices as codes but those."""
    codes = {
        name: codes_of(module.weight.detach(), scheme)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in leaves
    }
    packing.save(model, tokenizer, codes, scheme, folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("quantized")
    model = tiny("qwen2", tokenizer)
    return {
        name: save(model, tokenizer, scheme, place / name.replace(" ", "_"))
        for name, scheme in SCHEMES.items()
    }


def ragged_requests(num=10, samples=2):
    questions = ["legs " * (1 + i % 7) + f"{i} plus {i * i}" for i in range(num)]
    problems = [make_problem(q, "0", verifier="exact") for q in questions]
    return [
        Request(f"{p.id}/{i}", p, i, seed=997 * n + i)
        for n, p in enumerate(problems)
        for i in range(samples)
    ]


def texts(engine, sampling, requests=None):
    return {t.id: t.token_ids for t in engine.generate(requests or ragged_requests(), sampling)}


def logprobs(model, ids):
    """Of each token behind the first, by transformers."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return table[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].float()


def scored(engine, ids):
    return torch.tensor(next(engine.score([ids])).logprobs[1:])


@pytest.mark.parametrize("name", [name for name in SCHEMES if " by " not in name])
def test_codes_alone_score_as_the_dense_model_that_they_stand_for(name, folders):
    engine = local.connect(model=folders[name], device="cpu")
    assert isinstance(engine, LocalEngine)
    ids = [*range(5, 45)]
    expected = logprobs(models.load_model(folders[name]), ids)
    torch.testing.assert_close(scored(engine, ids), expected, atol=1e-4, rtol=0)


def fake_quantized(folder, most, rounded):
    """The dense model in float64, whose matrices round what comes in: row by row, to `most`."""
    model = models.load_model(folder).double()

    def around(module, inputs):
        (x,) = inputs
        scales = (x.abs().amax(-1, keepdim=True).float() / most).double()
        return (rounded(x / scales) * scales,)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(around)
    return model


# Where the engine's x, in float32, lies within its rounding of the border between two numbers, it
# takes the other one. That moves a log-probability by a thousandth of what the rounding of all
# inputs does (0.1 to 0.5 here, checked below), so that most agree to 1e-3 and few are further off.
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rounded_inputs_score_as_a_naive_reference(
    kind, architecture, compiled, tokenizer, tmp_path
):
    model = tiny(architecture, tokenizer, **ARCHITECTURES[architecture])
    folder = save(model, tokenizer, Scheme(kind, activations=kind), tmp_path / "model")
    shape, stored = quantized.read_folder(tmp_path / "model", torch.float32)
    engine = LocalEngine(shape, tokenizer, name="tiny", compiled=compiled, stored=stored)
    if kind == "int8":
        most, rounded = 127, torch.round
    else:
        most, rounded = 448, lambda x: x.float().to(torch.float8_e4m3fn).double()
    ids = [*range(5, 45)]
    expected = logprobs(fake_quantized(folder, most, rounded), ids)
    dense = logprobs(models.load_model(folder), ids)
    off = (scored(engine, ids) - expected).abs()
    assert off.median() < 1e-3
    assert off.mean() < (dense - expected).abs().mean() / 10


def test_the_compiled_product_is_torchs_own():
    built = kernel.load()
    assert built
    if not hasattr(built.library, "multiply_float32"):
        pytest.skip("this processor has no instruction for it")
    draw = torch.Generator().manual_seed(3)
    for num_inputs, num_outputs in ((64, 16), (96, 208), (1024, 80)):
        weight = torch.randn(num_outputs, num_inputs, generator=draw)
        bias = torch.randn(num_outputs, generator=draw)
        codes = codes_of(weight, SCHEMES["int8 by int8"])
        plain = linear.Rounded.of(codes, bias, "int8", CPU)
        ours = kernel.Blocks.of(plain, built)
        for dtype in (torch.float32, torch.bfloat16):
            for num_rows in (1, 2, 3, 7, 33):
                x = torch.randn(num_rows, num_inputs, generator=draw).to(dtype)
                x[num_rows // 2] = 0
                torch.testing.assert_close(ours(x), plain(x), atol=0, rtol=1e-6)
                assert torch.equal(ours(x.T.contiguous().T), ours(x))
                exact = x.double() @ codes.dense().double().T + bias.double()
                assert (ours(x) - exact).norm() < 0.02 * exact.norm()
        for broken in (float("nan"), float("inf")):
            x = torch.ones(2, num_inputs)
            x[1, 5] = broken
            assert ours(x)[0].isfinite().all() and not ours(x)[1].isfinite().any()
            assert plain(x)[0].isfinite().all() and not plain(x)[1].isfinite().any()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_where_torch_cannot_multiply_the_numbers_floats_say_the_same(kind, monkeypatch, caplog):
    draw = torch.Generator().manual_seed(3)
    codes = codes_of(torch.randn(48, 64, generator=draw), SCHEMES[f"{kind} by {kind}"])
    x = torch.randn(5, 64, generator=draw)
    numbers = linear.NUMBERS[kind]
    monkeypatch.setattr(linear, "can_multiply", lambda *_: True)
    one = linear.Rounded.of(codes, None, kind, CPU)
    assert one.codes.dtype == numbers
    monkeypatch.undo()

    def missing(*_):
        raise NotImplementedError("no such product")

    with monkeypatch.context() as patched:
        patched.setattr(linear, "product", missing)
        linear.can_multiply.cache_clear()
        other = linear.Rounded.of(codes, None, kind, CPU)
        linear.can_multiply.cache_clear()
        assert other.codes.dtype == torch.float32
        assert ("does not multiply int8 on cpu" in caplog.text) == (kind == "int8")
        floats = other(x)
    torch.testing.assert_close(one(x), floats, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["int8 by int8", "fp8 by fp8", "int4"])
def test_texts_do_not_depend_on_the_batch(name, folders):
    sampling, requests = Sampling(1.0, 0.9, 24), ragged_requests(10, samples=3)
    whole = local.connect(model=folders[name], device="cpu")
    expected = texts(whole, sampling, requests)
    assert len({*expected.values()}) > 10
    for batch_rows in (1, 7):
        some = local.connect(model=folders[name], device="cpu", batch_rows=batch_rows)
        written = texts(some, sampling, requests[::-1])
        # Attention and the head round otherwise in other shapes, as those of any engine do.
        assert sum(written[key] != expected[key] for key in expected) <= 1


def test_a_row_is_rounded_as_if_it_were_alone():
    draw = torch.Generator().manual_seed(3)
    codes = codes_of(torch.randn(48, 64, generator=draw), SCHEMES["int8 by int8"])
    layer = linear.Rounded.of(codes, None, "int8", CPU)
    x = torch.randn(9, 64, generator=draw)
    x[4] *= 1000  # with one scale for all, the others would be nothing
    built = kernel.load()
    for product in (layer, kernel.Blocks.of(layer, built)):
        together = product(x)
        assert all(torch.equal(together[i], product(x[i : i + 1])[0]) for i in range(9))


def test_codes_stay_codes(folders):
    """One byte a number, and the folder's own are let go while they are read."""
    engine = local.connect(model=folders["int8 by int8"], device="cpu")
    for layer in engine.decoder.layers:
        for matrix in (layer.qkv, layer.out, layer.up, layer.down):
            assert matrix.codes.dtype == torch.int8
    shape, stored = quantized.read_folder(models.folder_of(folders["int4"]), torch.bfloat16)
    assert all(weight.is_meta for weight in shape.parameters())
    decoder = weights.read(shape, CPU, stored)
    assert not stored.matrices
    assert decoder.dtype == torch.bfloat16


def test_a_head_that_is_kept_as_codes_is_dense(tokenizer, tmp_path):
    model = tiny("llama", tokenizer, tie_word_embeddings=False)
    folder = save(model, tokenizer, SCHEMES["int8"], tmp_path / "model", leaves=())
    ids = [*range(5, 45)]
    expected = logprobs(models.load_model(folder), ids)
    found = scored(local.connect(model=folder, device="cpu"), ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_is_left_dense_beside_codes_is_left_dense(tokenizer, tmp_path):
    leaves = ("lm_head", "model.layers.1.self_attn.k_proj", "model.layers.2.mlp.down_proj")
    model = tiny("qwen2", tokenizer)
    folder = save(model, tokenizer, SCHEMES["int8 by int8"], tmp_path / "model", leaves)
    engine = local.connect(model=folder, device="cpu")
    kinds = [isinstance(x.qkv, linear.Linear) for x in engine.decoder.layers]
    assert kinds == [False, True, False]  # one matrix of the three cannot be rounded for
    assert isinstance(engine.decoder.layers[2].down, linear.Linear)
    ids = [*range(5, 45)]
    expected = logprobs(models.load_model(folder), ids)
    assert (scored(engine, ids) - expected).abs().mean() < 0.3


def test_a_strangers_file_beside_the_weights_is_not_read(tokenizer, tmp_path):
    folder = save(tiny("llama", tokenizer), tokenizer, SCHEMES["int8"], tmp_path / "model")
    own = scored(local.connect(model=folder, device="cpu"), [5, 6, 7])
    save_file({"model.norm.weight": torch.full((64,), 9.0)}, tmp_path / "model" / "z.safetensors")
    assert torch.equal(scored(local.connect(model=folder, device="cpu"), [5, 6, 7]), own)


@pytest.mark.parametrize("name", ["int8 by int8", "int4"])
def test_new_weights_are_refused_in_one_line(name, folders):
    engine = local.connect(model=folders[name], device="cpu")
    before = texts(engine, Sampling(0.0, max_tokens=8))
    state = models.load_model(folders[name]).state_dict()
    with pytest.raises(UserError, match="is quantized and takes no new weights") as caught:
        engine.load_weights(state)
    assert "\n" not in str(caught.value)
    assert texts(engine, Sampling(0.0, max_tokens=8)) == before


def test_an_engine_of_codes_is_counted_and_ends_as_the_model(folders, tokenizer):
    engine = local.connect(model=folders["int4"], device="cpu")
    model = models.load_model(folders["int4"])
    assert engine.num_parameters == models.num_parameters(model)
    assert engine.stops == LocalEngine(model, tokenizer, name="dense").stops


def test_architectures_whose_layers_are_not_read_are_written_dense(tokenizer, tmp_path, caplog):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = newborn.create_model(
        "stablelm", len(tokenizer), 0, eos_token_id=2, pad_token_id=1, **SIZES
    ).eval()
    folder = save(model, tokenizer, SCHEMES["int8 by int8"], tmp_path / "model")
    engine = local.connect(model=folder, device="cpu")
    assert isinstance(engine, ForeignEngine)
    assert "dense weights" in caplog.text
    dynamic = tiny("llama", tokenizer, rope_parameters=rope)
    folder = save(dynamic, tokenizer, SCHEMES["int4"], tmp_path / "dynamic")
    engine = local.connect(model=folder, device="cpu")
    assert isinstance(engine, ForeignEngine)
    written = texts(engine, Sampling(0.0, max_tokens=6), ragged_requests(2, 1))
    assert all(len(ids) > 0 for ids in written.values())


def drop(tensors, config):
    del tensors["model.layers.1.mlp.down_proj.weight"]
    del tensors["model.layers.1.mlp.down_proj.weight_scale"]


def cut_norm(tensors, config):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:7].clone()


def break_scale(tensors, config):
    tensors["model.layers.0.mlp.up_proj.weight_scale"][3] = float("nan")


def cut_vocabulary(tensors, config):
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 64, dtype=torch.int8)
    tensors["model.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(32, 1)


@pytest.mark.parametrize("change", [drop, cut_norm, break_scale, cut_vocabulary])
def test_broken_folders_are_refused_in_one_line(change, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save(tiny("qwen2", tokenizer), tokenizer, SCHEMES["int8 by int8"], folder)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        local.connect(model=str(folder), device="cpu")
    assert "\n" not in str(caught.value)
