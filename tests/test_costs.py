"""What units cost adds up to the ledgers' rows; the frontier holds what was measured, no more."""

import json
import os
import signal
import subprocess
import sys

import pytest

import limbeck
from limbeck import ledger, store, tables
from limbeck.reporting import costs, frontier, lineage
from limbeck.runs import Run

# -- a run folder by hand, in which every number is known ---------------------------------------

PRICE = 3.6  # an hour, so a thousandth a second


def spent(seconds, flops=0.0, **more):
    row = {"work": "work", "tokens_in": 10, "tokens_out": 20, "flops": flops, "joules": None}
    row |= {"wall_seconds": seconds, "cpu_seconds": 2 * seconds, "device_seconds": 0.0}
    return row | {"peak_memory_mib": 1.0, "money": PRICE * seconds / 3600, **more}


def evaluate(model, **engine):
    return {
        "stage": "evaluate",
        "engine": {"name": "local", "model": model, **engine},
        "problems": {"heldout": "./collect/heldout"},
    }


def result(value, tokens, flops=0.0, metric="pass_at_1", split="heldout"):
    about = {"split": split, "metric": metric, "value": value}
    about |= {"low": value - 0.05, "high": value + 0.05}
    return about | {"tokens_per_answer": tokens, "cost": flops}


STAGES = {
    "collect": {"stage": "collect"},
    "teacher": {"stage": "sft", "model": "some/base", "data": "a.jsonl"},
    "sample": {
        "stage": "sample",
        "problems": "./collect/problems",
        "engine": {"name": "local", "model": "./teacher/model"},
    },
    "verify": {"stage": "verify", "problems": "./collect/problems", "traces": "./sample/traces"},
    "curate": {
        "stage": "curate",
        "problems": "./collect/problems",
        "traces": "./sample/traces",
        "verdicts": "./verify/verdicts",
    },
    "start": {"stage": "create", "tokenizer": "./teacher/model"},
    "high": {"stage": "sft", "model": "./start/model", "data": "./curate/dataset"},
    "low": {"stage": "sft", "model": "./start/model", "data": "./curate/dataset"},
    "eval_high": evaluate("./high/model"),
    "chosen": {
        "stage": "choose",
        "trials": {
            "high": {"model": "./high/model", "scores": "./eval_high/scores"},
            "low": {"model": "./low/model", "scores": "./eval_high/scores"},
        },
    },
    "eval_start": evaluate("./start/model"),
    "eval_student": evaluate("./chosen/model"),
    "eval_served": evaluate("r1", name="openai", prices={"input": 1.0, "output": 10.0}),
    "profile": {
        "stage": "profile",
        "engines": {
            "the start": {"name": "local", "model": "./start/model"},
            "student": {"name": "local", "model": "./chosen/model"},
        },
    },
}
LEDGERS = {
    "collect": [spent(1.0)],
    "teacher": [spent(100.0, 1e9)],
    "sample": [spent(2.0, 3e6), spent(4.0, 5e6)],  # one of them was interrupted
    "verify": [spent(0.5)],
    "curate": [spent(0.25)],
    "start": [spent(3.0)],
    "high": [spent(8.0, 7e6)],
    "low": [spent(9.0, 6e6)],
    "eval_high": [spent(1.5, 1e5)],
    "chosen": [spent(0.125)],
}
SUMMARIES = {
    "curate": {"sampled": 40, "kept": 16},
    "chosen": {"chosen": "high"},
    "eval_high": {"results": [], "num_parameters": 100},
    "eval_start": {"results": [result(0.25, 30.0, 600.0)], "num_parameters": 100},
    "eval_student": {
        "results": [result(0.5, 20.0, 400.0), result(0.6, 19.0, metric="greedy")],
        "num_parameters": 100,
    },
    "eval_served": {"results": [result(0.8, 200.0)], "num_parameters": None},
    "sample": {"flops": 8e6},
}


