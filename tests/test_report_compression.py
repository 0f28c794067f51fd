"""What the report says of models that were made smaller: nothing that nobody measured."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from limbeck import store
from limbeck.report import Report, render
from limbeck.report.compression import compression, gates, ratios
from limbeck.report.sensitivity import sensitivity
from limbeck.reporting import compression as reporting
from limbeck.runs import Run

# -- the scan -----------------------------------------------------------------------------------


def scan(*rises, levels=(0.5,)):
    blocks = [
        {"index": i, "name": f"model.layers.{i}", "loss": list(of_layer)}
        for i, of_layer in enumerate(rises)
    ]
    return {"stage": "pruned", "levels": list(levels), "dense": 1.25, "blocks": blocks}


def bars(svg):
    """(left, top, height) of each bar, read off the picture."""
    found = re.findall(
        r'<rect x="([\d.]+)%" y="(\d+)" width="[\d.]+%" height="(\d+)" class="rise"', svg
    )
    return [tuple(map(float, bar)) for bar in found]


def test_every_level_has_a_picture_and_every_layer_a_bar():
    told = sensitivity(scan((0.1, 1.0), (0.2, 0.5), (0.0, 0.25), levels=(0.2, 0.5)))
    assert [panel["title"] for panel in told["panels"]] == ["20 % of a layer", "50 % of a layer"]
    (_, top, height), second, third = bars(told["panels"][1]["svg"])
    assert height == pytest.approx(2 * second[2], abs=1) == pytest.approx(4 * third[2], abs=2)
    assert top + height == second[1] + second[2] == third[1] + third[2]  # on one line
    assert ElementTree.fromstring(told["panels"][0]["svg"]) is not None


def test_a_loss_that_falls_hangs_below_the_line():
    (svg,) = [panel["svg"] for panel in sensitivity(scan((0.1,), (-0.1,)))["panels"]]
    (_, top, height), (_, below, _) = bars(svg)
    assert below == top + height


def test_numbers_stand_in_a_table_and_the_ends_in_words():
    told = sensitivity(scan((0.3,), (0.01,), (0.2,), (0.02,)))
    assert told["rows"][1] == (1, ["0.0100"])
    assert told["told"].startswith("At 50 % the model needs layers 0 (+0.3), 2 (+0.2) most")
    assert told["told"].endswith("most, 1 (+0.01), 3 (+0.02) least.")
    page = render(Report(name="r", title="t", scans=[scan((0.3,), (0.01,))]))
    assert page.count('id="sensitivity"') == 1 and "0.0100" in page


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), None])
def test_what_is_no_number_is_no_bar(strange):
    page = render(Report(name="r", title="t", scans=[scan((0.3,), (strange,))]))
    assert len(bars(page)) == 1 and ">nan" not in page and ">inf" not in page
    assert sensitivity(scan((strange,), (strange,)))["panels"] == []


def test_many_layers_have_few_labels():
    (panel,) = sensitivity(scan(*[(i / 80,) for i in range(80)]))["panels"]
    assert len(bars(panel["svg"])) == 80
    assert re.findall(r'text-anchor="middle">(\d+)<', panel["svg"]) == [*map(str, range(0, 80, 10))]


# -- the table ----------------------------------------------------------------------------------


def row(name, **known):
    return {"name": name, "how": "", "made_of": "", **known}


WHOLE = row("sft", split="heldout", metric="pass_at_1", value=0.8, low=0.75, high=0.85)
SMALL = row(
    "half", how="wanda 50 %", made_of="sft", sparsity=0.5, num_bytes=2e6, tokens_per_answer=120
)


def test_columns_are_those_that_anybody_knows():
    told = compression([{**WHOLE, "num_bytes": 4e6}, {**SMALL, "longer": 1.2}])
    heads = [head.figure for head in told["columns"]]
    assert heads == ["pass@1", "length", "weights", "zeros or gone"]
    whole, small = ([tuple(cell) for cell in line["cells"]] for line in told["rows"])
    assert whole == [("80.0 %", "75.0–85.0"), ("–", ""), ("4.00 MB", ""), ("–", "")]
    assert small == [("–", ""), ("120", "× 1.20"), ("2.00 MB", ""), ("50.0 %", "")]


def test_the_page_says_what_was_made_of_what():
    page = render(Report(name="r", title="t", compression=[WHOLE, SMALL]))
    assert "wanda 50 %, from sft" in page and "on heldout" in page
    assert 'id="compression"' not in render(Report(name="r", title="t"))


RATIOS = [
    {"stage": "speeds", "a": "int8", "b": "bfloat16", "ratio": 2.886, "low": 2.77, "high": 3.13},
    {"stage": "speeds", "a": "int8", "b": "bfloat16", "ratio": 1.63, "low": 1.47, "high": 1.81},
    {"stage": "speeds", "a": "q8_0", "b": "bfloat16", "ratio": 4.0, "low": None, "high": None},
]
for way, compared in zip(("batch 1", "load", "load"), RATIOS, strict=True):
    compared["at"] = way


def test_speeds_stand_beside_each_other_a_row_for_each_pair():
    told = ratios(RATIOS)
    assert told["columns"] == ["one at a time", "at load"]
    rows = [(row["a"], row["b"], [tuple(cell) for cell in row["cells"]]) for row in told["rows"]]
    assert rows == [
        ("int8", "bfloat16", [("× 2.89", "2.77 to 3.13"), ("× 1.63", "1.47 to 1.81")]),
        ("q8_0", "bfloat16", [("–", ""), ("× 4.00", "")]),
    ]
    page = render(Report(name="r", title="t", ratios=RATIOS))
    assert "How much faster" in page and "× 2.89<br><small>2.77 to 3.13" in page
    assert page.count("× ") == 3  # no times of what nobody compared
    assert "How much faster" not in render(Report(name="r", title="t", compression=[WHOLE]))


def test_names_cannot_act():
    page = render(Report(name="r", title="t", compression=[{**SMALL, "name": "<script>"}]))
    assert "<script>" not in page


# -- gathered from a run ------------------------------------------------------------------------

STAGES = {
    "sft": {"stage": "sft", "model": "somebody/base", "data": "./curate/dataset"},
    "half": {"stage": "prune", "model": "./sft/model", "method": "wanda", "sparsity": 0.5},
    "narrow": {"stage": "prune", "model": "./sft/model", "method": "width", "sparsity": 0.35},
    "healed_narrow": {"stage": "sft", "model": "./narrow/model", "data": "./curate/dataset"},
    "healed": {"stage": "distill", "model": "./half/model", "data": "./curate/dataset"},
    "healthy": {"stage": "sft", "model": "./sft/model", "data": "./curate/dataset"},
    "gated": {
        "stage": "gate",
        "model": "./sft/model",
        "before": "./eval_sft/scores",
        "trials": {"half": {"model": "./healed/model", "scores": "./eval_healed/scores"}},
    },
    "int4": {
        "stage": "quantize",
        "model": "./gated/model",
        "method": {"name": "gptq"},
        "weights": "int4",
        "group_size": 32,
    },
    "exported": {
        "stage": "export",
        "model": "./int4/model",
        "to": "gguf",
        "quant": ["q8_0", "q4_0"],
    },
    "pattern": {"stage": "prune", "model": "a/b", "method": "sparsegpt", "pattern": "2:4"},
    "undone": {"stage": "prune", "model": "./sft/model", "method": "depth", "sparsity": 0.5},
    "eval_sft": {
        "stage": "evaluate",
        "engine": {"name": "local", "model": "./sft/model"},
        "problems": {"heldout": "./collect/heldout"},
    },
    "eval_healed": {
        "stage": "evaluate",
        "engine": {"name": "local", "model": "./healed/model"},
        "problems": {"heldout": "./collect/heldout"},
    },
    "eval_gguf": {
        "stage": "evaluate",
        "engine": {"name": "llama_cpp", "model": "./exported/gguf", "quant": "q4_0"},
        "problems": {"heldout": "./collect/heldout"},
    },
}
TRIAL = {
    "name": "half",
    "metric": "pass_at_1",
    "value": 0.7,
    "low": 0.625,
    "high": 0.775,
    "test": {"difference": -0.1, "low": -0.15, "high": -0.05},
    "length": {"ratio": 1.5, "low": 1.4, "high": 1.625},
    "verdict": "fell",
}
SUMMARIES = {
    "sft": {"num_parameters": 100},
    "half": {"num_parameters": 100, "num_bytes": 400, "sparsity": 0.5},
    "narrow": {"num_parameters": 70, "num_bytes": 280, "sparsity": 0.34},
    "int4": {"num_parameters": 100, "num_bytes": 80, "bits_per_weight": 4.5},
    "gated": {"chosen": "half", "trials": [TRIAL]},
    "exported": {"num_parameters": 100, "to": "gguf"},
    "pattern": {"sparsity": 0.5},
}


def result(value, tokens):
    about = {"split": "heldout", "metric": "pass_at_1", "num_problems": 9, "num_samples": 1}
    ends = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return about | ends | {"tokens_per_answer": tokens, "cost": 1.0}


SUMMARIES["eval_sft"] = {"num_parameters": 100, "results": [result(0.8, 100)]}
SUMMARIES["eval_healed"] = {"num_parameters": 100, "results": [result(0.7, 150)]}
SUMMARIES["eval_gguf"] = {"num_parameters": 100, "results": [result(0.6, 150)]}


@pytest.fixture
def run(tmp_path):
    store.write_sealed(tmp_path / "recipe.json", {"name": "r", "title": "r", "stages": STAGES})
    found = scan((0.1,))
    store.write_json(
        tmp_path / "half" / "scan" / "scan.json", {k: found[k] for k in found if k != "stage"}
    )
    (tmp_path / "exported" / "gguf").mkdir(parents=True)
    (tmp_path / "exported" / "gguf" / "q8_0.gguf").write_bytes(bytes(85))
    (tmp_path / "exported" / "gguf" / "q4_0.gguf").write_bytes(bytes(45))
    for name in STAGES:
        if name != "undone":
            (tmp_path / name).mkdir(exist_ok=True)
            about = {"finished": "", "summary": SUMMARIES.get(name, {})}
            files = store.hash_tree(tmp_path / name)
            store.write_sealed(tmp_path / name / "stage.json", {**about, "files": files})
    return Run(tmp_path)


def test_each_model_stands_below_what_it_was_made_of(run):
    rows = {row["name"]: row for row in reporting.compression(run)}
    below = ["sft", "half", "healed", "int4", "exported q8_0", "exported q4_0", "narrow"]
    assert list(rows) == [*below, "healed_narrow", "a/b", "pattern"]
    told = {name: (row["how"], row["made_of"]) for name, row in rows.items() if row["how"]}
    assert told == {
        "half": ("wanda 50 %", "sft"),
        "healed": ("recovered by distill", "half"),
        "int4": ("gptq int4 in groups of 32", "healed"),  # which the gate handed on
        "exported q8_0": ("GGUF q8_0", "int4"),
        "exported q4_0": ("GGUF q4_0", "int4"),
        "narrow": ("width 35 %", "sft"),
        "healed_narrow": ("recovered by sft", "narrow"),
        "pattern": ("sparsegpt 2:4", "a/b"),
    }


def test_what_nobody_measured_is_not_made_up(run):
    rows = {row["name"]: row for row in reporting.compression(run)}
    healed, half = rows["healed"], rows["half"]
    assert (healed["value"], healed["tokens_per_answer"], healed["longer"]) == (0.7, 150, None)
    told = compression([healed])
    assert told["rows"][0]["cells"][0] == ("70.0 %", "60.0–80.0")
    assert half["value"] is None and half["sparsity"] == 0.5 and healed["sparsity"] is None
    assert rows["int4"]["bits_per_weight"] == 4.5 and rows["int4"]["latency_s"] is None


def test_what_is_gone_stays_gone_and_zeros_while_they_are_kept(run):
    def sparsities():
        return {row["name"]: row["sparsity"] for row in reporting.compression(run)}

    told = sparsities()
    assert told["healed_narrow"] == 0.34 and told["healed"] is told["int4"] is None
    run.recipe["stages"]["healed"]["keep_zeros"] = True
    told = sparsities()
    assert told["healed"] == told["int4"] == told["exported q8_0"] == 0.5


def test_answers_are_held_against_those_of_what_it_was_made_of(run):
    run.recipe["stages"]["eval_healed"]["engine"]["model"] = "./half/model"
    half = next(row for row in reporting.compression(run) if row["name"] == "half")
    assert half["longer"] == 1.5


def test_what_only_a_gate_has_read_was_measured_too(run):
    """The comparison is of one model: those that a gate judged have their scores nevertheless."""
    compare = {"stage": "compare", "scores": {"whole": "./eval_sft/scores"}}
    run.recipe["stages"]["compare"] = compare
    results = {"results": [{"name": "whole", **result(0.79, 110)}]}
    place = run.path / "compare" / "results" / "results.json"
    store.write_json(place, results)
    about = {"finished": "", "summary": {}, "files": store.hash_tree(run.path / "compare")}
    store.write_sealed(run.path / "compare" / "stage.json", about)
    rows = {row["name"]: row for row in reporting.compression(run)}
    assert rows["sft"]["value"] == 0.79  # as compared
    healed = rows["healed"]
    assert (healed["value"], healed["low"], healed["tokens_per_answer"]) == (0.7, 0.6, 150)
    assert rows["exported q4_0"]["value"] == 0.6 and rows["half"]["value"] is None


def test_scores_on_other_problems_do_not_stand_in_the_column(run):
    run.recipe["stages"]["eval_healed"]["problems"] = {"heldout": "./harder/problems"}
    rows = {row["name"]: row for row in reporting.compression(run)}
    assert rows["sft"]["value"] == 0.8 and rows["healed"]["value"] is None


def test_a_score_of_another_metric_than_the_columns_says_so():
    told = compression([WHOLE, {**WHOLE, "name": "fast", "metric": "greedy"}])
    cells = [tuple(row["cells"][0]) for row in told["rows"]]
    assert cells == [("80.0 %", "75.0–85.0"), ("80.0 %", "greedy, 75.0–85.0")]


def test_each_file_of_an_export_has_a_size_and_a_score_of_its_own(run):
    rows = {row["name"]: row for row in reporting.compression(run)}
    large, small = rows["exported q8_0"], rows["exported q4_0"]
    assert (large["num_bytes"], small["num_bytes"]) == (85, 45)
    assert (large["value"], small["value"]) == (None, 0.6)


def test_gates_tell_what_was_lost_and_what_might_be(run):
    (told,) = gates(reporting.gates(run))
    assert told == {
        "stage": "gated",
        "model": "healed",
        "chosen": True,
        "allowed": "5.0 points",
        "verdict": "has lost more",
        "metric": "pass@1",
        "score": "70.0 % (62.5–77.5)",
        "difference": "-10.0 (-15.0 to -5.0)",
        "longer": "1.50 (1.40 to 1.62)",
    }
    page = render(Report(name="r", title="t", gates=reporting.gates(run)))
    assert "What had to be kept" in page and "has lost more" in page
    assert '<th scope="col" class="n">pass@1</th>' in page and "70.0 % (62.5–77.5)" in page


def test_a_run_without_smaller_models_has_no_such_section(run):
    for name in (
        "half",
        "narrow",
        "healed_narrow",
        "int4",
        "pattern",
        "exported",
        "healed",
        "gated",
    ):
        del run.recipe["stages"][name]
    assert reporting.compression(run) == reporting.scans(run) == reporting.gates(run) == []


def test_scans_are_read_back_whole(run):
    (found,) = reporting.scans(run)
    assert found == scan((0.1,)) | {"stage": "half"}
