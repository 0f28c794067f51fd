"""prune: what it writes, what it refuses before and after it is begun, and what its scan tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from limbeck import store
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.plugins import knobs_model

torch = pytest.importorskip("torch")

from limbeck import models, newborn  # noqa: E402
from limbeck.compress import anatomy, sensitivity  # noqa: E402
from limbeck.compress.calibration import read_calibration  # noqa: E402
from limbeck.stages import prune  # noqa: E402

MACHINE = Machine(device="cpu", threads=1)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96}


def row(number: int, text: str = "") -> dict[str, Any]:
    turns = [("user", f"{number} + {number}?"), ("assistant", text or f"It is {2 * number}.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": f"r{number}", "messages": messages, "teacher": "sft/model", "weight": 1.0}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with tied and with free embeddings, and the rows that they are calibrated on."""
    folder = tmp_path_factory.mktemp("world")
    write_rows(folder / "rows.jsonl", [row(number) for number in range(40)])
    tokenizer = newborn.train_tokenizer(iter(f"{n} + {n}? It is {2 * n}." for n in range(40)), 290)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, tied in (("tied", True), ("free", False)):
        sizes = {**SIZES, **ends, "initializer_range": 0.2, "tie_word_embeddings": tied}
        model = newborn.create_model("llama", len(tokenizer), 0, **sizes)
        models.save_model(model, tokenizer, folder / name)
    few = newborn.create_model("llama", len(tokenizer) - 20, 0, **{**SIZES, **ends})
    models.save_model(few, tokenizer, folder / "few")
    return folder


def config(world: Path, model: str = "tied", **told: Any) -> prune.Config:
    usual: dict[str, Any] = {"model": str(world / model), "method": "wanda"}
    if told.get("method") != "magnitude":
        usual["calibration"] = str(world / "rows.jsonl")
    if "pattern" not in told:
        usual["sparsity"] = 0.5
    return prune.Config(**{**usual, **told})


def run(settings: prune.Config, out: Path) -> tuple[dict[str, Any], Any]:
    """(the summary, the pruned model)"""
    out.mkdir(parents=True, exist_ok=True)
    summary = prune.run(settings, StageFolder(out, "prune", "key", MACHINE))
    return summary, models.load_model(out / "model")


def zeros(model: Any) -> dict[str, float]:
    """The share of zeros in each matrix of the blocks."""
    names = anatomy.names(model)
    return {
        f"{name}.{inner}": float((anatomy.weight_of(matrix) == 0).float().mean())
        for name, block in zip(names, anatomy.blocks(model), strict=True)
        for inner, matrix in anatomy.matrices(block).items()
    }


