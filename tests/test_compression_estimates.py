"""What pruning, quantizing and giving out a model will take, against figures reckoned by hand."""

from __future__ import annotations

import json
from math import isnan
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck import api
from limbeck.estimates import devices, measured, text
from limbeck.estimates.compression import solving_flops
from limbeck.estimates.memory import SLACK, CalibrationMemory, WritingMemory
from limbeck.estimates.shapes import FIELDS, KNOWN, Shape, of_config, of_model

R1 = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
NUM = 1_777_088_000
BLOCKS = NUM - 2 * 151_936 * 1536
TOKENS = 128 * 2048


def learned(**stages: Any) -> dict[str, Any]:
    """Traces of the model's own, and what is made of them."""
    told = {"problems": "./collect/problems", "traces": "./sample/traces"}
    source = {"name": "reasoning_gym", "tasks": {"gcd": {}}}
    return {
        "collect": {"num": 200, "source": source},
        "sample": {
            "problems": "./collect/problems",
            "engine": {"name": "vllm", "model": R1},
            "max_tokens": 8192,
        },
        "verify": told,
        "curate": {**told, "verdicts": "./verify/verdicts"},
        **stages,
    }


def estimate(stages: dict[str, Any], **machine: Any) -> Any:
    named = {"device_name": "H100", "price_per_hour": 3.6, **machine}
    return api.estimate({"stages": learned(**stages), "machine": named}, run="nowhere")


def stage(found: Any, name: str) -> Any:
    return next(each for each in found.stages if each.step.stage.name == name)


def pruned(method: str = "wanda", model: str = R1, **more: Any) -> dict[str, Any]:
    told = {"method": method, "sparsity": 0.5, "calibration": "./curate/dataset", **more}
    return {"stage": "prune", "model": model, **told}


def quantized(method: str = "gptq", model: str = R1, **more: Any) -> dict[str, Any]:
    told = {"method": method, "weights": "int4", "calibration": "./curate/dataset", **more}
    return {"stage": "quantize", "model": model, "group_size": 128, **told}


def test_what_is_made_smaller_has_a_shape():
    whole = of_model(R1)
    assert (whole.num_parameters, whole.block_parameters) == (NUM, BLOCKS)
    config = dict(zip(FIELDS, KNOWN[R1], strict=True))
    fewer = of_config({**config, "num_hidden_layers": 21})
    assert whole.shallower(0.25).num_parameters == pytest.approx(fewer.num_parameters, rel=1e-5)
    assert whole.shallower(0.25).num_layers == 21
    halves = {"intermediate_size": 4480, "num_attention_heads": 6, "num_key_value_heads": 1}
    narrow = of_config({**config, **halves, "head_dim": 128})
    half = whole.narrower(0.5)
    assert half.num_parameters == pytest.approx(narrow.num_parameters, rel=1e-3)
    assert (half.intermediate_size, half.key_width) == (4480, 128)
    assert isnan(Shape(1e9).narrower(0.5).num_layers)
    assert Shape(1e9).narrower(0.5).num_parameters == 0.5e9, "all of it, where no table is known"


def test_bytes_of_a_quantized_model():
    int4 = Shape(1000, 1000, 10, 20, 5, 4, 30, bits=4.125)
    assert int4.num_bytes(2) == 300 * 2 + 700 * 4.125 / 8
    assert int4.num_bytes(0.25) == 250, "never more than at its width"
    asked = WritingMemory(int4, "bfloat16", 1, 0)
    assert asked.bytes_per_device(1) == pytest.approx(SLACK * 2000)
    packed = WritingMemory(int4, "bfloat16", 1, 0, packed=True)
    assert packed.bytes_per_device(1) == pytest.approx(SLACK * int4.num_bytes(2))


def test_a_folder_says_in_how_many_bits_it_is(tmp_path):
    groups = {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}}
    config = dict(zip(FIELDS, KNOWN[R1], strict=True))
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"config_groups": groups}})
    )
    assert of_model(str(tmp_path)).bits == 4


def test_texts_go_through_twice():
    found = stage(estimate({"half": pruned()}), "half")
    assert found.work.tokens == TOKENS
    assert found.flops == pytest.approx(2 * 2 * NUM * TOKENS)
    # 1.86e15 / (67e12 x 0.3) in float32 is 93 s; at 3.6 an hour 0.093
    assert found.seconds == pytest.approx(92.7, rel=1e-3)
    assert found.cost == pytest.approx(0.0927, rel=1e-3)
    assert found.work.model.num_parameters == NUM, "zeros are weights, too"
    assert "the host's memory holds 8.72 GB" in found.notes


@pytest.mark.parametrize(
    ("more", "passes"),
    [
        ({"budget": "global"}, 3),
        ({"method": "width"}, 1),
        # and a fifth of the texts for each of 28 blocks and 2 sparsities, after once as it is
        ({"scan": [0.2, 0.5]}, 2 + 1 + 0.2 * 28 * 2),
    ],
)
def test_who_goes_through_more_or_less_often(more, passes):
    found = stage(estimate({"half": pruned(**more)}), "half")
    assert found.flops == pytest.approx(passes * 2 * NUM * TOKENS)


@pytest.mark.parametrize("made", [pruned("sparsegpt"), quantized("gptq")])
def test_products_are_summed_and_systems_solved(made):
    wide, inner, keys, layers = 1536, 8960, 256, 28
    shapes = {"q": (wide, wide), "k": (keys, wide), "v": (keys, wide), "o": (wide, wide)}
    shapes |= {"gate": (inner, wide), "up": (inner, wide), "down": (wide, inner)}
    summed = sum(shapes[name][1] ** 2 for name in ("q", "o", "gate", "down"))
    solved = sum(4 / 3 * inputs**3 + out * inputs**2 for out, inputs in shapes.values())
    found = stage(estimate({"made": made}), "made")
    more = found.flops - 2 * 2 * NUM * TOKENS
    assert more == pytest.approx(layers * (TOKENS * summed + solved))
    assert solving_flops(of_model(R1)) == pytest.approx(layers * solved)


