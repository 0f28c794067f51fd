"""A SIGKILL at any moment: nothing is lost, nothing is made twice, nothing is paid for twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck import journal, store
from limbeck.runs import Run
from tests.engines.faulty_server import FaultyServer, completion

ROOT = Path(__file__).parents[2]
NUM_PROBLEMS, NUM_SAMPLES, CONCURRENCY = 20, 3, 4
KILLS = [7, 8, 41]  # answers in the journal


def test_a_run_killed_ten_times_ends_as_one_that_was_not():
    pytest.importorskip("torch")
    pytest.importorskip("reasoning_gym")
    command = [sys.executable, "-m", "tests.faults.kill_quickstart", "--kills", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last == {"kills": 10, "lost": 0, "doubled": 0, "identical": True}


class Teacher(FaultyServer):
    """Says what it was asked, so that the journal tells which requests it holds."""

    def reply_to(self, body, key):
        super().reply_to(body, key)
        return completion(asked(body), delay_s=0.002)


def asked(body):
    return f"{body['messages'][-1]['content']} with seed {body['seed']}"


def recipe(tmp_path, **more):
    """A recipe file that collects problems, and does whatever else is asked."""
    problems = range(NUM_PROBLEMS)
    lines = [json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) for n in problems]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines) + "\n")
    source = {"name": "file", "path": str(tmp_path / "sums.jsonl")}
    stages = {"collect": {"source": source, "num": NUM_PROBLEMS}, **more}
    path = tmp_path / "sums.yaml"
    path.write_text(json.dumps({"name": "sums", "stages": stages}))
    return path


def run(path, folder, kill_at="", *settings):
    command = [sys.executable, "-m", "limbeck", "run", str(path), "--run", str(folder), *settings]
    environment = {**os.environ, "LIMBECK_KILL_AT": kill_at, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr


def test_an_answer_that_was_paid_for_is_never_asked_again(tmp_path):
    pytest.importorskip("openai")
    killed, num_rows = tmp_path / "killed", NUM_PROBLEMS * NUM_SAMPLES
    with Teacher() as server:
        address = {"base_url": server.url, "concurrency": CONCURRENCY}
        engine = {"name": "openai", "model": "m", **address}
        sample = {"problems": "./collect/problems", "engine": engine, "num_samples": NUM_SAMPLES}
        path = recipe(tmp_path, sample=sample)
        for num_kills, num_paid in enumerate(KILLS, 1):
            run(path, killed, f"sample.journal-{num_paid}")
            records = journal.parse((killed / "sample/traces.journal").read_bytes()).records
            assert len(records) == num_paid
            paid = {record["text"] for record in records}
            before = len(server.requests)
            assert num_paid <= before <= num_paid + num_kills * CONCURRENCY
        for point in ("sample.part-00000", "sample.part-00000.renamed"):
            run(path, killed, point)
        assert not paid & {asked(body) for body in server.requests[before:]}
        assert len(server.requests) <= num_rows + len(KILLS) * CONCURRENCY
        assert len({asked(body) for body in server.requests}) == num_rows
        run(path, killed)
        num_requests = len(server.requests)
        run(path, tmp_path / "whole")
        assert len(server.requests) == num_requests + num_rows
    rows, whole = (Run(f).table("sample/traces") for f in (killed, tmp_path / "whole"))
    assert rows.num_rows == num_rows
    assert rows.equals(whole)
    assert not list((killed / "sample").glob("*.journal*"))


def test_answers_do_not_pile_up_before_the_journal(tmp_path):
    pytest.importorskip("openai")
    from limbeck.engines import openai
    from limbeck.types import Message, Problem, Request, Sampling

    problem = Problem("p", (Message("user", "1 + 1?"),), "2", "number")
    requests = [Request(str(n), problem, n, n) for n in range(40)]
    with FaultyServer() as server:
        engine = openai.connect(model="m", base_url=server.url, concurrency=CONCURRENCY)
        for taken, _ in enumerate(engine.generate(requests, Sampling())):
            time.sleep(0.01)  # a slow disk
            assert len(server.requests) <= taken + 1 + CONCURRENCY


def test_a_stage_is_removed_whole_or_not_at_all(tmp_path):
    """`--redo`, killed in the middle, leaves no half of a stage behind."""
    path, folder = recipe(tmp_path), tmp_path / "run"
    run(path, folder)
    wanted = store.hash_tree(folder / "collect/problems")
    run(path, folder, "collect.removing", "--redo", "collect")
    assert not (folder / "collect").exists()
    run(path, folder)
    assert store.hash_tree(folder / "collect/problems") == wanted
    assert not list(folder.glob(".*.removed"))
