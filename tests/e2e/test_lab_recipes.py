"""The course's labs on pruning and quantization, done right: both recipes at their size for tests.

The lab on pruning has no accuracy before it and prunes weights that lie packed; the lab on
quantization learns and tests on one label, and evaluates what it began with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from limbeck import store, tables
from limbeck.recipe import load
from limbeck.runs import Run

torch = pytest.importorskip("torch")

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere"))
SHARES = [20, 35, 50, 70]
ZEROS = [f"{how}_{share}" for how in ("magnitude", "wanda") for share in SHARES]
PATTERNS = ["magnitude_2_4", "wanda_2_4"]
SMALLER = [f"{how}_{share}" for how in ("depth", "width") for share in SHARES]
PRUNED = [*ZEROS, *PATTERNS, *SMALLER]
INT8, INT4 = ["int8", "int8_weights"], ["int4_round", "int4_gptq", "int4_awq"]
LABELS = {"positive", "negative"}


def run(name: str, folder: Path, **files: str) -> Run:
    if not DATA.exists():
        pytest.skip("set LIMBECK_TEST_DATA to the test data")
    command = [sys.executable, "-m", "limbeck", "run", str(RECIPES / f"{name}.yaml")]
    command += ["--size", "ci", "--quiet", "--run", str(folder)]
    command += [f"{stage}.source.path={DATA / path}" for stage, path in files.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    return Run(folder)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("prune") / "run"
    return run("sst2_prune", folder, lessons="sst2/train.tsv.gz", heldout="sst2/dev.tsv")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("quantize") / "run"
    reviews = "movie_reviews/movie_reviews.jsonl.gz"
    return run("imdb_quantize", folder, sentences="sst2/train.tsv.gz", reviews=reviews)


def summary(found: Run, stage: str) -> dict:
    return next(row["summary"] for row in found.stages() if row["stage"] == stage)


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    """A model's matrices by name, without embeddings and head."""
    from limbeck import models
    from limbeck.compress import anatomy

    blocks = anatomy.blocks(models.load_model(folder))
    return {
        f"{index}.{name}": anatomy.weight_of(matrix)
        for index, block in enumerate(blocks)
        for name, matrix in anatomy.matrices(block).items()
    }


@pytest.mark.parametrize("name", ["sst2_prune", "imdb_quantize"])
@pytest.mark.parametrize("size", ["", "real", "ci"])
def test_every_size_can_be_planned(name, size):
    names = [stage.name for stage in load(RECIPES / f"{name}.yaml", size=size).stages]
    assert ("newborn" in names) == (size != "real")


def test_every_pruning_is_judged_before_and_after_recovery(pruned):
    rows = pruned.results()
    expected = ["baseline", *(name for way in PRUNED for name in (way, f"again_{way}"))]
    assert [row["name"] for row in rows] == expected
    assert all(row["metric"] == "greedy" and row["num_problems"] == 24 for row in rows)
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    pairs = {(test["a"], test["b"]) for test in pruned.summary()["tests"]}
    others = [(way, "baseline") for way in PRUNED]
    assert pairs == {(f"again_{a}", b) for a, b in [*zip(PRUNED, PRUNED, strict=True), *others]}


def test_the_shares_are_what_was_asked_as_far_as_whole_units_allow(pruned):
    for way in ZEROS:  # rows of 16 weights
        asked = int(way.rpartition("_")[2]) / 100
        assert summary(pruned, way)["sparsity"] == pytest.approx(asked, abs=0.04)
    depths = [summary(pruned, f"depth_{share}")["sparsity"] for share in SHARES]
    assert depths == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6])
    widths = [summary(pruned, f"width_{share}")["sparsity"] for share in SHARES]
    assert widths == pytest.approx([0.2, 0.35, 0.5, 0.7], abs=0.05)


