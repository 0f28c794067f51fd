"""What profile measures: of each model the same, in turns, and never more than was asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import limbeck
from limbeck import ledger, recipe, store, tables
from limbeck.config import Plugin
from limbeck.errors import UserError, UserErrors
from limbeck.folder import StageFolder
from limbeck.problems import make_problem
from limbeck.reporting import frontier
from limbeck.runs import Run
from limbeck.stages import profile
from limbeck.types import Generator, Request, Sampling, Trace

PROBLEMS = [make_problem(f"What is {n} + 1?", str(n + 1), verifier="number") for n in range(12)]
asked: list[tuple[str, int, int]] = []


class Scripted:
    """Answers with so many tokens, and remembers what it was asked: who, how many, how long."""

    costs_money = False

    def __init__(self, name: str, tokens: int, fails: bool) -> None:
        self.name, self.tokens, self.fails = name, tokens, fails
        self.num_parameters = 1000

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        assert sampling.temperature == 0
        asked.append((self.name, len(requests), sampling.max_tokens))
        for request in requests:
            tokens = min(self.tokens, sampling.max_tokens)
            finish: Any = "length" if tokens < self.tokens else "stop"
            finish = "error" if self.fails else finish
            time.sleep(1e-4 * tokens)
            about = (request.id, request.problem.id, request.index, "<think>1</think>2", finish)
            yield Trace(*about, self.name, 7, tokens)


def connect(*, model: str, tokens: int = 10, fails: bool = False) -> Generator:
    return Scripted(model, tokens, fails)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(ledger, "gemm_gflops", lambda *_: 20.0)  # of interest to people
    asked.clear()
    tables.write_part(tmp_path / "problems", tables.to_table("problems", PROBLEMS))
    own = f"{__name__}:connect"
    return {
        "engines": {
            "short": {"name": own, "model": "short", "tokens": 5},
            "long": {"name": own, "model": "long", "tokens": 40},
        },
        "problems": str(tmp_path / "problems"),
        "num_latency": 3,
        "num_load": 8,
        "max_tokens": 20,
        "num_rounds": 2,
    }


def run(stage: dict[str, Any], folder: Path, **machine: Any) -> Run:
    found = limbeck.run({"machine": machine, "stages": {"profile": stage}}, run=folder)
    assert isinstance(found, Run)
    return found


def speeds(run: Run) -> dict[str, Any]:
    found = store.read_json(run.path / "profile" / "speeds" / "speeds.json")
    return {"machine": found["machine"], **{row["name"]: row for row in found["artifacts"]}}


def test_all_are_asked_the_same_in_turns(stage, tmp_path):
    run(stage, tmp_path / "run")
    turn = [(1, 20), *[(1, 1)] * 3, *[(1, 20)] * 3, (8, 20)]
    rounds = 2 + 1  # one before that does not count
    assert asked == [(who, *what) for who in ("short", "long") for what in turn] * rounds


def test_speeds_follow_from_what_was_written(stage, tmp_path):
    found = speeds(run(stage, tmp_path / "run", price_per_hour=2.0, threads=1))
    short, long = found["short"], found["long"]
    assert (short["tokens_per_answer"], short["truncated"]) == (5, 0)
    assert (long["tokens_per_answer"], long["truncated"]) == (20, 1)
    assert short["num_parameters"] == 1000 and short["num_bytes"] is None
    assert short["memory_mib"] is None  # nobody knows where it lies
    for row in (short, long):
        for key in ("first_token_s", "token_s", "answer_s", "tokens_per_second_load"):
            assert 0 <= row[key]["low"] <= row[key]["median"] <= row[key]["high"]
    assert found["machine"]["price_per_hour"] == 2.0


def test_the_ledger_counts_every_token(stage, tmp_path):
    done = run(stage, tmp_path / "run")
    answers = 3 * (1 + 3 + 3 + 8)
    read = 2 * answers * 7
    written = 3 * (1 + 3 + 8) * (5 + 20) + 3 * 3 * 2
    (row,) = done.ledger()
    assert (row["tokens_in"], row["tokens_out"]) == (read, written)
    assert row["flops"] == ledger.forward_flops(1000, read + written)


def test_paces_are_what_they_say():
    def timed(seconds: float, *tokens: int, finish: Any = "stop") -> Any:
        return seconds, [Trace("t", "p", 0, "", finish, "m", 7, num) for num in tokens]

    firsts, whole = [timed(0.1, 1), timed(0.3, 1)], [timed(1.1, 11), timed(3.3, 31)]
    found = profile.paces(firsts, whole, timed(2.0, 11, 31, 38))
    assert found == pytest.approx(
        {
            "first_token_s": 0.2,
            "token_s": (4.4 - 0.4) / 40,
            "answer_s": 2.2,
            "tokens_per_second_1": 42 / 4.4,
            "tokens_per_second_load": 40.0,
            "tokens_per_answer": 21.0,
            "truncated": 0.0,
        }
    )
    at_once = profile.paces([timed(0.1, 1)], [timed(0.1, 1, finish="length")], timed(0.1, 1))
    assert at_once["token_s"] is None and at_once["truncated"] == 1.0
    assert profile.paces([timed(0.1, 0)], [timed(0.2, 0)], timed(0.1, 0))["token_s"] is None


def test_rounds_become_a_median_within_its_interval():
    rounds = [{"answer_s": s, "truncated": 0.0, "token_s": t} for s, t in ((3, 1), (1, None))]
    assert profile.together([*rounds, {**rounds[0], "answer_s": 2}]) == {
        "answer_s": {"median": 2, "low": 1, "high": 3},
        "truncated": 0.0,
        "token_s": None,
    }


def test_ratios_are_taken_round_by_round(stage, tmp_path):
    def rounds(*speeds: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"tokens_per_second_1": s, "tokens_per_second_load": t} for s, t in speeds]

    ours, theirs = rounds((20, 90), (40, 900), (30, 90)), rounds((10, 30), (10, 300), (10, 10))
    first, second = profile.compared("int8", "bfloat16", ours, theirs)
    assert first == {
        "a": "int8", "b": "bfloat16", "at": "batch 1", "ratio": 3, "low": 2, "high": 4
    }  # fmt: skip
    assert (second["at"], second["ratio"], second["low"], second["high"]) == ("load", 3, 3, 9)

    done = run({**stage, "ratios": [["long", "short"]]}, tmp_path / "run")
    found = store.read_json(done.path / "profile" / "speeds" / "speeds.json")["ratios"]
    assert [(row["a"], row["b"], row["at"]) for row in found] == [
        ("long", "short", "batch 1"), ("long", "short", "load")
    ]  # fmt: skip
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in found)
    log = (done.path / "profile" / "log.txt").read_text()
    assert frontier.ratios(done) == [{"stage": "profile", **row} for row in found]
    assert done.summary()["ratios"] == frontier.ratios(done)
    assert "How much faster" in done.write_report().read_text()
    assert "long writes" in log and "times as fast as short at batch 1" in log


@pytest.mark.parametrize("pair", [["long"], ["long", "long"], ["long", "other"]])
def test_a_ratio_is_of_two_of_the_engines(stage, pair):
    with pytest.raises(ValidationError, match="is no pair of short, long; name two of them"):
        profile.Config.model_validate({**stage, "ratios": [pair]})


def test_a_model_that_cannot_answer_is_named(stage, tmp_path):
    stage["engines"]["long"]["fails"] = True
    with pytest.raises(UserError, match=r"profile\.engines\.long: has no answer to problem"):
        run(stage, tmp_path / "run")


def test_nobody_can_be_asked_nothing(stage, tmp_path):
    tables.write_part(tmp_path / "none", tables.to_table("problems", []))
    config = profile.Config.model_validate({**stage, "problems": str(tmp_path / "none")})
    with pytest.raises(UserError, match="holds no problems"):
        profile.run(config, StageFolder(tmp_path / "run", "profile"))


def test_a_small_load_is_told(stage, tmp_path):
    run({**stage, "num_load": 64}, tmp_path / "run")
    assert "12 problems: at load" in (tmp_path / "run" / "profile" / "log.txt").read_text()


def test_it_is_skipped_when_done_and_another_when_asked_otherwise(stage, tmp_path):
    run(stage, tmp_path / "run")
    before = len(asked)
    run(stage, tmp_path / "run")
    run(stage, tmp_path / "run", price_per_hour=1.0)  # how to run is no part of what it is
    assert len(asked) == before
    with pytest.raises(UserErrors, match="num_load"):
        run({**stage, "num_load": 4}, tmp_path / "run")


def test_the_source_of_each_engine_is_part_of_what_it_is(stage):
    from limbeck.plugins import plugins

    checked = recipe.load({"stages": {"profile": stage}})
    (only,) = checked.stages
    assert [plugin.name for plugin in plugins(only.config)] == [f"{__name__}:connect"] * 2


SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def local(stage, tmp_path):
    """A recipe that makes a small model and profiles it."""
    rows = [{"messages": [{"role": "user", "content": p.question}]} for p in PROBLEMS]
    rows = [
        {"messages": [*row["messages"], {"role": "assistant", "content": p.answer}]}
        for row, p in zip(rows, PROBLEMS, strict=True)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    create = {"architecture": "llama", "texts": str(tmp_path / "texts.jsonl"), **SIZE}
    create |= {"vocab_size": 300, "max_position_embeddings": 128}
    engines = {"newborn": {"name": "local", "model": "./create/model"}}
    stages = {"create": create, "profile": {**stage, "engines": engines, "num_rounds": 1}}
    return {"name": "local", "machine": {"threads": 1, "device": "cpu"}, "stages": stages}


def test_a_model_of_this_machine_has_bytes_and_memory_and_a_kill_changes_nothing(local, tmp_path):
    pytest.importorskip("torch")
    path, folder = tmp_path / "local.json", tmp_path / "run"
    path.write_text(json.dumps(local))
    command = [sys.executable, "-m", "limbeck", "run", str(path), "--run", str(folder), "--quiet"]
    environment = {**os.environ, "LIMBECK_KILL_AT": "speeds.speeds.json.aside"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "profile" / "stage.json").exists()
    done = limbeck.run(path, run=folder)
    row = speeds(done)["newborn"]
    weights = folder / "create" / "model" / "model.safetensors"
    assert row["num_bytes"] == weights.stat().st_size
    assert row["num_parameters"] == done.done("create")[0]["summary"]["num_parameters"]
    assert 0 < row["memory_mib"]["median"] < 200  # of its own, without torch
    assert row["device_memory_mib"]["median"] == 0
    (said,) = done.done("profile")
    assert said["summary"] == {"models": {"newborn": row["num_parameters"]}}


def test_bytes_are_those_of_the_weights(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"1" * 30)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"1" * 12)
    (tmp_path / "tokenizer.json").write_bytes(b"1" * 1000)
    (tmp_path / "the-same.gguf").write_bytes(b"1" * 7)
    engine = Plugin("local", connect, {"model": str(tmp_path)})
    assert profile.about("a", engine)["num_bytes"] == 42
    missing = Plugin("local", connect, {"model": "nobody/has-this-model"})
    assert profile.about("b", missing)["num_bytes"] is None