def speed(name, answer_s, load, truncated=0.0):
    def told(value):
        return {"median": value, "low": value, "high": value}

    return {
        "name": name,
        "engine": "local",
        "num_bytes": 400,
        "num_parameters": 100,
        "memory_mib": told(5.0),
        "device_memory_mib": told(0.0),
        "first_token_s": told(0.1),
        "token_s": told(0.01),
        "answer_s": told(answer_s),
        "tokens_per_second_1": told(50.0),
        "tokens_per_second_load": told(load),
        "truncated": truncated,
    }


@pytest.fixture
def run(tmp_path):
    return written(tmp_path)


def written(folder, price=PRICE):
    recipe = {"name": "r", "title": "r", "stages": STAGES}
    store.write_sealed(folder / "recipe.json", recipe)
    artifacts = [speed("the start", 0.5, 100.0), speed("student", 0.4, 1000.0, truncated=0.5)]
    machine = {"device": "cpu", "price_per_hour": price, "gemm_gflops": 1.0}
    store.write_json(
        folder / "profile" / "speeds" / "speeds.json", {"artifacts": artifacts, "machine": machine}
    )
    score = {"split": "heldout", "metric": "pass_at_1", "problem_id": "p", "domain": "d"}
    score |= {"num_samples": 4, "num_correct": 3, "num_failed": 0, "num_truncated": 0}
    score |= {"prompt_tokens": 400, "completion_tokens": 800, "flops": 0.0, "value": 0.75}
    tables.write_part(folder / "eval_served" / "scores", tables.to_table("scores", [score]))
    for name in STAGES:
        for row in LEDGERS.get(name, []):
            (folder / name).mkdir(exist_ok=True)
            store.append_json(folder / name / "ledger.jsonl", row)
        store.write_json(folder / name / "started.json", {})
        about = {"finished": "", "summary": SUMMARIES.get(name, {})}
        files = store.hash_tree(folder / name)
        store.write_sealed(folder / name / "stage.json", {**about, "files": files})
    return Run(folder)


def rows_of(*names):
    return [row for name in names for row in LEDGERS[name]]


DATA = ["collect", "sample", "verify", "curate"]


def test_an_accepted_trace_has_cost_all_that_was_written_for_it(run):
    own, with_models = run.costs()["per_accepted_trace"]
    assert own["stages"] == DATA and own["num_accepted"] == 16
    for key in costs.SPENT:
        told = [row[key] for row in rows_of(*DATA)]
        assert own[key] == (None if None in told else sum(told) / 16), key
    assert own["joules"] is None
    assert with_models["stages"] == ["collect", "teacher", *DATA[1:]]
    assert with_models["flops"] == (8e6 + 1e9) / 16
    assert with_models["counted"] == "with the making of teacher"


def test_a_point_has_cost_the_training_its_trials_and_its_data(run):
    own, with_models = run.costs()["per_point"]
    assert (own["name"], own["start"], own["points"]) == ("eval_student", "eval_start", 25.0)
    assert own["stages"] == [*DATA, "high", "low", "eval_high", "chosen"]
    assert own["cpu_seconds"] == sum(r["cpu_seconds"] for r in rows_of(*own["stages"])) / 25
    assert own["money"] == pytest.approx(PRICE * sum([7.75, 8, 9, 1.5, 0.125]) / 3600 / 25)
    assert {"teacher", "start"} <= set(with_models["stages"])
    assert with_models["flops"] > own["flops"]


def test_the_interval_of_the_gain_is_that_of_the_paired_test(run):
    told = {"name": "a", "start": "b", "split": "heldout", "metric": "pass_at_1"}
    test = {"a": "a", "b": "b", "split": "heldout", "metric": "pass_at_1", "low": 0.1, "high": 0.2}
    assert costs._tested(told, [test]) == {"low": 10.0, "high": 20.0}
    assert costs._tested(told, [{**test, "split": "other"}]) == {}


