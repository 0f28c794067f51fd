"""A run with reinforcement learning, read back: its curves, what there was to gain, its page."""

from __future__ import annotations

import json
from typing import Any

import pytest

import limbeck
from limbeck import models, newborn, tables
from limbeck.problems import make_problem
from limbeck.reporting.reinforcement import curves
from limbeck.runs import Run

PROBLEMS = [make_problem(f"{i}+{i}=", str(2 * i), verifier="number") for i in range(6)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A newborn that is evaluated, learns for two rounds and is evaluated again."""
    folder = tmp_path_factory.mktemp("run")
    texts = [f"<think>{i} twice</think>{2 * i} {i}+{i}=" for i in range(60)]
    tokenizer = newborn.train_tokenizer(iter(texts), 300)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    base = str(folder / "base")
    models.save_model(
        newborn.create_model("llama", len(tokenizer), 0, **ids, **size), tokenizer, base
    )
    tables.write_part(folder / "problems", tables.to_table("problems", PROBLEMS))
    problems = str(folder / "problems")

    def evaluate(model: str) -> dict[str, Any]:
        asked = {"engine": {"name": "local", "model": model}, "problems": {"heldout": problems}}
        told = {"num_samples": 2, "pass_at": [2], "rewards": ["format"], "max_tokens": 8}
        return {"stage": "evaluate", **asked, **told}

    grpo = {"stage": "grpo", "model": base, "problems": problems, "num_steps": 4, "max_tokens": 8}
    grpo |= {"num_samples": 2, "questions_per_step": 2, "steps_per_round": 2}
    compare = {
        "stage": "compare",
        "scores": {"zero": ["./after/scores"], "base": "./before/scores"},
    }
    compare |= {"pairs": [["zero", "base"]], "metric": ["pass_at_1", "format"]}
    compare |= {"forgetting": [["zero", "base"]]}
    stages = {"before": evaluate(base), "zero": grpo, "after": evaluate("./zero/model")}
    return limbeck.run({"stages": {**stages, "compare": compare}}, run=folder / "out")


def test_show_has_the_curves_and_what_there_was_to_gain(run):
    (told,) = json.loads(json.dumps(run.summary()))["learning"]
    assert told["name"] == "zero"
    assert told["curves"]["reward"][0][0] == 1
    assert len(told["curves"]["entropy"]) == 4
    assert [step for step, _ in told["curves"]["mismatch_kl"]] == [1, 3]
    assert {"correct", "mean_length", "no_signal", "self_checks", "kl"} <= told["curves"].keys()
    (gain,) = told["gain"]
    assert gain["split"] == "heldout" and gain["reach"] >= 0
    assert {"pass_at_1", "greedy", "pass_at_2"} == gain["after"].keys()
    (finding,) = told["findings"]  # a newborn never ends its text
    assert finding["what"] == "the answers do not have the asked-for form"


def test_words_and_page_tell_it_too(run):
    text = run.text()
    assert "zero: heldout pass@1 0 to 0 %, greedy 0 to 0 %, pass@2 0 to 0 %; there were" in text
    assert "zero: the answers do not have the asked-for form (of the first answers" in text
    page = run.write_report().read_text()
    assert "How zero learned from its own answers" in page and "What went wrong" in page
    assert page.count("<title>Entropy</title>") == 1
    assert "likelier. This page says how well it answers now" in page  # a newborn does not think
    assert "How well it answers" in page and "DeepSeek" not in page
    assert "heldout · pass@2" in page and "heldout · format" in page


def test_the_page_has_what_it_costs_and_what_became_of_the_rest(run):
    told = json.loads(json.dumps(run.summary()))
    assert {row["name"] for row in told["frontier"]} == {"zero", "base"}
    assert {row["verdict"] for row in told["forgetting"]} <= {"kept", "not distinguishable"}
    assert told["published"] == []  # of problems and models that no paper knows
    page = run.write_report().read_text()
    shown = {
        name for name in ("frontier", "forgetting", "cost", "published") if f'id="{name}"' in page
    }
    assert shown == {"forgetting", "cost"}  # nobody solves anything: there is no frontier
    assert "A right answer, once it serves" in page
    assert "Answers that do not count" in page  # a newborn never ends its text


def test_curves_tell_a_round_once():
    rows = [
        {"step": 1, "round": 1, "correct": 0.5, "loss": 0.1, "rewards": {"format": 1.0}},
        {"step": 2, "round": 1, "correct": 0.5, "loss": 0.2, "rewards": {"format": 1.0}},
        {"step": 3, "round": 2, "correct": 0.5, "loss": 0.9, "rewards": {"format": 0.9}},
        {"step": 3, "round": 2, "correct": 0.5, "loss": 0.3, "rewards": {"format": 0.9}},
    ]
    assert curves(rows) == {
        "correct": [(1, 0.5), (3, 0.5)],
        "loss": [(1, 0.1), (2, 0.2), (3, 0.3)],
        "rewards.format": [(1, 1.0), (3, 0.9)],
    }