@pytest.mark.parametrize("model", ["tied", "free"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("how", [{"sparsity": 0.25}, {"pattern": "2:4"}])
def test_the_matrices_lose_their_share_and_the_rest_stays(
    world: Path, tmp_path: Path, model: str, method: str, how: dict[str, Any]
) -> None:
    settings = config(world, model, method=method, num_texts=16, **how)
    summary, pruned = run(settings, tmp_path / "prune")
    share = how.get("sparsity", 0.5)
    assert summary["sparsity"] == pytest.approx(share, abs=1e-3)
    assert all(zero == pytest.approx(share, abs=1e-3) for zero in zeros(pruned).values())
    before = models.load_model(world / model)
    kept = {name for name, _ in before.named_parameters()} - {f"{n}.weight" for n in zeros(before)}
    assert kept, "embeddings and norms"
    for name in kept:
        assert torch.equal(pruned.get_parameter(name), before.get_parameter(name))
    is_tied = pruned.get_input_embeddings().weight is pruned.get_output_embeddings().weight
    assert is_tied == (model == "tied")
    files = (tmp_path / "prune" / "model").glob("*.safetensors")
    assert summary["num_bytes"] == sum(file.stat().st_size for file in files)
    assert summary["num_parameters"] == models.num_parameters(before)


def test_later_blocks_are_pruned_by_what_earlier_ones_have_become(
    world: Path, tmp_path: Path
) -> None:
    """The second block is another than if the first had stayed whole."""
    from limbeck.compress.prune import wanda
    from limbeck.compress.walk import walk

    _, pruned = run(config(world, sparsity=0.7), tmp_path / "prune")
    model, tokenizer = models.load_model(world / "tied"), models.load_tokenizer(world / "tied")
    seed = store.seed_of(0, "prune")
    path = str(world / "rows.jsonl")
    told = {"num_texts": 128, "max_length": 2048, "seed": seed}
    texts = read_calibration(path, model, tokenizer, **told).texts
    dense = {
        f"{block.name}.{name}": wanda.prune_weight(
            anatomy.weight_of(matrix), block.stats[name], 0.7, None
        )
        for block in walk(model, texts, device="cpu", changes=False)
        for name, matrix in block.matrices.items()
    }
    first, second = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
    assert torch.equal(pruned.get_parameter(f"{first}.weight"), dense[first])
    assert not torch.equal(pruned.get_parameter(f"{second}.weight"), dense[second])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_global_budget_takes_more_where_less_is_lost(
    world: Path, tmp_path: Path, method: str
) -> None:
    settings = config(world, method=method, sparsity=0.4, budget="global", num_texts=16)
    summary, pruned = run(settings, tmp_path / "prune")
    assert summary["sparsity"] == pytest.approx(0.4, abs=0.01)
    shares = zeros(pruned).values()
    assert max(shares) - min(shares) > 0.02
    assert max(shares) <= 0.96


def test_a_scan_tells_what_each_block_costs(world: Path, tmp_path: Path) -> None:
    levels = [0.3, 0.9]
    run(config(world, method="magnitude", scan=levels, calibration=str(world / "rows.jsonl"),
               num_texts=20), tmp_path / "prune")  # fmt: skip
    told = store.read_json(tmp_path / "prune" / "scan" / "scan.json")
    assert told["levels"] == levels
    assert [block["name"] for block in told["blocks"]] == ["model.layers.0", "model.layers.1"]

    model, tokenizer = models.load_model(world / "tied"), models.load_tokenizer(world / "tied")
    texts = read_calibration(
        str(world / "rows.jsonl"),
        model,
        tokenizer,
        num_texts=20,
        max_length=2048,
        seed=store.seed_of(0, "prune"),
    ).texts
    held, _ = sensitivity.held_back(texts)
    assert told["dense"] == pytest.approx(sensitivity.loss(model, held))
    for matrix in anatomy.matrices(anatomy.blocks(model)[1]).values():
        weight = anatomy.weight_of(matrix)
        smallest = weight.abs().flatten().sort().values[round(0.9 * weight.numel()) - 1]
        anatomy.set_weight(matrix, weight.where(weight.abs() > smallest, 0))
    rise = sensitivity.loss(model, held) - told["dense"]
    assert told["blocks"][1]["loss"][1] == pytest.approx(rise, abs=1e-6)


def test_a_loss_is_the_mean_over_all_tokens(world: Path) -> None:
    model = models.load_model(world / "free")
    texts = [[5, 6, 7, 8], [9, 10]]
    total = 0.0
    for text in texts:
        with torch.no_grad():
            logp = model(torch.tensor([text])).logits[0].log_softmax(-1)
        total -= sum(float(logp[i, text[i + 1]]) for i in range(len(text) - 1))
    assert sensitivity.loss(model, texts) == pytest.approx(total / 4, rel=1e-5)


def test_what_was_pruned_before_counts(world: Path, tmp_path: Path) -> None:
    """From 30 % to 60 %: the smallest that are left, and the summary tells the zeros there are."""
    once, _ = run(config(world, method="magnitude", sparsity=0.3), tmp_path / "once")
    told = {"method": "magnitude", "sparsity": 0.6}
    settings = config(world, **told).model_copy(update={"model": str(tmp_path / "once" / "model")})
    twice, small = run(settings, tmp_path / "twice")
    _, at_once = run(config(world, **told), tmp_path / "at once")
    assert once["sparsity"] == pytest.approx(0.3, abs=1e-3)
    assert twice["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert zeros(small) == zeros(at_once)


def test_whole_units_are_given_a_walk_through_the_dense_model(world: Path, tmp_path: Path) -> None:
    summary, pruned = run(config(world, method="depth"), tmp_path / "prune")
    assert pruned.config.num_hidden_layers == 1
    assert summary["sparsity"] == pytest.approx(0.5)
    assert summary["num_parameters"] == models.num_parameters(pruned)


def test_calibration_is_drawn_by_the_seed_and_told(world: Path, tmp_path: Path) -> None:
    settings = config(world, num_texts=8)
    _, first = run(settings, tmp_path / "a")
    _, again = run(settings, tmp_path / "b")
    _, other = run(config(world, num_texts=8, seed=1), tmp_path / "c")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    assert "8 texts of" in (tmp_path / "a" / "log.txt").read_text()
    assert "written by sft/model" in (tmp_path / "a" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"sparsity": 0.0}, "greater than 0"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 1.5}, "less than 1"),
        ({"sparsity": None}, "give one of the two"),
        ({"pattern": "4:2"}, "take 2:4 or 4:8"),
        ({"pattern": "half"}, "take 2:4 or 4:8"),
        ({"pattern": "2:4", "sparsity": 0.6}, "drop sparsity"),
        ({"pattern": "2:4", "budget": "global"}, "drop budget"),
        ({"sparsity": 0.96, "budget": "global"}, "takes 95% of a matrix at most, 0.96 is more"),
        ({"calibration": None}, "wanda needs texts; give calibration"),
        ({"calibration": None, "method": "magnitude", "scan": [0.5]}, "a scan needs texts"),
        ({"method": "depth", "pattern": "2:4"}, "drop pattern"),
        ({"method": "depth", "budget": "global"}, "drop budget"),
        ({"method": "width", "scan": [0.5]}, "drop scan"),
        ({"method": "wonda"}, "did you mean 'wanda'"),
        ({"method": {"name": "sparsegpt", "damping": 0.0}}, "wrong knobs"),
    ],
)
def test_what_cannot_be_is_refused_at_once(world: Path, told: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        config(world, **told)


def test_a_pattern_may_say_its_sparsity(world: Path) -> None:
    assert config(world, pattern="1:4", sparsity=0.75).share == 0.75


def refused(world: Path, tmp_path: Path, **told: Any) -> str:
    with pytest.raises(UserError) as error:
        run(config(world, **told), tmp_path / "prune")
    assert not (tmp_path / "prune" / "model").exists()
    return str(error.value)


def test_a_pattern_that_does_not_divide_is_refused(world: Path, tmp_path: Path) -> None:
    told = refused(world, tmp_path, pattern="3:5")
    assert "3:5 leaves a rest of 2 in the rows of self_attn.q_proj" in told


def test_another_models_tokenizer_is_refused(world: Path, tmp_path: Path) -> None:
    assert "take the tokenizer that belongs to it" in refused(world, tmp_path, model="few")


def test_texts_that_the_tokenizer_does_not_know_are_refused(world: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", newborn.PAD, newborn.USER, newborn.ASSISTANT, newborn.END, "It", "is"]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    plain.add_special_tokens(words[1:5])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        unk_token="[UNK]",
        eos_token=newborn.END,
        pad_token=newborn.PAD,
        chat_template=newborn.CHAT_TEMPLATE,
    )
    models.save_model(models.load_model(world / "tied"), tokenizer, tmp_path / "foreign")
    settings = config(world, calibration=str(world / "rows.jsonl")).model_copy(
        update={"model": str(tmp_path / "foreign")}
    )
    with pytest.raises(UserError, match="of its tokens are unknown to the model's tokenizer"):
        run(settings, tmp_path / "prune")


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{**row(1), "weight": 0.0}], "holds no text of any weight"),
        ([{"id": "r", "messages": [{"role": "user", "content": "?"}]}], "does not end with"),
    ],
)
def test_calibration_without_texts_is_refused(
    world: Path, tmp_path: Path, rows: list[dict[str, Any]], what: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", rows)
    assert what in refused(world, tmp_path, calibration=str(tmp_path / "rows.jsonl"))


def test_an_architecture_that_it_does_not_know_is_refused(world: Path, tmp_path: Path) -> None:
    sizes = {**SIZES, "num_local_experts": 2, "eos_token_id": 1, "pad_token_id": 0}
    model = newborn.create_model("mixtral", 300, 0, **sizes)
    models.save_model(model, models.load_tokenizer(world / "tied"), tmp_path / "mixtral")
    settings = config(world, method="magnitude").model_copy(
        update={"model": str(tmp_path / "mixtral")}
    )
    with pytest.raises(UserError, match="is a mixture of experts; take a plain decoder"):
        run(settings, tmp_path / "prune")


def test_one_text_is_too_few_for_a_scan(world: Path, tmp_path: Path) -> None:
    assert "raise num_texts" in refused(world, tmp_path, scan=[0.5], num_texts=1)


def test_texts_of_one_token_are_too_short_for_a_scan(world: Path, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(world / "tied")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    models.save_model(models.load_model(world / "tied"), tokenizer, tmp_path / "bare")
    turns = [{"role": role, "content": ""} for role in ("user", "assistant")]
    write_rows(tmp_path / "rows.jsonl", [{"id": f"r{n}", "messages": turns} for n in range(4)])
    told = {"calibration": str(tmp_path / "rows.jsonl"), "scan": [0.5]}
    settings = config(world, **told).model_copy(update={"model": str(tmp_path / "bare")})
    with pytest.raises(UserError, match="needs two texts of two tokens at least"):
        run(settings, tmp_path / "prune")


def test_a_way_of_ones_own(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pruning.py").write_text(
        "NEEDS_TEXTS = False\n"
        "def none(weight, stats, sparsity, pattern, *, factor: float = 1.0):\n"
        "    return factor * weight\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"name": "my_pruning:none", "factor": 2.0}
    _, doubled = run(config(world, method=own, calibration=None), tmp_path / "prune")
    before = models.load_model(world / "tied")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(doubled.get_parameter(name), 2 * before.get_parameter(name))
    with pytest.raises(ValidationError, match="no function `importance`"):
        config(world, method=own, budget="global")


def test_knobs_are_checked_without_torch() -> None:
    from limbeck.compress.prune import sparsegpt

    assert {*knobs_model(sparsegpt.prune_weight).model_fields} == {"damping", "block_size"}
