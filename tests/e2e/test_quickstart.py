"""The main job, whole, at its size for tests: it runs, it adds up, and a kill changes nothing."""

import html.parser
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck import store, tables
from limbeck.runs import Run

torch = pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
MODELS = ["teacher", "distilled", "unfiltered", "answers_only", "start"]
# One thread: bits depend on how many, and two runs are compared here.
COMMAND = [sys.executable, "-m", "limbeck", "run", str(RECIPE), "--size", "ci", "--quiet"]


def run(folder, kill_at=None):
    environment = {**os.environ, "LIMBECK_KILL_AT": kill_at or "", "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "machine.threads=1", "--run", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    expected = -signal.SIGKILL if kill_at else 0
    assert done.returncode == expected, (kill_at, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    printed = run(folder)
    return Run(folder), printed


def test_results_have_every_model_split_and_metric(quickstart):
    finished, printed = quickstart
    results = finished.summary()["results"]
    found = {(row["name"], row["split"], row["metric"]) for row in results}
    metrics = ("pass_at_1", "greedy")
    assert found == {(n, s, m) for n in MODELS for s in ("heldout", "harder") for m in metrics}
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in results)
    tests = finished.summary()["tests"]
    assert {(t["a"], t["b"]) for t in tests} >= {("distilled", "answers_only")}
    assert all(name in printed for name in MODELS)
    assert str(finished.path / "report.html") in printed


def test_students_have_one_start_one_size_and_one_budget(quickstart):
    finished, _ = quickstart
    said = {row["stage"]: row["summary"] for row in finished.stages() if row["verb"] == "sft"}
    students = [said[name] for name in ("distilled", "unfiltered", "answers_only")]
    assert len({student["num_parameters"] for student in students}) == 1
    assert students[0]["num_parameters"] * 4 <= said["teacher"]["num_parameters"]
    budgets = [student["loss_tokens"] + student["prompt_tokens"] for student in students]
    assert max(budgets) < min(budgets) * 1.01  # a budget ends with the example that reaches it


def test_funnels_add_up(quickstart):
    finished, _ = quickstart
    for row in finished.stages():
        if row["verb"] == "curate":
            counts = row["summary"]
            assert counts["sampled"] == counts["kept"] + sum(counts["dropped"].values())
            decisions = finished.table(f"{row['stage']}/decisions")
            assert decisions.num_rows == counts["sampled"]
            assert decisions["dropped"].null_count == counts["kept"]
            assert finished.table(f"{row['stage']}/dataset").num_rows == counts["kept"]


def test_no_heldout_question_is_trained_on(quickstart):
    from limbeck.problems import collision_key

    finished, _ = quickstart
    trained, held = (
        {collision_key(p) for table in places for p in tables.read_problems(finished.path / table)}
        for places in (("lessons/problems", "collect/problems"), ("collect/heldout",))
    )
    harder = {collision_key(p) for p in tables.read_problems(finished.path / "harder/problems")}
    assert held
    assert not trained & (held | harder)


def test_the_student_is_an_ordinary_hugging_face_folder(quickstart):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    finished, _ = quickstart
    model = AutoModelForCausalLM.from_pretrained(finished.path / "distilled/model")
    tokenizer = AutoTokenizer.from_pretrained(finished.path / "distilled/model")
    asked = [{"role": "user", "content": "Spell this word backward (example: sun -> nus): pot"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    written = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert written.shape[1] > ids.shape[1]


def test_the_report_is_one_file_that_asks_nobody(quickstart):
    finished, _ = quickstart
    page = (finished.path / "report.html").read_text(encoding="utf-8")

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "link", "iframe", "img")
            assert not {"src", "onload", "onclick"} & {name for name, _ in attrs}

    Links().feed(page)
    assert "limbeck run" in page
    assert all(name in page for name in MODELS)


def test_a_trace_tells_its_whole_story(quickstart):
    finished, _ = quickstart
    kept = finished.table("curate/dataset")["id"][0].as_py()
    story = finished.story(kept)
    assert story["trained_into"] == ["distilled", "unfiltered", "answers_only"]
    assert {d["by"]: d["dropped"] for d in story["decisions"]}["curate/decisions"] is None
    command = [sys.executable, "-m", "limbeck", "show", str(finished.path), kept]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "verdict  correct" in told


POINTS = [
    "collect.part-00000",  # a table before its rename
    "solutions.finishing",  # every row written, no manifest
    "newborn.finishing",
    "teacher.step-30",  # between two checkpoints
    "sample.part-00000",
    "verify.part-00000",
    "curate.started",
    "distilled.started",
    "eval_distilled.part-00000",
    "compare.finishing",
]


def test_a_run_killed_in_each_kind_of_stage_ends_as_one_that_was_not(quickstart, tmp_path):
    whole, _ = quickstart
    killed = tmp_path / "run"
    for point in POINTS:
        run(killed, kill_at=point)
    run(killed)
    assert content(killed) == content(whole.path)


def content(folder):
    """Hashes of weights and tokenizers, and every row of every table and result."""
    folder = Path(folder)
    weights = {str(p.relative_to(folder)): store.hash_file(p) for p in folder.rglob("model/*")}
    parts = {path.parent for path in folder.rglob("part-*.parquet")}
    rows = {str(t.relative_to(folder)): tables.read_table(t).to_pylist() for t in parts}
    results = json.loads((folder / "compare/results/results.json").read_text())
    steps = {
        str(p.relative_to(folder)): {row["step"]: row for row in store.read_jsonl(p)}
        for p in folder.rglob("metrics.jsonl")
    }
    return {**weights, **rows, "results": results, **steps}


def test_guessing_never_scores_above_a_tenth_at_full_size(tmp_path):
    import limbeck
    from limbeck import recipe as recipes

    full = recipes.read_yaml(RECIPE.read_text(), "recipe")[0]
    stages = {name: full["stages"][name] for name in ("collect", "harder")}
    stages["collect"]["num"] = 300  # held-out problems are drawn whatever is drawn for training
    finished = limbeck.run({"name": "guess", "stages": stages}, run=tmp_path / "run")
    for row in finished.stages():
        for split, shares in row["summary"]["guess"].items():
            assert len(shares) == 3
            assert max(shares.values()) <= 0.10, (row["stage"], split, shares)
