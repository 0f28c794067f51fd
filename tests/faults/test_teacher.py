"""Class C: a teacher that fails in every way, and a run that is killed while it asks it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck import journal, ledger, tables
from tests.engines.faulty_server import FaultyServer, Reply, completion
from tests.faults.teacher import CONCURRENCY, KEY, start

pytest.importorskip("openai")
ROOT = Path(__file__).parents[2]


def test_a_run_killed_twenty_times_at_a_teacher_that_fails_a_third_of_the_time():
    command = [sys.executable, "-m", "tests.faults.teacher", "--requests", "2000", "--kills", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["lost"], told["doubled"], told["repaid"], told["leaks"]) == (0, 0, 0, 0)
    assert told["excess"] <= 20 * CONCURRENCY + told["billed_faults"]
    assert told["faults"] > 0.25 * told["sent"]  # it did fail


# -- a budget -----------------------------------------------------------------------------------

NUM = 40  # answers, of 7 tokens in and 11 out each
PRICES = {"input": 1e6, "output": 2e6}  # an answer costs 29


def write_recipe(folder: Path, url: str, stage: str = "sample", **knobs: object) -> Path:
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(NUM)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "file", "path": str(folder / "sums.jsonl")}
    engine = {"name": "openai", "model": "teacher", "base_url": url, "concurrency": 4, **knobs}
    sample = {"problems": "./collect/problems", "engine": engine, "max_tokens": 16}
    path = folder / "sums.yaml"
    stages = {"collect": {"source": source, "num": NUM}, "sample": sample}
    path.write_text(json.dumps({"name": "sums", "stages": stages}))
    return path


def run(path: Path, *settings: str, kill_at: str = "") -> tuple[int | None, str]:
    """(exit code, all that was said) of a run."""
    said = path.parent / "said.txt"
    said.write_text("")
    arguments = ["limbeck", "run", str(path), "--run", str(path.parent / "run"), *settings]
    process = start(arguments, said, kill_at)
    process.join()
    return process.exitcode, said.read_text()


def test_a_budget_stops_the_stage_and_raised_it_goes_on(tmp_path):
    with FaultyServer() as server:
        path = write_recipe(tmp_path, server.url, prices=PRICES, max_cost=290.0)
        code, said = run(path)
        assert (code, "Traceback" in said) == (2, False)
        assert "the budget is reached: " in said
        assert "of max_cost 290" in said
        first = len(server.requests)
        assert 10 <= first <= 10 + 4  # what was in flight when it was reached
        paid = journal.parse((tmp_path / "run/sample/traces.journal").read_bytes()).records
        assert len(paid) == first  # all of it is kept
        assert (run(path)[0], len(server.requests)) == (2, first)  # as it is: nothing is asked
        raised = "sample.engine.max_cost=580.0"
        assert run(path, raised, kill_at=f"sample.journal-{first + 3}")[0] == -9
        assert len(server.requests) <= first + 3 + 4
        assert run(path, raised)[0] == 2
        assert len(server.requests) <= 20 + 4 + 4  # what earlier sittings cost counts
        code, said = run(path, "sample.engine.max_cost=100000.0")
        assert code == 0, said
        assert len(server.requests) <= NUM + 4  # asked twice: what was in flight at the kill
    assert tables.read_table(tmp_path / "run/sample/traces").num_rows == NUM


def test_what_was_billed_for_nothing_stays_counted(tmp_path):
    """Three in four answers are billed and cut off: no sitting may spend them again."""
    replies = [*[completion(finish=None)] * 3, completion()] * 100
    with FaultyServer(replies) as server:
        path = write_recipe(tmp_path, server.url, prices=PRICES, max_cost=290.0)
        assert run(path)[0] == 2
        first = len(server.requests)
        assert 10 <= first <= 10 + 4
        for _ in range(2):
            code, said = run(path)
            assert (code, len(server.requests)) == (2, first), said
        assert run(path, "sample.engine.max_cost=100000.0")[0] == 0
    assert tables.read_table(tmp_path / "run/sample/traces").num_rows == NUM
    tokens = ledger.total(tmp_path / "run/sample/ledger.jsonl")["tokens_in"]
    assert tokens == 7 * len(server.requests)


def test_a_budget_of_tokens_counts_both_sides(tmp_path):
    with FaultyServer() as server:
        code, said = run(write_recipe(tmp_path, server.url, max_total_tokens=180))
    assert code == 2
    assert "of max_total_tokens 180" in said
    assert 10 <= len(server.requests) <= 14


def test_a_budget_without_token_counts_is_no_budget(tmp_path):
    body = json.dumps({"choices": json.loads(completion().body)["choices"]})
    with FaultyServer(default=Reply(body)) as server:
        code, said = run(write_recipe(tmp_path, server.url, max_total_tokens=10**9))
    assert code == 2
    assert "tells no token counts" in said
    assert len(server.requests) <= 8


def test_a_budget_in_money_needs_prices_of_both_sides(tmp_path):
    code, said = run(write_recipe(tmp_path, "http://localhost:1/v1", max_cost=1.0))
    assert code == 2
    assert "max_cost needs prices" in said
    knobs = {"max_cost": 1.0, "prices": {"input": 1.0}}
    code, said = run(write_recipe(tmp_path, "http://localhost:1/v1", **knobs))
    assert code == 2
    assert "prices: needs both sides; write {input: 0.55" in said


# -- truncated answers --------------------------------------------------------------------------


class Talkative(FaultyServer):
    """Needs more than 16 tokens for every fourth question."""

    def reply_to(self, body, key):
        super().reply_to(body, key)
        question, limit = body["messages"][-1]["content"], body["max_tokens"]
        is_cut = int(question.split()[0]) % 4 == 0 and limit < 64
        said = f"<think>{question} {limit}"
        return completion(said if is_cut else f"{said}</think>1", finish=_finish(is_cut))


def _finish(is_cut: bool) -> str:
    return "length" if is_cut else "stop"


def test_a_truncated_answer_is_recorded_as_such(tmp_path):
    with Talkative() as server:
        assert run(write_recipe(tmp_path, server.url))[0] == 0
    traces = tables.read_traces(tmp_path / "run/sample/traces")
    assert sum(trace.finish == "length" for trace in traces) == NUM // 4


@pytest.mark.parametrize("kill_at", ["", "sample.journal-9", "sample.part-00000"])
def test_a_truncated_answer_is_asked_for_again_with_a_longer_limit(tmp_path, kill_at):
    with Talkative() as server:
        path = write_recipe(tmp_path, server.url, longer_max_tokens=64)
        if kill_at:
            assert run(path, kill_at=kill_at)[0] == -9
            records = journal.parse((tmp_path / "run/sample/traces.journal").read_bytes()).records
            paid = {record["text"].removesuffix("</think>1") for record in records}
        before = len(server.requests) if kill_at else 0
        assert run(path)[0] == 0
        asked = [
            f"<think>{b['messages'][-1]['content']} {b['max_tokens']}" for b in server.requests
        ]
        if kill_at:
            assert not paid & set(asked[before:])  # also not the truncated ones
        assert len(asked) <= NUM + NUM // 4 + (4 if kill_at else 0)
    traces = tables.read_traces(tmp_path / "run/sample/traces")
    assert {trace.finish for trace in traces} == {"stop"}
    assert len({trace.id for trace in traces}) == NUM
    assert {trace.completion_tokens for trace in traces} == {11}  # its own, no others
    if kill_at != "sample.part-00000":  # which makes the same account twice
        rows = ledger.total(tmp_path / "run/sample/ledger.jsonl")
        assert rows["tokens_out"] == 11 * (NUM + NUM // 4)  # what it took


def test_a_longer_limit_must_be_longer(tmp_path):
    code, said = run(write_recipe(tmp_path, "http://localhost:1/v1", longer_max_tokens=16))
    assert code == 2
    assert "longer_max_tokens 16 is not above max_tokens 16" in said


# -- what people are told -----------------------------------------------------------------------


def test_a_teacher_that_hides_its_reasoning_is_reported(tmp_path):
    with FaultyServer(default=completion("2")) as server:
        code, said = run(write_recipe(tmp_path, server.url, reasons=True))
    assert code == 2
    assert "20 of 20 answers came without reasoning" in said
    assert len(server.requests) <= 20 + 4
    log = (tmp_path / "run/sample/log.txt").read_text()
    assert "an answer came without reasoning" in log
    records = journal.parse((tmp_path / "run/sample/traces.journal").read_bytes()).records
    assert {(record["finish"], record["text"]) for record in records} == {("error", "")}


def test_a_request_that_failed_is_told_in_the_log_without_the_key(tmp_path):
    refusals = [Reply('{"error": {"message": "too long, {key}"}}', 400)]
    with FaultyServer(refusals) as server:
        code, said = run(write_recipe(tmp_path, server.url))
    assert code == 0, said
    log = (tmp_path / "run/sample/log.txt").read_text()
    assert "no answer in 1 attempt: BadRequestError" in log
    assert "too long, [key]" in log
    assert KEY not in log + said
