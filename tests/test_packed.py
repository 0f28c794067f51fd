"""Folders of compressed-tensors: ours against the library's, and against transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from limbeck import guard, models, packed
from limbeck.compress import packing
from limbeck.compress.quantize.grid import Grid
from limbeck.errors import UserError
from limbeck.packed import Codes, Scheme
from tests.test_models import make_model, make_tokenizer

SCHEMES = [
    Scheme("int8"),
    Scheme("int8", 8),
    Scheme("int4", 8),
    Scheme("int4"),
    Scheme("int4", 8, symmetric=False),
    Scheme("int8", 8, symmetric=False),
    Scheme("int8", activations="int8"),
    Scheme("fp8", activations="fp8"),
    Scheme("fp8"),
]
IDS = torch.arange(1, 41)[None]


def codes_of(model: PreTrainedModel, scheme: Scheme) -> dict[str, Codes]:
    """Every matrix of the blocks, to the nearest."""
    grid = Grid(scheme.weights, scheme.group_size, scheme.symmetric, model.dtype)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            weight = module.weight.detach()
            found[name] = grid.round(weight, *grid.fit(weight))
    return found


def written(folder: Path, scheme: Scheme, **sizes: Any) -> tuple[PreTrainedModel, dict[str, Codes]]:
    """(the model as it was, its codes), written to a folder."""
    dtype = sizes.pop("dtype", torch.float32)
    model = make_model(initializer_range=0.2, **sizes).to(dtype)
    codes = codes_of(model, scheme)
    packing.save(model, make_tokenizer(), codes, scheme, folder)
    return model, codes


def same(one: Codes, other: Codes) -> bool:
    """Bit by bit; float8 has no equal."""
    pairs = [(one.codes, other.codes), (one.scales, other.scales), (one.zeros, other.zeros)]
    if any(a is None or b is None or a.dtype != b.dtype for a, b in pairs[:2]):
        return False
    if one.zeros is None or other.zeros is None:
        return one.zeros is other.zeros and all(
            torch.equal(a.float(), b.float()) for a, b in pairs[:2]
        )
    return all(torch.equal(a.float(), b.float()) for a, b in pairs)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_codes_come_back_bit_by_bit(tmp_path: Path, scheme: Scheme, dtype: torch.dtype) -> None:
    model, codes = written(tmp_path / "model", scheme, dtype=dtype)
    assert packed.read_scheme(tmp_path / "model") == scheme
    back = packed.read(tmp_path / "model")
    assert back.keys() == codes.keys()
    assert all(same(codes[name], back[name]) for name in codes)
    assert {matrix.scales.dtype for matrix in back.values()} == {dtype}
    assert not hasattr(model.config, "quantization_config"), "saving leaves no trace in the model"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_plain_transformers_says_the_same(tmp_path: Path, scheme: Scheme, tied: bool) -> None:
    was, _ = written(tmp_path / "model", scheme, tie_word_embeddings=tied)
    ours = models.load_model(tmp_path / "model")
    told: dict[str, Any] = {}
    if not scheme.symmetric:
        # Without it transformers 5.23 expects zero points unpacked, whoever wrote the folder.
        told["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **told)
    if scheme.activations:
        round_inputs(ours, scheme.activations)
    with torch.no_grad():
        mine, other, before = (model(IDS).logits for model in (ours, theirs, was))
    # Both multiply the same codes by the same scales in float32. Rounded inputs may fall on the
    # other side of a tie, since the two divide in another order.
    within = 2e-2 if scheme.activations else 1e-5
    assert float((mine - other).abs().max()) <= within * float(before.std())
    assert float((mine - before).abs().max()) > 1e-4 * float(before.std()), "nothing was rounded"
    assert theirs.get_output_embeddings().weight.equal(was.get_output_embeddings().weight)


def round_inputs(model: PreTrainedModel, kind: str) -> None:
    """Rounds what comes into each matrix, token by token, as the library does."""

    def rounded(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        furthest = args[0].abs().amax(dim=-1, keepdim=True)
        if kind == "fp8":
            scales = furthest / 448
            return (args[0] / scales).to(torch.float8_e4m3fn).float() * scales
        scales = furthest / 127.5
        return (args[0] / scales).round().clamp(-128, 127) * scales

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(rounded)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(3, 5), (8, 32), (1, 1), (17, 40), (9, 7)])
def test_packing_is_the_librarys_bit_by_bit(bits: int, shape: tuple[int, int]) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    draw, most = torch.Generator().manual_seed(bits), 1 << bits - 1
    codes = torch.randint(-most, most, shape, generator=draw, dtype=torch.int8)
    zeros = torch.randint(-most, most, (shape[0], 3), generator=draw, dtype=torch.int8)
    scheme = Scheme("int4" if bits == 4 else "int8", symmetric=False)
    tensors = packed.pack(Codes(codes, torch.ones(shape[0], 3), zeros), scheme)
    assert torch.equal(tensors["weight_packed"], pack_to_int32(codes, bits))
    assert torch.equal(tensors["weight_zero_point"], pack_to_int32(zeros, bits, packed_dim=0))
    assert tensors["weight_shape"].tolist() == list(shape)
    assert tensors["weight_shape"].dtype == torch.int64


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_tensors_are_what_the_librarys_compressor_writes(scheme: Scheme) -> None:
    """Of dense weights that lie on the grid, with our scales."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    (name, codes), *_ = codes_of(make_model(initializer_range=0.2), scheme).items()
    config = QuantizationConfig.model_validate(packed.describe(scheme, ["lm_head"]))
    (group,) = config.config_groups.values()
    state = {"weight": codes.dense(), "weight_scale": codes.scales}
    if codes.zeros is not None:
        state["weight_zero_point"] = codes.zeros
    theirs = BaseCompressor.get_value_from_registry(config.format).compress(state, group)
    ours = packed.pack(codes, scheme)
    assert ours.keys() == theirs.keys(), name
    for part, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[part].dtype, theirs[part].shape)
        assert torch.equal(tensor.float(), theirs[part].float())


