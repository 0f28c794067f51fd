"""recipes/distill_prune_quantize.yaml, whole, at its size for tests: what comes out answers."""

from __future__ import annotations

from pathlib import Path

import pytest

import limbeck
from limbeck import store
from limbeck.runs import Run

pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")
pytest.importorskip("compressed_tensors")
pytest.importorskip("xllamacpp")

RECIPE = Path(__file__).parents[2] / "recipes" / "distill_prune_quantize.yaml"


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Run:
    return limbeck.run(RECIPE, size="ci", run=tmp_path_factory.mktemp("chain") / "run")


def test_each_gate_lets_its_first_trial_go_on(chain):
    summary = {row["stage"]: row["summary"] for row in chain.stages()}
    chosen = {name: summary[name]["chosen"] for name in ("pruned", "int4", "int8")}
    assert chosen == {"pruned": "one_layer", "int4": "rounded", "int8": "eights"}
    config = store.read_json(chain.path / "pruned" / "model" / "config.json")
    assert config["num_hidden_layers"] == 1
    trials = summary["pruned"]["trials"]
    assert [row["name"] for row in trials] == ["one_layer", "two_layers", "narrow", "sparse"]
    assert all({"test", "length", "verdict"} <= row.keys() for row in trials)
    assert chain.table("int4/scores").to_pylist() == chain.table("eval_rounded/scores").to_pylist()


def test_zeros_stay_zeros_while_the_rest_recovers(chain):
    from limbeck import models

    model = models.load_model(str(chain.path / "sparse_again" / "model"))
    for layer in model.model.layers:
        rows = layer.mlp.down_proj.weight.detach().unflatten(1, (-1, 4))
        assert ((rows == 0).sum(-1) >= 2).all()


def test_the_fastest_is_deployed_and_llama_cpp_answers(chain):
    speeds = store.read_json(chain.path / "speed" / "speeds" / "speeds.json")
    pairs = {(row["a"], row["b"], row["at"]) for row in speeds["ratios"]}
    assert {("int8", "bfloat16", at) for at in ("batch 1", "load")} <= pairs
    fastest = max(speeds["artifacts"], key=lambda row: row["tokens_per_second_load"]["median"])
    (deployed,) = chain.done("choose")
    assert deployed["summary"]["chosen"] == fastest["name"]
    results = {(row["name"], row["split"], row["metric"]) for row in chain.results()}
    splits = {(split, "pass_at_1") for split in ("heldout", "harder")}
    for name in ("distilled", "pruned", "deployed", "q8_0", "q4_0"):
        assert {(name, *rest) for rest in splits} <= results
    tested = {(row["a"], row["b"]) for row in chain.compared()["tests"]}
    assert {("pruned", "distilled"), ("q8_0", "pruned"), ("q4_0", "pruned")} <= tested


def test_the_frontier_knows_what_each_was_made_by(chain):
    kinds = {row["name"]: row["kind"] for row in chain.frontier()}
    assert kinds["distilled"] == "sft"
    assert kinds["pruned"] == "distill", "it has recovered"
    assert kinds["q8_0"] == "exported"