def test_a_right_answer_costs_by_tokens_share_and_speed(run):
    found = {row["name"]: row for row in run.costs()["per_correct_answer"]}
    student, served = found["eval_student"], found["eval_served"]
    assert student["tokens"] == 20 / 0.5
    assert student["flops"] == 400 / 0.5
    assert student["seconds"] == 20 / 1000 / 0.5
    assert student["money"] == pytest.approx(PRICE / 3600 * student["seconds"])
    assert student["stages"] == ["eval_student", "profile"]
    assert served["flops"] is None and served["seconds"] is None
    assert served["money"] == pytest.approx((100 * 1.0 + 200 * 10.0) / 1e6 / 0.8)


def test_the_frontier_has_every_model_once(run):
    rows = run.frontier()
    found = {row["name"]: row for row in rows}
    assert len(rows) == len(found) == 3
    assert {row["metric"] for row in rows} == {"pass_at_1"}
    start, student, served = (found[f"eval_{n}"] for n in ("start", "student", "served"))
    assert (start["kind"], student["kind"], served["kind"]) == ("base", "sft", "other")
    assert (student["value"], student["low"], student["high"]) == (0.5, 0.45, 0.55)
    assert (student["num_bytes"], student["peak_memory_mib"]) == (400, 5.0)
    assert start["latency_s"] == pytest.approx(0.1 + 0.01 * 29)
    assert student["latency_s"] == pytest.approx(0.1 + 0.01 * 19)  # its answers are shorter
    assert student["tokens_per_second_load"] == 1000.0
    measured = ("num_parameters", "num_bytes", "peak_memory_mib", "latency_s")
    assert [served[key] for key in measured] == [None] * 4
    assert student["between"]["peak_memory_mib"] == [5.0, 5.0] and served["between"] == {}


def test_bytes_of_a_model_on_disk_are_known_without_a_profile(run):
    folder = run.path / "start" / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(96))
    assert frontier._num_bytes(run, "./start/model") == 96
    assert frontier._num_bytes(run, "somebody/base") is None


def test_without_a_price_money_is_unknown(tmp_path):
    rows = {row["name"]: row for row in frontier.frontier(written(tmp_path, price=None))}
    assert rows["eval_student"]["money_per_correct"] is None
    assert rows["eval_student"]["seconds_per_correct"] is not None
    assert rows["eval_served"]["money_per_correct"] is not None


def test_who_is_never_right_costs_no_number(run, monkeypatch):
    monkeypatch.setitem(SUMMARIES, "eval_student", {"results": [result(0.0, 20.0, 400.0)]})
    (run.path / "eval_student" / "stage.json").unlink()
    about = {"finished": "", "summary": SUMMARIES["eval_student"], "files": {}}
    store.write_sealed(run.path / "eval_student" / "stage.json", about)
    row = next(r for r in run.frontier() if r["name"] == "eval_student")
    keys = ("flops_per_correct", "seconds_per_correct", "money_per_correct")
    assert [row[key] for key in keys] == [None] * 3
    own = run.costs()["per_point"][0]
    assert own["points"] == -25.0 and own["cpu_seconds"] is None


def test_a_point_is_counted_among_those_asked_in_the_same_way(run, monkeypatch):
    stages = run.recipe["stages"]
    monkeypatch.setitem(stages["eval_student"], "prompting", "zero_shot_cot")
    assert run.costs()["per_point"] == []
    monkeypatch.setitem(stages["eval_start"], "prompting", "zero_shot_cot")
    assert run.costs()["per_point"][0]["points"] == 25.0


