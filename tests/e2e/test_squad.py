"""The course's lab on distillation, done right: the recipe whole at its size for tests.

Each of the lab's mistakes has its test here, in tests/verifiers/test_squad.py (answers and scores)
or in tests/stages/test_likelihood.py (what is timed); merging adapters onto a float base is proved
in tests/numerics/test_adapters.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from limbeck import store, tables
from limbeck.recipe import load
from limbeck.runs import Run

torch = pytest.importorskip("torch")

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere")) / "squad"
STUDENTS = ["live", "cached", "on_policy", "hard"]
needs_data = pytest.mark.skipif(not DATA.exists(), reason="set LIMBECK_TEST_DATA to the test data")


def run(name: str, folder: Path, *overrides: str) -> Run:
    command = [sys.executable, "-m", "limbeck", "run", str(RECIPES / f"{name}.yaml")]
    command += ["--size", "ci", "--quiet", "--run", str(folder), *overrides]
    command += [f"lessons.source.path={DATA / 'train_subset.parquet'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    return Run(folder)


@pytest.fixture(scope="module")
def squad(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if not DATA.exists():
        pytest.skip("set LIMBECK_TEST_DATA to the test data")
    folder = tmp_path_factory.mktemp("squad") / "run"
    return run(
        "squad_logits",
        folder,
        f"heldout.source.path={DATA / 'dev-v1.1.json.gz'}",
        f"pages.source.path={DATA / 'train_subset.parquet'}",
    )


@pytest.mark.parametrize("size", ["", "miniature", "ci"])
def test_every_size_can_be_planned(size):
    recipe = load(RECIPES / "squad_logits.yaml", size=size)
    names = [stage.name for stage in recipe.stages]
    assert ("newborn" in names) == (size != "")
    live = next(stage.config for stage in recipe.stages if stage.name == "live")
    assert (live.temperature, live.alpha) == (2.0, 0.5)
    if not size:
        assert (live.lora.rank, live.lora.alpha) == (16, 32.0)
        assert live.lora.targets == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_results_begin_with_closeness_and_hold_every_model(squad):
    found = {(row["name"], row["metric"]): row for row in squad.results()}
    both = {"nll", "perplexity", "greedy", "f1"}
    expected = {(name, metric) for name in [*STUDENTS, "start"] for metric in both | {"kl"}}
    assert set(found) == expected | {("teacher", metric) for metric in both}
    assert next(iter(found))[1] == "kl"
    assert all(row["low"] <= row["value"] <= row["high"] for row in found.values())
    assert all(row["num_problems"] == 24 for row in found.values())
    tests = squad.summary()["tests"]
    assert {test["metric"] for test in tests} == {"kl", "nll", "greedy", "f1"}


def test_students_came_closer_to_the_teacher_than_where_they_began(squad):
    kl = {row["name"]: row["value"] for row in squad.results() if row["metric"] == "kl"}
    assert all(kl[name] < kl["start"] for name in STUDENTS)
    assert kl["live"] < kl["hard"]  # the lab's student never saw its teacher's logits


def test_models_are_of_gpt2s_family(squad):
    for stage in ("teacher", *STUDENTS):
        assert store.read_json(squad.path / stage / "model" / "config.json")["model_type"] == "gpt2"


def test_answers_are_in_the_training_text_and_articles_apart(squad):
    lessons = tables.read_problems(squad.path / "lessons" / "problems")
    heldout = tables.read_problems(squad.path / "heldout" / "problems")
    aside = tables.read_problems(squad.path / "lessons" / "heldout")
    learned = tables.read_table(squad.path / "course" / "dataset").to_pylist()
    answers = {problem.id: problem.answer for problem in lessons}
    assert [row["messages"][-1]["content"] for row in learned] == [*answers.values()]
    groups = [{problem.meta["group"] for problem in part} for part in (lessons, heldout, aside)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2]
    assert any(len(problem.meta["answers"]) > 1 for problem in heldout)


def test_only_answers_are_learned_and_padding_never(squad):
    from limbeck import models
    from limbeck.train.examples import pack_batches, read_lessons

    tokenizer = models.load_tokenizer(squad.path / "teacher" / "model")
    lessons = read_lessons(str(squad.path / "course" / "dataset"), tokenizer, 112)
    (batch,) = pack_batches(lessons.examples, 100_000, "cpu")
    assert tokenizer.pad_token_id not in batch.ids  # there is none: texts lie end to end
    texts = tokenizer.decode(batch.loss_tokens().targets).split("<|end|>")[:-1]
    assert sorted(texts) == sorted(row["messages"][-1]["content"] for row in lessons.rows)


def test_the_teachers_logits_matter(squad):
    from limbeck import models
    from limbeck.train.distillation import Mix
    from limbeck.train.divergences import forward_kl
    from limbeck.train.examples import pack_batches, read_lessons
    from limbeck.train.head import TokenModel
    from limbeck.train.losses import cross_entropy
    from limbeck.train.teaching import live

    tokenizer = models.load_tokenizer(squad.path / "teacher" / "model")
    student = TokenModel(models.load_model(squad.path / "start" / "model"))
    lessons = read_lessons(str(squad.path / "course" / "dataset"), tokenizer, 112)
    (batch,) = pack_batches(lessons.examples[:8], 100_000, "cpu")

    def gradient(loss, teacher=None):
        columns = teacher.columns(batch) if teacher else {}
        student.zero_grad()
        student(replace(batch, columns=columns), loss).backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    found = {}
    for name in ("teacher", "start"):
        path = str(squad.path / name / "model")
        teacher = live(path, "float32", student.model, tokenizer, 2.0)
        mix = partial(Mix, teacher.view, forward_kl, temperature=2.0)
        found[name] = gradient(mix(alpha=0.5), teacher)
        found["none"] = gradient(mix(alpha=0.0), teacher)
    hard = gradient(cross_entropy)
    assert torch.allclose(found["none"], hard, rtol=1e-4, atol=1e-5)  # other order of the sums
    assert torch.allclose(found["start"], hard / 2, rtol=1e-4, atol=1e-5)  # nothing to learn there
    assert (found["teacher"] - found["start"]).norm() > 0.02 * hard.norm()


def test_the_parts_of_every_loss_are_on_record(squad):
    for stage in ("live", "cached", "on_policy"):
        rows = store.read_jsonl(squad.path / stage / "metrics.jsonl")
        steps = [row for row in rows if "soft" in row]
        assert steps and all(row["soft"] > 0 and row["hard"] > 0 for row in steps)


def test_the_report_tells_nats_from_per_cent(squad):
    page = squad.write_report().read_text(encoding="utf-8")
    assert "Models of this size answer few questions right" in page
    assert "KL to the teacher" in page and "Size and speed" in page
    kl = next(row for row in squad.results() if (row["name"], row["metric"]) == ("live", "kl"))
    as_share = (
        rf"(?<!\d){100 * kl['value']:.1f} % \("  # with its interval; others may be of its size
    )
    assert f"{kl['value']:.3f}" in page and not re.search(as_share, page)
    printed = squad.text()
    assert "less is better" in printed and "is closer to the teacher than" in printed


@needs_data
def test_the_sweep_ends_in_a_picture(tmp_path):
    sweep = run("squad_sweep", tmp_path / "run")
    page = sweep.write_report().read_text(encoding="utf-8")
    assert page.count("over temperature</title>") == 2  # KL and NLL
    pictures = [part.partition("</figure>")[0] for part in page.split("over temperature</title>")]
    assert [picture.count("<polyline") for picture in pictures[1:]] == [3, 3]  # of three alphas
    assert "T = 4" in page and "alpha 0.9" in page
