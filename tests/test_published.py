"""The paper's figures: as it prints them, each with its source, beside what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck import published
from limbeck.errors import UserError

SMALL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


def measured(name: str, split: str, **more: Any) -> dict[str, Any]:
    row = {"name": name, "split": split, "metric": "pass_at_1", "value": 0.25}
    row |= {"low": 0.15, "high": 0.4, "num_samples": 64, "num_problems": 30}
    return row | {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32_768} | more


def figure(table: str, name: str, benchmark: str, metric: str = "pass_at_1") -> Any:
    (found,) = [
        f
        for f in published.tables()[table].figures
        if (f.name, f.benchmark, f.metric) == (name, benchmark, metric)
    ]
    return found


@pytest.mark.parametrize(
    ("table", "name", "benchmark", "metric", "value"),
    [
        ("distilled_models", "DeepSeek-R1-Distill-Qwen-7B", "aime24", "cons_at_64", 0.833),
        ("distilled_models", "DeepSeek-R1-Distill-Llama-70B", "codeforces", "rating", 1633),
        ("table_6", "DeepSeek-R1-Zero-Qwen-32B", "math500", "pass_at_1", 0.916),
        ("stage_ablation", "DeepSeek-R1-Dev2", "ifeval", "prompt_strict", 0.72),
        ("stage_ablation", "DeepSeek-R1", "mmlu_pro", "pass_at_1", 0.84),
        ("r1_and_o1", "DeepSeek-R1", "codeforces", "percentile", 96.3),
        ("small_reinforcement", "Qwen2-Math-7B-Zero", "aime25", "pass_at_1", 0.181),
        ("independent_check", "DeepSeek-R1-Distill-Qwen-14B", "gpqa", "pass_at_1", 0.615),
    ],
)
def test_figures_are_the_papers(table, name, benchmark, metric, value):
    found = figure(table, name, benchmark, metric)
    assert found.value == pytest.approx(value) and found.source


def test_every_table_is_whole():
    sizes = {name: len(table.figures) for name, table in published.tables().items()}
    assert sizes == {
        "distilled_models": 60,
        "r1_and_o1": 16,
        "r1_zero": 6,
        "table_6": 15,
        "stage_ablation": 60,
        "small_reinforcement": 4,
        "independent_check": 24,
    }
    for table in published.tables().values():
        for found in table.figures:
            assert found.unit or 0 < found.value < 1
            assert found.protocol["temperature"] == 0.6 and found.protocol["title"]


def test_what_stands_in_two_tables_is_the_same_there():
    for name in ("QwQ-32B-Preview", "DeepSeek-R1-Distill-Qwen-32B"):
        for benchmark in ("aime24", "math500", "gpqa", "livecodebench"):
            twice = [figure(table, name, benchmark) for table in ("distilled_models", "table_6")]
            assert twice[0].value == twice[1].value
    assert figure("r1_and_o1", "DeepSeek-R1", "gpqa").value == 0.715
    assert figure("stage_ablation", "DeepSeek-R1", "gpqa").value == 0.715


def test_costs_add_up():
    *parts, whole = published.costs()
    assert whole["hours"] == sum(part["hours"] for part in parts) == 147_000
    assert whole["money"] == sum(part["money"] for part in parts) == 2 * whole["hours"]
    assert all(part["source"] for part in parts)


def test_a_public_name_finds_its_figure_by_itself():
    (row,) = published.beside([measured(SMALL, "aime24")], {})
    assert (row["published"], row["source"]) == (0.289, "v1, Table 5 (the same in v2, Table 15)")
    assert (row["name"], row["paper_name"]) == (SMALL, "DeepSeek-R1-Distill-Qwen-1.5B")
    assert row["value"] == 0.25 and "unit" not in row
    assert row["differs"][-1].startswith("others measured 30.7 % of the same model (Open-R1")
    assert not any("here" in why for why in row["differs"])  # as the paper asks


def test_ways_of_prompting_stand_beside_it_too():
    (row,) = published.beside([measured(f"{SMALL}, few_shot_cot", "aime24")], {})
    assert row["published"] == 0.289
    assert row["differs"][0] == "asked by few_shot_cot here, without examples in the paper"


def test_other_names_are_told():
    rows = [measured("mine", "aime24"), measured("mine", "heldout"), measured("base", "aime24")]
    (row,) = published.beside(rows, {"mine": SMALL})
    assert row["name"] == "mine" and row["split"] == "aime24"


def test_an_unknown_name_is_the_users_mistake():
    with pytest.raises(UserError, match=r"DeepSeek-R1-Distill-Qwen-1\.5B"):
        published.beside([], {"mine": "DeepSeek-R1-Distil-Qwen-1.5B"})
    assert not published.is_known("R1") and not published.is_known("")


@pytest.mark.parametrize("split", ["aime24", "AIME-2024", "aime_2024", "AIME 2024"])
def test_a_benchmark_has_several_spellings(split):
    assert published.beside([measured(SMALL, split)], {})


def test_what_differs_is_said():
    row = measured(SMALL, "math500", num_samples=4, num_problems=120, temperature=1.0)
    (told,) = published.beside([row | {"max_tokens": 4096}], {})
    assert told["differs"][:4] == [
        "120 problems here, 500 in the paper",
        "4 samples a problem here, 16 in the paper",
        "temperature 1 here, temperature 0.6 in the paper",
        "4,096 tokens here, 32,768 tokens in the paper",
    ]
    silent = {key: row[key] for key in row.keys() - {"temperature", "top_p", "max_tokens"}}
    (told,) = published.beside([silent], {})
    drawn = "the paper draws at temperature 0.6 and top-p 0.95, up to 32,768 tokens"
    assert drawn in told["differs"]


def test_conflicts_of_the_papers_versions_are_said():
    (row,) = published.beside([measured("deepseek-ai/DeepSeek-R1-Zero", "aime24")], {})
    assert row["published"] == 0.71
    assert "the paper also has 77.9 % (v2, Table 3)" in row["differs"]
    (row,) = published.beside([measured("Qwen/QwQ-32B-Preview", "aime24")], {})
    assert "DeepSeek's README has 44.0" in row["differs"]


def test_votes_and_greedy_answers_stand_beside_their_kin():
    vote = measured(SMALL, "aime24", metric="cons_at_16")
    greedy = measured(SMALL, "math500", metric="greedy", num_samples=1, num_problems=500)
    rows = published.beside([vote, greedy], {})
    assert [row["published"] for row in rows] == [0.527, 0.839]
    assert "16 samples vote here, 64 in the paper" in rows[0]["differs"]
    assert rows[1]["differs"][0].startswith("greedy here, in the paper samples")
    drawn = measured(SMALL, "math500", num_problems=500)
    assert [row["metric"] for row in published.beside([drawn, greedy], {})] == ["pass_at_1"]


def test_ratings_keep_their_unit():
    rating = measured(SMALL, "codeforces", metric="rating", value=900.0, unit="rating")
    (row,) = published.beside([rating], {})
    assert (row["published"], row["unit"]) == (954, "rating")