def test_two_comparisons_may_call_a_model_alike(run, monkeypatch):
    stages = run.recipe["stages"]
    stages["eval_start"] = {**stages["eval_start"], "problems": {"other": "./collect/heldout"}}
    asked = {"other": "eval_start", "heldout": "eval_served"}
    results = []
    for split, evaluation in asked.items():
        scores = {"model": f"./{evaluation}/scores"}
        stages[f"on_{split}"] = {"stage": "compare", "scores": scores}
        told = SUMMARIES[evaluation]["results"][0]
        results.append({**told, "name": "model", "split": split})
    done = [{"stage": f"on_{split}"} for split in asked]
    monkeypatch.setattr(run, "done", lambda verb: done if verb == "compare" else [])
    monkeypatch.setattr(run, "compared", lambda: {"results": results, "tests": []})
    rows = {row["split"]: row for row in run.frontier()}
    assert {split: row["stages"] for split, row in rows.items()} == {
        split: [evaluation] for split, evaluation in asked.items()
    }
    assert rows["heldout"]["money_per_correct"] is not None


def test_models_are_known_by_what_made_their_weights(run):
    assert lineage.maker(run, "./chosen/model") == "high"
    assert lineage.maker(run, "some/base") == ""
    assert lineage.kind(run, "./teacher/model") == "sft"
    assert lineage.kind(run, "./start/model") == "base"
    assert lineage.kind(run, "some/base") == "other"  # nobody here knows what it is


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        ("distill", "distill"),
        ("grpo", "grpo"),
        ("prune", "pruned"),
        ("quantize", "quantized"),
        ("export", "exported"),
        ("reward_model", "other"),
    ],
)
def test_kinds_are_by_verb(run, verb, kind):
    run.recipe["stages"] = {"made": {"stage": verb, "model": "some/base"}}
    assert lineage.kind(run, "./made/model") == kind


def test_an_adopted_model_is_what_it_was(run):
    run.recipe["stages"] |= {
        "spoken": {"stage": "adopt", "model": "some/base"},
        "again": {"stage": "adopt", "model": "./high/model"},
    }
    assert lineage.kind(run, "./spoken/model") == "other"
    assert lineage.kind(run, "./again/model") == "sft"


def test_a_terminal_tells_each_unit_in_a_line(run):
    lines = list(costs.in_words(run.costs()))
    assert len(lines) == 1 + 1 + 3
    assert lines[0].startswith("curate") and "a kept trace: 0.969 CPU s" in lines[0]
    assert "a point of accuracy on heldout (25.0 over eval_start): 2.11 CPU s" in lines[1]


def test_a_terminal_writes_large_numbers_out(run):
    row = {"cpu_seconds": 48_210.4, "tokens": 12_345.6, "flops": 1.25e12, "money": 294_000.0}
    told = costs._figures(row)
    assert told == "48,210 CPU s, 12,346 tokens, 1.2e+12 FLOPs, 294,000 of money"
    assert costs._figures({"cpu_seconds": 0.009423, "seconds": 12.5}) == "0.00942 CPU s, 12.5 s"


def test_a_price_of_points_stands_beside_their_interval(run, monkeypatch):
    test = {"a": "eval_student", "b": "eval_start", "split": "heldout", "metric": "pass_at_1"}
    told = {"results": run.results(), "tests": [{**test, "low": -0.05, "high": 0.55}]}
    monkeypatch.setattr(run, "compared", lambda: told)
    lines = list(costs.in_words(run.costs()))
    assert lines[1].endswith("no clear gain on heldout (25.0 over eval_start, -5.0 to 55.0)")
    assert {row["cpu_seconds"] for row in run.costs()["per_point"]} == {None}
    told["tests"][0]["low"] = 0.05
    lines = list(costs.in_words(run.costs()))
    assert "a point of accuracy on heldout (25.0 over eval_start, 5.0 to 55.0): " in lines[1]


def test_without_a_test_overlapping_scores_are_no_clear_gain(run, monkeypatch):
    results = [{**row, "low": 0.0, "high": 1.0} for row in run.results()]
    monkeypatch.setattr(run, "compared", lambda: {"results": results, "tests": []})
    assert [row["is_clear"] for row in run.costs()["per_point"]] == [False, False]