def test_memory_is_that_of_one_layer():
    shape = Shape(1000.0, 1000.0, 10, 20, 5, 4, 30)
    # a layer of (1000 - 300) / 5; 7 tokens of 6 x 10 + 2 x 4 + 4 x 20 numbers; products of inputs
    # of 4 x 10 x 10 and 20 x 20, and what is solved of them
    plain = CalibrationMemory(shape, 7)
    assert plain.bytes_per_device(1) == pytest.approx(SLACK * 4 * (140 + 7 * 148))
    summed = CalibrationMemory(shape, 7, gram=True)
    assert summed.bytes_per_device(1) == pytest.approx(SLACK * 4 * (140 + 7 * 148 + 2 * 800))
    room = plain.bytes_per_device(1)
    (way,) = summed.ways_out(1, False, room)
    assert "wanda" in way


def test_sizes_go_on_to_the_stages_behind():
    asked = {"stage": "evaluate", "problems": {"gcd": "./collect/problems"}, "max_tokens": 1000}
    found = estimate(
        {
            "narrow": pruned("width", sparsity=0.25),
            "recovered": {
                "stage": "sft",
                "model": "./narrow/model",
                "data": "./curate/dataset",
                "num_tokens": 10**6,
            },
            "int4": quantized(model="./recovered/model"),
            "eval": {**asked, "engine": {"name": "vllm", "model": R1}},
            "eval_int4": {**asked, "engine": {"name": "vllm", "model": "./int4/model"}},
            "gate": {
                "model": R1,
                "before": "./eval/scores",
                "trials": {
                    "int4": {"model": "./int4/model", "scores": "./eval_int4/scores"},
                    "half": {"model": "./recovered/model", "scores": "./eval_int4/scores"},
                },
            },
            "last": {**asked, "engine": {"name": "vllm", "model": "./gate/model"}},
        }
    )
    left = NUM - 0.25 * BLOCKS
    assert stage(found, "recovered").flops == pytest.approx(6 * left * 10**6)
    whole, small = stage(found, "eval"), stage(found, "eval_int4")
    assert small.flops / whole.flops == pytest.approx(left / NUM)
    assert small.memory < 0.7 * whole.memory, "in four bits, but for the tables"
    assert stage(found, "last").memory == small.memory, "the first of a gate is wanted most"
    assert stage(found, "gate").work.tables["scores"].rows == 400, "greedy, too"


def test_giving_out_is_writing():
    quant = ["f16", "q8_0", "q4_0"]
    out = {"stage": "export", "model": R1, "to": "gguf", "quant": quant}
    asked = {"stage": "evaluate", "problems": {"gcd": "./collect/problems"}, "max_tokens": 1000}
    file = {"name": "llama_cpp", "model": "./out/gguf/q4_0.gguf"}
    found = estimate({"out": out, "eval": {**asked, "engine": file}})
    assert stage(found, "out").work.written == pytest.approx(NUM * (16 + 8.5 + 4.5) / 8)
    assert stage(found, "out").notes == ("writes 6.44 GB",)
    weights = BLOCKS * 4.5 / 8 + (NUM - BLOCKS) * 2
    cache = 2 * 2 * 28 * 256 * 8 * 1000
    assert stage(found, "eval").memory == pytest.approx(SLACK * (weights + cache))


def test_the_weights_of_a_model_must_fit_into_this_machine(monkeypatch):
    here = measured.Rehearsed({}, {"half": "its model is large"}, 50.0, 2, 3.0)
    monkeypatch.setattr(measured, "rehearse", lambda *_: here)
    local = devices.Device(devices.HERE, 50e9, 50e9, 64e9)
    monkeypatch.setattr(devices, "of_this_machine", lambda gflops: local)
    for model, fits in ((R1, True), ("meta-llama/Llama-3.3-70B-Instruct", False)):
        half = pruned("magnitude", calibration=None, model=model)
        found = api.estimate({"stages": {"half": half}}, run="nowhere", machine="local")
        assert bool(found.refusals()) != fits
        assert "the host's" not in text.table(found), "which is this machine's"


def test_who_needs_no_texts_computes_nothing_worth_reckoning():
    found = stage(estimate({"int8": quantized("round", calibration=None)}), "int8")
    assert (found.flops, found.work.tokens) == (0, 0)
    assert found.work.model.bits == 4 + 16 / 128


def test_what_nobody_knows_stays_unknown():
    found = estimate({"half": pruned(model="somebody/mystery")})
    assert isnan(stage(found, "half").flops)
    told = text.table(found)
    assert "unknown" in told and "nan" not in told
    json.dumps(found.summary(), allow_nan=False)


def test_a_gate_is_rehearsed_as_if_the_first_passed():
    from limbeck.estimates import small

    config = SimpleNamespace(max_drop=0.05, max_longer=0.25)
    assert small.counts(config, small.TINY) == {"max_drop": 1.0, "max_longer": None}
    texts = SimpleNamespace(num_texts=128, max_length=100)
    assert small.num_texts(texts, 500.0, small.TINY) == 20, "texts that are cut at 100 tokens"
    assert small.num_texts(texts, 50.0, small.USUAL) == 128
    assert small.num_texts(texts, 1e9, small.TINY) == 20
