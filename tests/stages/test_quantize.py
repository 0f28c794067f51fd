"""quantize: what it writes, says and refuses; what was pruned stays pruned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from limbeck import models, newborn, packed, recipe, store
from limbeck.errors import UserError, UserErrors
from limbeck.folder import Machine, StageFolder
from limbeck.stages import quantize

MACHINE = Machine(device="cpu", threads=1)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
KINDS = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
KINDS |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


def rows(num: int) -> list[dict[str, Any]]:
    found = []
    for i in range(num):
        answer = f"<think>{i} and {i} make {2 * i}.</think>{2 * i}"
        turns = [("user", f"{i} + {i} ="), ("assistant", answer)]
        messages = [{"role": role, "content": content} for role, content in turns]
        found.append({"id": f"row{i}", "messages": messages, "teacher": "a/teacher"})
    return found


def save(folder: Path, architecture: str = "llama", dtype: str = "float32", **sizes: Any) -> Path:
    texts = (turn["content"] for row in rows(40) for turn in row["messages"])
    tokenizer = newborn.train_tokenizer(texts, 300)
    model = newborn.create_model(
        architecture,
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**SIZES, "initializer_range": 0.1, **sizes},
    )
    models.save_model(model.to(getattr(torch, dtype)), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `model` and `rows.jsonl`."""
    folder = tmp_path_factory.mktemp("world")
    save(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    return folder


def config(world: Path, **told: Any) -> quantize.Config:
    usual = {"model": str(world / "model"), "method": "gptq", "weights": "int8", "num_texts": 16}
    return quantize.Config(**{**usual, "calibration": str(world / "rows.jsonl"), **told})


def run(settings: quantize.Config, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    return quantize.run(settings, StageFolder(out, "quantize", "key", MACHINE))


def logits(folder: Path) -> Tensor:
    """Of texts like those that were read."""
    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    texts = [row["messages"][1]["content"] for row in rows(60)[40:]]
    with torch.no_grad():
        return torch.cat(
            [model(torch.tensor([tokenizer(t)["input_ids"]])).logits[0] for t in texts]
        )


@pytest.mark.parametrize("method", ["round", "gptq", "awq"])
@pytest.mark.parametrize(
    ("told", "within"),
    [
        ({"weights": "int8"}, 0.02),
        ({"weights": "int8", "activations": "int8"}, 0.02),
        ({"weights": "int4", "group_size": 16}, 0.3),
        ({"weights": "int4", "group_size": 16, "symmetric": False}, 0.3),
        ({"weights": "fp8", "activations": "fp8"}, 0.1),
    ],
    ids=str,
)
def test_what_is_written_is_the_model_in_fewer_bits(
    world: Path, tmp_path: Path, method: str, told: dict[str, Any], within: float
) -> None:
    settings = config(world, method=method, **told)
    said = run(settings, tmp_path / "out")
    folder = tmp_path / "out" / "model"
    assert packed.read_scheme(folder) == settings.scheme
    codes = packed.read(folder)
    assert {name.removeprefix("model.layers.")[2:] for name in codes} == KINDS
    assert len(codes) == 2 * len(KINDS)
    before, after = logits(world / "model"), logits(folder)
    assert 0 < float((after - before).std() / before.std()) < within
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert said["num_bytes"] == size < (world / "model/model.safetensors").stat().st_size
    assert said["num_parameters"] == models.num_parameters(models.load_model(world / "model"))
    assert said["lost"].keys() == KINDS
    assert 0 < max(said["lost"].values()) < within**2
    told_rows = store.read_jsonl(tmp_path / "out" / "metrics.jsonl")
    assert [row["block"] for row in told_rows] == [0, 1]
    assert all(row["lost"].keys() == KINDS for row in told_rows)
    assert all(("alphas" in row) == (method == "awq") for row in told_rows)
    (work,) = store.read_jsonl(tmp_path / "out" / "ledger.jsonl")
    assert work["work"] == "quantize"
    assert work["tokens_in"] > 100
    assert work["peak_memory_mib"] > 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "reads 16 texts of" in log
    assert "a/teacher" in log
    assert ("fp8 is quick on" in log) == (told["weights"] == "fp8")


def test_bits_per_weight_count_scales(world: Path, tmp_path: Path) -> None:
    for dtype, bytes_each in (("float32", 4), ("bfloat16", 2)):
        settings = config(world, method="round", weights="int4", group_size=16, dtype=dtype)
        said = run(settings, tmp_path / dtype)
        weights = 2 * (4 * 32 * 32 + 3 * 32 * 48)
        shapes = 2 * 7 * 16
        wanted = weights * (4 + 8 * bytes_each / 16) + 8 * shapes
        assert said["bits_per_weight"] == pytest.approx(wanted / weights)


def test_ways_that_read_texts_lose_less(world: Path, tmp_path: Path) -> None:
    before, lost, away = logits(world / "model"), {}, {}
    for method in ("round", "awq", "gptq"):
        said = run(config(world, method=method, weights="int4", group_size=16), tmp_path / method)
        lost[method] = sum(said["lost"].values())
        away[method] = float((logits(tmp_path / method / "model") - before).square().mean())
    assert lost["awq"] < lost["round"]
    assert lost["gptq"] < lost["round"]
    assert away["gptq"] < away["round"]


def test_rounding_needs_no_texts(world: Path, tmp_path: Path) -> None:
    alone = run(config(world, method="round", calibration=None), tmp_path / "alone")
    told = run(config(world, method="round"), tmp_path / "told")
    ours, theirs = (packed.read(tmp_path / name / "model") for name in ("alone", "told"))
    assert all(torch.equal(ours[name].codes, theirs[name].codes) for name in ours)
    assert alone["lost"] != told["lost"], "one of weights, the other of what comes out"
    assert "of the weights" in (tmp_path / "alone" / "log.txt").read_text()


@pytest.mark.parametrize(
    "told",
    [
        {"weights": "int8"},
        {"weights": "int4", "group_size": 16},
        {"weights": "int4", "group_size": 16, "symmetric": False},
        {"weights": "fp8"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["round", "gptq", "awq"])
def test_what_was_pruned_stays_pruned(
    world: Path, tmp_path: Path, method: str, told: dict[str, Any]
) -> None:
    from limbeck.compress import anatomy
    from limbeck.compress.prune.magnitude import prune_weight

    model = models.load_model(world / "model")
    for block in anatomy.blocks(model):
        for matrix in anatomy.matrices(block).values():
            pruned = prune_weight(anatomy.weight_of(matrix), None, 0.5, (2, 4))
            anatomy.set_weight(matrix, pruned)
    models.save_model(model, models.load_tokenizer(world / "model"), tmp_path / "pruned")
    run(config(world, model=str(tmp_path / "pruned"), method=method, **told), tmp_path / "out")
    after = models.load_model(tmp_path / "out" / "model").state_dict()
    for name, weight in model.state_dict().items():
        if "proj" in name:
            zeros = weight == 0
            assert 2 * zeros.sum() == weight.numel()
            assert bool((after[name][zeros] == 0).all())
            assert bool((after[name][~zeros] != 0).float().mean() > 0.8)


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_what_is_not_quantized_stays_as_the_files_keep_it(tmp_path: Path, kept: str) -> None:
    from safetensors.torch import load_file

    folder = save(tmp_path / "model", dtype=kept)
    run(config(tmp_path, method="round", calibration=None), tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out/model"))
    for name, tensor in after.items():
        assert name not in before or torch.equal(tensor, before[name])
        if name.endswith("weight_scale"):
            assert tensor.dtype == getattr(torch, kept)


def test_the_same_seed_reads_the_same_texts(world: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        run(config(world, seed=seed, num_texts=4), tmp_path / name)
    one, two, other = (models.hash_model(tmp_path / n / "model") for n in ("one", "two", "other"))
    assert one == two != other


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"calibration": None}, "gptq needs texts; give calibration"),
        ({"method": "awq", "calibration": None}, "awq needs texts"),
        ({"activations": "fp8"}, "fp8 activations do not go with int8 weights"),
        ({"weights": "int4", "activations": "int8"}, "int8 activations do not go with int4"),
        ({"activations": "int8", "group_size": 16}, "int8 activations want one scale a row"),
        ({"activations": "int8", "symmetric": False}, "int8 activations have no zero points"),
        ({"weights": "fp8", "group_size": 16}, "fp8 weights want one scale a row; drop group_size"),
        ({"weights": "fp8", "symmetric": False}, "fp8 weights have no zero points; drop symmetric"),
        ({"weights": "int4", "group_size": 10}, "10 does not divide 32 and 48 inputs; take 2 or 4"),
        ({"weights": "int3"}, "weights"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_anything_runs(
    world: Path, told: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValidationError, match=line):
        config(world, **told)


def test_a_recipe_is_told_at_plan_time(world: Path) -> None:
    asked = {"model": str(world / "model"), "method": {"name": "gptq", "dampening": 0.1}}
    asked |= {"weights": "int4", "calibration": str(world / "rows.jsonl")}
    with pytest.raises(UserErrors, match="unknown key; did you mean 'damping'"):
        recipe.load({"stages": {"quantize": asked}})
    asked["method"] = "gptq"
    with pytest.raises(UserErrors, match="7 does not divide 32 and 48 inputs"):
        recipe.load({"stages": {"quantize": {**asked, "group_size": 7}}})
    recipe.load({"stages": {"quantize": {**asked, "group_size": 16}}})


def test_groups_are_looked_at_again_where_no_config_was_at_hand(
    world: Path, tmp_path: Path
) -> None:
    settings = config(world, model="somebody/model", weights="int4", group_size=32)
    settings = settings.model_copy(update={"model": str(world / "model")})
    with pytest.raises(UserError, match="32 does not divide 32 and 48 inputs; take 2 or 4 or 8 or"):
        run(settings, tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()


def test_a_model_that_is_quantized_already_is_refused(world: Path, tmp_path: Path) -> None:
    run(config(world, method="round"), tmp_path / "once")
    with pytest.raises(UserError, match="is quantized already; quantize the model that it was"):
        run(config(world, model=str(tmp_path / "once" / "model")), tmp_path / "twice")


def test_gpt2_is_refused(world: Path, tmp_path: Path) -> None:
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    tokenizer = models.load_tokenizer(world / "model")
    model = newborn.create_model("gpt2", len(tokenizer), 0, eos_token_id=3, pad_token_id=0, **sizes)
    models.save_model(model, tokenizer, tmp_path / "gpt2")
    with pytest.raises(UserError, match="as Conv1D, which no quantized folder can"):
        run(config(world, model=str(tmp_path / "gpt2")), tmp_path / "out")


def test_a_mixture_of_experts_is_refused(world: Path, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(world / "model")
    model = newborn.create_model(
        "mixtral", len(tokenizer), 0, eos_token_id=3, pad_token_id=0, **SIZES, num_local_experts=2
    )
    models.save_model(model, tokenizer, tmp_path / "moe")
    with pytest.raises(UserError, match="mixture of experts"):
        run(config(world, model=str(tmp_path / "moe")), tmp_path / "out")


def test_texts_of_another_tokenizer_are_refused(world: Path, tmp_path: Path) -> None:
    larger = newborn.train_tokenizer(iter(["Zwölf Boxkämpfer jagen Viktor"] * 9), 320)
    larger.add_tokens([f"<{i}>" for i in range(64)])
    model = models.load_model(world / "model")
    model.save_pretrained(tmp_path / "mixed")
    larger.save_pretrained(tmp_path / "mixed")
    with pytest.raises(UserError, match="take the tokenizer that belongs to it"):
        run(config(world, model=str(tmp_path / "mixed")), tmp_path / "out")


def test_fp8_needs_a_torch_that_has_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch, "float8_e4m3fn")
    with pytest.raises(UserError, match="has no fp8; take int8"):
        run(config(world, method="round", weights="fp8"), tmp_path / "out")


def test_a_killed_stage_leaves_no_model(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    settings = config(world)
    monkeypatch.setattr(models, "_sync", fail)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()