def test_a_terminal_adds_the_stages_up(run):
    cost = run.text().partition("cost ")[2]
    total = next(line for line in cost.splitlines() if line.startswith("in all"))
    spent = sum(row["cpu_seconds"] for rows in LEDGERS.values() for row in rows)
    assert total.split()[2] == f"{spent:.1f}"


# -- a tiny run ---------------------------------------------------------------------------------

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny():
    def asked(model):
        problems = {"heldout": "./collect/heldout"}
        engine = {"name": "local", "model": model}
        settings = {"stage": "evaluate", "engine": engine, "problems": problems}
        return {**settings, "num_samples": 2, "max_tokens": 12}

    sums = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    source = {"name": "reasoning_gym", "tasks": {"chain_sum": sums}}
    curate = {"problems": "./collect/problems", "traces": "./sample/traces"}
    start = {"stage": "create", "architecture": "llama", "texts": "./curate/dataset", **SIZE}
    data = {"data": "./curate/dataset", "num_tokens": 1200, "batch_size": 8, "lr": 1e-3}
    return {
        "name": "tiny",
        "machine": {"threads": 1, "device": "cpu", "price_per_hour": PRICE},
        "stages": {
            "collect": {"num": 16, "num_heldout": 3, "heldout_share": 0.3, "source": source},
            "sample": {"problems": "./collect/problems", "engine": "worked", "num_samples": 2},
            "verify": {"problems": "./collect/problems", "traces": "./sample/traces"},
            "curate": {**curate, "verdicts": "./verify/verdicts", "keep": ["correct"]},
            "start": {**start, "vocab_size": 300, "max_position_embeddings": 128},
            "student": {"stage": "sft", "model": "./start/model", **data},
            "eval_start": asked("./start/model"),
            "eval_student": asked("./student/model"),
        },
    }


def test_a_kill_in_the_middle_is_counted_and_all_adds_up(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("reasoning_gym")
    path, folder = tmp_path / "tiny.json", tmp_path / "run"
    path.write_text(json.dumps(tiny()))
    command = [sys.executable, "-m", "limbeck", "run", str(path), "--run", str(folder), "--quiet"]
    environment = {**os.environ, "LIMBECK_KILL_AT": "eval_start.part-00000", "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (before,) = store.read_jsonl(folder / "eval_start" / "ledger.jsonl")
    assert before["tokens_out"] > 0  # was written, and then a kill took the part

    run = limbeck.run(path, run=folder)
    rows = {row["stage"]: row for row in run.ledger()}
    parts = store.read_jsonl(folder / "eval_start" / "ledger.jsonl")
    again = [row for row in parts if row["work"] == before["work"]]
    assert [row["tokens_out"] for row in again] == [before["tokens_out"]] * 2
    for name, total in rows.items():
        own = store.read_jsonl(folder / name / "ledger.jsonl")
        assert own[-1]["work"] == "around it"  # loading and reading, too, is paid for
        for key in ("wall_seconds", "cpu_seconds", "tokens_in", "tokens_out", "flops", "money"):
            assert total[key] == sum(row[key] for row in own), (name, key)
        assert total["money"] == pytest.approx(PRICE * total["wall_seconds"] / 3600)
        assert (total["device_seconds"], total["peak_device_memory_mib"]) == (0, 0)
    whole = store.read_sealed(folder / "student" / "stage.json")["wall_seconds"]
    assert 0 < rows["student"]["wall_seconds"] <= whole + 0.1  # nothing twice

    (trace,) = run.costs()["per_accepted_trace"]
    spent_on = ledger.summed(
        [row for name in DATA for row in store.read_jsonl(folder / name / "ledger.jsonl")]
    )
    assert trace["stages"] == DATA
    assert trace["cpu_seconds"] * trace["num_accepted"] == pytest.approx(spent_on["cpu_seconds"])
    told = run.summary()
    assert {"costs", "frontier", "gates", "ratios"} <= told.keys() and json.dumps(told)
    assert [row["kind"] for row in told["frontier"]] == ["base", "sft"]
    assert "a kept trace" in run.text()
