"""verify: threads, parts, judging anew, and a model as the judge."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest

import limbeck
from limbeck import store, tables
from limbeck.errors import UserError, UserErrors
from limbeck.folder import Machine, StageFolder
from limbeck.problems import make_problem
from limbeck.stages import verify
from limbeck.types import Trace, Verdict
from tests.engines.faulty_server import FaultyServer, completion, failure

JUDGE = "tests.stages.scripted_judge:connect"
NUM = 40


def slow(problem, trace):
    """Right and wrong by turns; every tenth is late."""
    if trace.index % 10 == 0:
        time.sleep(0.02)
        return Verdict(trace.id, None, threading.current_thread().name, "timeout")
    right = trace.index % 2 == 1
    return Verdict(trace.id, right, trace.text, "correct" if right else "wrong")


@pytest.fixture
def inputs(tmp_path):
    """(problems, traces) on disk: two parts of traces, half of them right."""
    problems = [make_problem(f"What is {n}?", f"n{n}", verifier="exact") for n in range(NUM)]
    traces = [
        Trace(f"t{n}", p.id, n, f"<think>hm</think>n{n + n % 2}", "stop", "m")
        for n, p in enumerate(problems)
    ]
    tables.write_part(tmp_path / "problems", tables.to_table("problems", problems))
    for half in (traces[: NUM // 2], traces[NUM // 2 :]):
        tables.write_part(tmp_path / "traces", tables.to_table("traces", half))
    return tmp_path


def config(inputs, **settings):
    places = {"problems": str(inputs / "problems"), "traces": str(inputs / "traces")}
    return verify.Config(**places, **settings)


def folder(path, name, threads=1):
    (path / name).mkdir(exist_ok=True)
    return StageFolder(path / name, "verify", "key", Machine(device="cpu", threads=threads))


def verdicts(out):
    return tables.read_verdicts(out.path / "verdicts")


def test_threads_change_neither_order_nor_verdicts(inputs, monkeypatch):
    monkeypatch.setattr(verify, "ROWS_PER_PART", 16)
    outs = [folder(inputs, f"out{n}", n) for n in (1, 3)]
    summaries = [verify.run(config(inputs), out) for out in outs]
    one, three = (verdicts(out) for out in outs)
    assert one == three
    assert [v.trace_id for v in one] == [f"t{n}" for n in range(NUM)]
    assert summaries[0] == summaries[1]
    assert summaries[0]["reasons"] == {"correct": 20, "wrong": 20}
    assert summaries[0]["verifiers"] == {"exact": NUM}
    assert summaries[0]["judged_by_model"] == 0
    assert len(tables.parts(outs[0].path / "verdicts")) == 3


def test_a_storm_of_late_answers_is_spread_over_threads_and_counts_as_failed(inputs):
    own = {"verifier": "tests.stages.test_verify:slow"}
    out = folder(inputs, "out", 4)
    summary = verify.run(config(inputs, **own), out)
    late = [v for v in verdicts(out) if v.reason == "timeout"]
    assert summary["accounts"] == {
        "inputs": NUM, "ok": 36, "rejected": 0, "failed": 4, "poison": 0
    }  # fmt: skip
    assert len({v.extracted for v in late}) > 1  # threads
    again = verify.run(config(inputs, **own), out)  # nobody is asked again
    assert again == summary
    assert [v for v in verdicts(out) if v.reason == "timeout"] == late


def test_what_is_done_is_kept_and_only_a_part_is_in_memory(inputs, monkeypatch):
    monkeypatch.setattr(verify, "ROWS_PER_PART", 8)
    out = folder(inputs, "out")
    verify.run(config(inputs), out)
    first, *others = tables.parts(out.path / "verdicts")
    for part in others:
        part.unlink()
    seen = []
    whole = verify.judge_all

    def counting(pairs, *rest):
        seen.append(len(pairs))
        return whole(pairs, *rest)

    monkeypatch.setattr(verify, "judge_all", counting)
    monkeypatch.setattr(tables, "read_traces", None)
    stamp = first.stat().st_mtime_ns
    verify.run(config(inputs), out)
    assert seen == [8, 8, 8, 8]
    assert first.stat().st_mtime_ns == stamp
    assert [v.trace_id for v in verdicts(out)] == [f"t{n}" for n in range(NUM)]


def test_a_trace_without_a_problem_is_poison(inputs):
    stray = Trace("stray", "nobody", 0, "1", "stop", "m")
    tables.write_part(inputs / "traces", tables.to_table("traces", [stray]))
    out = folder(inputs, "out")
    summary = verify.run(config(inputs), out)
    assert summary["accounts"]["poison"] == 1
    assert verdicts(out)[-1].reason == "error"


def test_a_better_verifier_judges_old_samples_anew_without_a_new_token(tmp_path):
    pytest.importorskip("reasoning_gym")
    tasks = {"chain_sum": {}, "leg_counting": {}}
    recipe = {
        "name": "small",
        "stages": {
            "collect": {"num": 6, "source": {"name": "reasoning_gym", "tasks": tasks}},
            "sample": {"problems": "./collect/problems", "engine": "worked"},
            "verify": {"problems": "./collect/problems", "traces": "./sample/traces"},
        },
    }
    run = limbeck.run(recipe, run=tmp_path / "run")
    sampled = {p: p.stat().st_mtime_ns for p in (run.path / "sample").rglob("*")}
    spent = [row for row in run.ledger() if row["stage"] == "sample"]
    again = {"stage": "verify", **recipe["stages"]["verify"], "verifier": "number"}
    recipe["stages"] = {**recipe["stages"], "again": again}
    run = limbeck.run(recipe, run=tmp_path / "run")
    assert sampled == {p: p.stat().st_mtime_ns for p in (run.path / "sample").rglob("*")}
    assert spent == [row for row in run.ledger() if row["stage"] == "sample"]
    (row,) = (row for row in run.ledger() if row["stage"] == "again")
    assert row["tokens_in"] + row["tokens_out"] == 0
    summaries = {row["stage"]: row["summary"] for row in run.done("verify")}
    assert summaries["verify"]["verifiers"] == {"exact": 6}
    assert summaries["again"]["verifiers"] == {"number": 6}
    recipe["stages"]["again"] = {**again, "verifier": "exact"}
    with pytest.raises(UserErrors, match=r"again: is of another recipe: verifier"):
        limbeck.run(recipe, run=tmp_path / "run")


# -- a model as the judge ------------------------------------------------------------------------


def test_a_model_judges_what_the_recipe_gives_it(inputs):
    out = folder(inputs, "out", 2)
    verifier = {"name": "judge", "num_votes": 3}
    summary = verify.run(config(inputs, verifier=verifier, judge=JUDGE), out)
    assert summary["reasons"] == {"correct": 20, "wrong": 20}
    assert (summary["verifiers"], summary["judged_by_model"]) == ({"judge": NUM}, NUM)
    said = tables.read_traces(out.path / "judgements")
    assert len(said) == 3 * NUM
    assert {v.extracted for v in verdicts(out)} == {
        "judge: 3 of 3 say correct", "judge: 0 of 3 say correct"
    }  # fmt: skip
    work = {row["work"]: row for row in store.read_jsonl(out.path / "ledger.jsonl")}
    assert work["verdicts part"]["judged_by_model"] == NUM
    assert work["judgements part"]["answers"] == 3 * NUM


def test_judge_and_rules_side_by_side(inputs):
    problems = tables.read_problems(inputs / "problems")
    mixed = [replace(p, verifier="judge") if n % 4 == 0 else p for n, p in enumerate(problems)]
    for part in tables.parts(inputs / "problems"):
        part.unlink()
    tables.write_part(inputs / "problems", tables.to_table("problems", mixed))
    with pytest.raises(UserError, match="no model is named to be one; set `judge`"):
        verify.run(config(inputs), folder(inputs, "none"))
    out = folder(inputs, "out")
    summary = verify.run(config(inputs, judge=JUDGE), out)
    assert summary["verifiers"] == {"exact": 30, "judge": 10}
    assert summary["reasons"] == {"correct": 20, "wrong": 20}


def test_a_recipe_that_names_a_judge_but_no_model_is_refused_before_anything_runs(inputs):
    recipe = {
        "stages": {
            "verify": {
                "problems": str(inputs / "problems"),
                "traces": str(inputs / "traces"),
                "verifier": "judge",
            }
        }
    }
    with pytest.raises(UserErrors, match="verifier judge has no model to ask; set judge"):
        limbeck.plan(recipe, run=inputs / "run")


def say(verdict):
    return completion(json.dumps({"analysis": "so", "verdict": verdict}))


def test_a_judge_that_costs_money_is_never_asked_twice(inputs, monkeypatch):
    monkeypatch.setattr(verify, "ROWS_PER_PART", 16)
    script = [say("correct")] * 21 + [failure(401)]
    with FaultyServer(script, default=say("incorrect")) as server:
        judge = {"name": "openai", "model": "j", "base_url": server.url, "concurrency": 1}
        settings = config(inputs, verifier="judge", judge=judge)
        with pytest.raises(UserError):
            verify.run(settings, folder(inputs, "out"))
        assert len(server.requests) == 22
        out = folder(inputs, "out")
        summary = verify.run(settings, out)
        assert len(server.requests) == NUM + 1  # the refused one again, and the rest
        assert summary["reasons"] == {"correct": 21, "wrong": 19}
        assert verify.run(settings, out) == summary
        assert len(server.requests) == NUM + 1
    assert not (out.path / "judgements.journal").exists()
    work = store.read_jsonl(out.path / "ledger.jsonl")
    parts = [row for row in work if row["work"] == "judgements part"]
    assert sum(row["tokens_out"] for row in parts) == 11 * NUM  # once, the interrupted part's too


def test_a_budget_counts_every_reply_once(inputs, monkeypatch):
    monkeypatch.setattr(verify, "ROWS_PER_PART", 8)
    with FaultyServer(default=say("correct")) as server:
        judge = {"name": "openai", "model": "j", "base_url": server.url, "concurrency": 1}
        tokens = 18 * NUM  # 7 in and 11 out each
        settings = config(inputs, verifier="judge", judge={**judge, "max_total_tokens": tokens + 1})
        summary = verify.run(settings, folder(inputs, "out"))
        assert summary["reasons"] == {"correct": NUM}
        assert len(server.requests) == NUM


def test_equal_answers_are_asked_about_once(inputs):
    problem = make_problem("What?", "yes", verifier="judge")
    same = [Trace(f"s{n}", problem.id, n, "yes", "stop", "m") for n in range(5)]
    tables.write_part(inputs / "p", tables.to_table("problems", [problem]))
    tables.write_part(inputs / "t", tables.to_table("traces", same))
    settings = verify.Config(problems=str(inputs / "p"), traces=str(inputs / "t"), judge=JUDGE)
    out = folder(inputs, "out")
    assert verify.run(settings, out)["reasons"] == {"correct": 5}
    assert tables.read_table(out.path / "judgements").num_rows == 1


def test_evaluate_asks_the_judge_about_both_rounds(tmp_path):
    problems = [make_problem(f"What is {n}?", f"n{n}", verifier="judge") for n in range(4)]
    tables.write_part(tmp_path / "problems", tables.to_table("problems", problems))
    stage = {
        "problems": {"all": str(tmp_path / "problems")},
        "engine": {"name": JUDGE, "says": "It is n1"},
        "num_samples": 2,
    }
    with pytest.raises(UserError, match="no model is named to be one"):
        limbeck.run({"stages": {"evaluate": stage}}, run=tmp_path / "none")
    assert not (tmp_path / "none" / "evaluate" / "pass_at_1").exists()  # before anything is written
    run = limbeck.run({"stages": {"evaluate": {**stage, "judge": JUDGE}}}, run=tmp_path / "run")
    (row,) = run.done("evaluate")
    assert row["summary"]["judged_by_model"] == 12
    values = {result["metric"]: result["value"] for result in row["summary"]["results"]}
    assert values == {"pass_at_1": 0.25, "greedy": 0.25}
    assert tables.read_table(run.path / "evaluate" / "judgements").num_rows == 4