def test_the_config_says_what_the_librarys_own_schemes_say() -> None:
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, QuantizationScheme

    presets = {
        "W4A16": Scheme("int4", 128),
        "W4A16_ASYM": Scheme("int4", 128, symmetric=False),
        "W8A16": Scheme("int8", 128),
        "W8A8": Scheme("int8", activations="int8"),
        "FP8_DYNAMIC": Scheme("fp8", activations="fp8"),
    }
    for name, scheme in presets.items():
        said = packed.describe(scheme, ["lm_head"])
        config = QuantizationConfig.model_validate(said)
        (group,) = config.config_groups.values()
        wanted = QuantizationScheme(targets=["Linear"], **PRESET_SCHEMES[name])
        assert group.weights == wanted.weights, name
        assert group.input_activations == wanted.input_activations, name
        for key, value in config.model_dump(mode="json").items():
            if key in said and key != "config_groups":
                assert said[key] == value


def test_tied_stays_tied_and_the_rest_is_untouched(tmp_path: Path) -> None:
    for tied in (True, False):
        was, codes = written(tmp_path / f"{tied}", Scheme("int8"), tie_word_embeddings=tied)
        tensors = load_file(tmp_path / f"{tied}" / "model.safetensors")
        assert ("lm_head.weight" in tensors) != tied
        for name, weight in was.state_dict().items():
            if name in tensors:
                assert torch.equal(weight, tensors[name])
                assert name.removesuffix(".weight") not in codes
        assert {name.rpartition(".")[0] for name in tensors if "packed" in name} == {*codes}
        model = models.load_model(tmp_path / f"{tied}")
        shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert shared == tied


def test_what_was_loaded_is_an_ordinary_model(tmp_path: Path) -> None:
    _, codes = written(tmp_path / "packed", Scheme("int4", 8))
    assert guard.num_bytes(tmp_path / "packed") is not None
    model = models.load_model(tmp_path / "packed")
    assert model.name_or_path == model.config.name_or_path == str(tmp_path / "packed")
    weights = model.state_dict()
    assert all(torch.equal(weights[f"{n}.weight"], matrix.dense()) for n, matrix in codes.items())
    model(IDS, labels=IDS).loss.backward()
    models.save_model(model, make_tokenizer(), tmp_path / "dense")
    assert packed.read_scheme(tmp_path / "dense") is None
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    again = models.load_model(tmp_path / "dense").state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert model.generation_config.eos_token_id == 3
    with pytest.raises(UserError, match="is not kept in compressed-tensors"):
        packed.read(tmp_path / "dense")
    judge = models.load_reward_model(tmp_path / "packed", seed=1)
    assert torch.equal(judge.model.norm.weight, model.model.norm.weight)


@pytest.mark.parametrize("asked", ["float32", "bfloat16", None])
def test_any_dtype_is_loaded(tmp_path: Path, asked: str | None) -> None:
    _, codes = written(tmp_path / "model", Scheme("int4", 8), dtype=torch.bfloat16)
    model = models.load_model(tmp_path / "model", asked)
    assert model.dtype == (torch.float32 if asked == "float32" else torch.bfloat16)
    name, matrix = next(iter(codes.items()))
    assert torch.equal(model.state_dict()[f"{name}.weight"], matrix.dense().to(model.dtype))