def test_only_models_without_units_are_smaller(pruned):
    whole = summary(pruned, "baseline")["num_parameters"]
    assert {summary(pruned, f"again_{way}")["num_parameters"] for way in ZEROS} == {whole}
    for how in ("depth", "width"):
        sizes = [summary(pruned, f"again_{how}_{share}")["num_parameters"] for share in SHARES]
        assert whole > sizes[0] > sizes[1] > sizes[2] > sizes[3]


@pytest.mark.parametrize("way", ["magnitude_70", "wanda_50", "wanda_2_4"])
def test_zeros_outlive_recovery_and_the_rest_has_learned(pruned, way):
    before = matrices(pruned.path / way / "model")
    after = matrices(pruned.path / f"again_{way}" / "model")
    for name, weight in before.items():
        assert torch.equal(after[name] == 0, weight == 0)
        if way == "wanda_2_4":
            assert (weight.view(-1, 4) != 0).sum(1).max() == 2
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


def test_sentences_are_learned_with_both_labels_and_none_of_the_tests(pruned):
    lessons = tables.read_problems(pruned.path / "lessons" / "problems")
    heldout = tables.read_problems(pruned.path / "heldout" / "problems")
    for problems in (lessons, heldout):
        shares = Counter(problem.answer for problem in problems)
        assert shares.keys() == LABELS and min(shares.values()) > len(problems) / 4
    learned = tables.read_table(pruned.path / "course" / "dataset")["messages"].to_pylist()
    asked = {problem.question for problem in heldout}
    assert not asked & {messages[0]["content"] for messages in learned}
    assert {messages[-1]["content"] for messages in learned} == LABELS


def test_the_reports_table_has_a_line_for_each(pruned, quantized):
    for found, names in ((pruned, PRUNED), (quantized, [*INT8, *INT4])):
        page = found.write_report().read_text(encoding="utf-8")
        assert all(name in page for name in names)
    assert "zeros or gone" in pruned.write_report().read_text(encoding="utf-8")


def test_every_precision_is_judged_and_timed(quantized):
    names = ["fp32", "bf16", *INT8, *INT4]
    assert [row["name"] for row in quantized.results()] == names
    assert all(row["num_problems"] == 16 and not row["failed"] for row in quantized.results())
    speeds = store.read_json(quantized.path / "profile" / "speeds" / "speeds.json")
    assert [row["name"] for row in speeds["artifacts"]] == names
    pairs = {(row["a"], row["b"], row["at"]) for row in speeds["ratios"]}
    assert {("int8", "bf16", "batch 1"), ("int8", "bf16", "load")} <= pairs


def test_fewer_bits_are_fewer_bytes(quantized):
    from limbeck import guard

    sizes = {
        name: guard.num_bytes(quantized.path / name / "model")
        for name in ("baseline", *INT8, *INT4)
    }
    assert max(sizes[name] for name in INT4) < min(sizes[name] for name in INT8)
    assert max(sizes[name] for name in INT8) < sizes["baseline"]
    bits = {name: summary(quantized, name)["bits_per_weight"] for name in (*INT8, *INT4)}
    assert all(8 <= bits[name] < 9 for name in INT8) and all(4 < bits[name] < 6 for name in INT4)


def test_what_is_evaluated_is_what_was_quantized(quantized):
    dense = matrices(quantized.path / "baseline" / "model")
    for name in (*INT8, *INT4):
        there = matrices(quantized.path / name / "model")
        assert not any(torch.equal(there[key], weight) for key, weight in dense.items())


def test_reviews_of_both_labels_are_learned_and_held_out_by_their_ends(quantized):
    learned = tables.read_problems(quantized.path / "reviews" / "problems")
    heldout = tables.read_problems(quantized.path / "reviews" / "heldout")
    for reviews in (learned, heldout):
        assert {review.answer for review in reviews} == LABELS
        assert all(len(review.question.split()) == 64 for review in reviews)
    assert not {r.question for r in learned} & {r.question for r in heldout}
