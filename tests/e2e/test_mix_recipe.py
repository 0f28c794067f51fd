"""recipes/deepseek_r1/mix.yaml: its names hold, and every stage of it runs on small things."""

from collections import Counter
from pathlib import Path

import pytest

import limbeck
from limbeck import card

pytest.importorskip("reasoning_gym")

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/deepseek_r1/mix.yaml"
TABLE_5 = {"math": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_whole_recipe_can_be_planned_without_a_network(tmp_path):
    steps = limbeck.plan(RECIPE, run=tmp_path)
    assert {step.state for step in steps} == {"new"}
    mix = steps[-1].stage.config
    assert mix.num == TABLE_5
    assert list(mix.parts) == list(TABLE_5)
    assert sum(TABLE_5.values()) == 804_745


def test_the_small_size_makes_a_data_set_of_five_domains(tmp_path):
    run = limbeck.run(RECIPE, size="ci", run=tmp_path / "run")
    rows = run.table("mix/dataset").to_pylist()
    assert Counter(row["domain"] for row in rows) == dict.fromkeys(TABLE_5, 10)
    assert len({row["id"] for row in rows}) == 50
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        thinks = "</think>" in row["messages"][-1]["content"]
        assert thinks or row["source"] == "talk.jsonl"
        assert "{{" not in row["messages"][-1]["content"]
    folder = run.path / "mix" / "dataset"
    licences = card.read_licences(folder)
    assert licences["open-thought/reasoning-gym"] == "apache-2.0"
    assert "| dropped: over the cap |" in (folder / "README.md").read_text()
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == [row["id"] for row in rows]