def test_a_failed_save_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, codes = written(tmp_path / "model", Scheme("int8"))
    before, tokenizer = models.hash_model(tmp_path / "model"), make_tokenizer()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        packing.save(model, tokenizer, codes, Scheme("int8"), tmp_path / "model")
    assert models.hash_model(tmp_path / "model") == before
    assert not hasattr(model.config, "quantization_config")
    codes["model.layers.0.mlp.up_proj"].scales[0] = torch.nan
    with pytest.raises(UserError, match=r"up_proj\.weight_scale is not finite"):
        packing.save(model, make_tokenizer(), codes, Scheme("int8"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


UP = "model.layers.0.mlp.up_proj"
BREAKS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a claim of many rows": lambda t: t[f"{UP}.weight_shape"].fill_(1 << 40),
    "a negative size": lambda t: t[f"{UP}.weight_shape"].neg_(),
    "a shape of floats": lambda t: t.update({f"{UP}.weight_shape": torch.tensor([24.0, 16.0])}),
    "whole scales": lambda t: t.update({f"{UP}.weight_scale": torch.ones(24, 2).int()}),
    "infinite scales": lambda t: t[f"{UP}.weight_scale"].fill_(torch.inf),
    "no shape": lambda t: t.pop(f"{UP}.weight_shape"),
    "no codes": lambda t: t.pop(f"{UP}.weight_packed"),
    "floats for codes": lambda t: t.update({f"{UP}.weight_packed": torch.ones(24, 2)}),
    "fewer scales": lambda t: t.update({f"{UP}.weight_scale": torch.ones(24, 1)}),
    "a row less": lambda t: t.update({f"{UP}.weight_packed": t[f"{UP}.weight_packed"][1:].clone()}),
    "zero points": lambda t: t.update({f"{UP}.weight_zero_point": torch.ones(3, 2).int()}),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_tensors_that_do_not_belong_together_are_refused(tmp_path: Path, broken: str) -> None:
    written(tmp_path / "model", Scheme("int4", 8))
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    BREAKS[broken](tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    for read in (packed.read, models.load_model):
        with pytest.raises(UserError, match=r"do not belong together|has scales that|lacks"):
            read(tmp_path / "model")


def test_a_matrix_of_another_size_than_the_config_says_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "model", Scheme("int8"))
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    for key, value in (("intermediate_size", 32), ("vocab_size", 1 << 22), ("hidden_size", 32)):
        path.write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError):
            models.load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "nvfp4-pack-quantized"},
        {"config_groups": {}},
        {"config_groups": None},
        {"kv_cache_scheme": {"num_bits": 8}},
        {"config_groups": {"a": {}, "b": {}}},
        {"quantization_status": "frozen"},
        {"weights": {"num_bits": 3}},
        {"weights": {"strategy": "block", "block_structure": [128, 128]}},
        {"weights": {"group_size": "8"}},
        {"weights": {"num_bits": [4]}},
        {"input_activations": {"num_bits": 8, "type": "int", "dynamic": False}},
    ],
    ids=str,
)
def test_forms_that_are_not_ours_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    written(tmp_path / "model", Scheme("int4", 8))
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    kept = config["quantization_config"]
    group = kept["config_groups"]["group_0"]
    for key, value in change.items():
        if key == "weights":
            group["weights"] |= value
        else:
            (group if key in group else kept)[key] = value
            kept |= {key: value} if key == "format" else {}
    path.write_text(json.dumps(config))
    for read in (packed.read_scheme, packed.read, models.load_model):
        with pytest.raises(UserError, match="a form of compressed-tensors that Limbeck does not"):
            read(tmp_path / "model")


def test_folders_of_others_that_say_less_or_more_are_read(tmp_path: Path) -> None:
    """As llm-compressor writes them."""
    _, codes = written(tmp_path / "model", Scheme("int4", 8))
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    kept = config["quantization_config"]
    group = kept["config_groups"]["group_0"]
    group["weights"] |= {"observer": "minmax", "observer_kwargs": {}, "actorder": "static"}
    del group["format"], group["output_activations"], kept["kv_cache_scheme"]
    kept |= {"version": "0.15.0", "sparsity_config": {}, "transform_config": {}}
    path.write_text(json.dumps(config))
    assert packed.read(tmp_path / "model").keys() == codes.keys()


def test_a_folder_in_shards_is_read(tmp_path: Path) -> None:
    _, codes = written(tmp_path / "model", Scheme("int8", activations="int8"))
    whole = load_file(tmp_path / "model" / "model.safetensors")
    halves = [dict(list(whole.items())[i::2]) for i in range(2)]
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, tmp_path / "model" / name, metadata={"format": "pt"})
    shards = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "model/model.safetensors").unlink()
    back = packed.read(tmp_path / "model")
    assert all(same(codes[name], back[name]) for name in codes)
    shutil.rmtree(tmp_path / "model")
