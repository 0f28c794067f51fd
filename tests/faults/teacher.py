"""A teacher that fails by script, and a run that is killed while it asks it.

    python -m tests.faults.teacher --requests 10000 --kills 20 [--seed 0]

A loopback server answers three requests in ten with one of the faults of class C, which ones says
a hash of the seed, the request and how often it came. `limbeck run` samples from it, in a process
of its own that is killed with SIGKILL at random moments and started again. Then it must hold:

    lost      rows that are missing, or that are not the answer to their request: 0
    doubled   rows that are there twice: 0
    repaid    answers that had been received, in a journal or a part, and were asked for again: 0
    excess    answers that the server bills beyond one a row (two, where one was truncated): at
              most kills x requests in flight + faults that it bills
    leaks     files under the run in which the key is to be read: 0
    above     of what is asked and was not yet received, the most at any kill: at most what may be
              in flight

The last line is JSON; the exit code is 1 if anything is off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from limbeck import journal, tables
from tests.engines.faulty_server import FaultyServer, Reply, completion, failure

CONCURRENCY = 32
ROWS_PER_PART = 512
FAULTY = 0.3
MOST_IN_A_ROW = 4  # so that no request ever fails for good: it may be asked six times
TRUNCATED = 0.05
SHORT, LONG = 64, 256  # limits of tokens
LATE_S = 0.5  # later than the time limit of a request
KEY = "sk-canary-0123456789abcdef"
PRELOAD = ["limbeck.api", "limbeck.stages.collect", "limbeck.engines.openai", "openai"]
HTML = {"Content-Type": "text/html"}


def faults() -> list[Reply]:
    """One of each kind; those with status 200 and `choices` are billed."""
    body = completion().body
    past, soon = (formatdate(time.time() + s, usegmt=True) for s in (-60, 0.5))
    return [
        failure(429, retry_after="0.02"),
        failure(429, retry_after="-3"),
        failure(429, retry_after="soon"),
        failure(429, retry_after="3600"),  # the longest wait is scaled down
        failure(429, retry_after=past),
        failure(429, retry_after=soon),
        failure(500, "bad key {key}"),
        failure(502),
        Reply("<html>busy</html>", 503, HTML),
        failure(504),
        failure(408),
        failure(409),
        Reply("<html>log in</html>", headers=HTML),
        Reply("[1]"),
        Reply("[" * 50_000),
        Reply(body[: len(body) // 2]),
        Reply(body, headers={"Content-Length": str(len(body) + 9)}, hangs_up=True),
        Reply(body, headers={"Content-Encoding": "gzip"}),
        Reply(hangs_up=True),
        completion(delay_s=LATE_S),
        completion(None),
        completion([{"type": "text"}]),
        completion("cut", finish="insufficient_system_resource"),
        Reply('{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 11}}'),
    ]


def share(*parts: Any) -> float:
    """A number from 0 to 1 that only its parts decide."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16) / 16**12


def asked(body: dict[str, Any]) -> str:
    return f"{body['messages'][-1]['content']} with seed {body['seed']} to {body['max_tokens']}"


class Teacher(FaultyServer):
    """Says what it was asked, or fails; counts what it bills and what it is asked for."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.faults = seed, faults()
        self.times: Counter[str] = Counter()
        self.faults_of: Counter[str] = Counter()
        self.num_requests = self.num_faults = self.num_billed_faults = self.num_answers = 0
        self.since: set[str] = set()
        """What was asked since somebody looked."""

    def reply_to(self, body: dict[str, Any], key: str) -> Reply:
        question = asked(body)
        with self.lock:
            self.num_requests += 1
            self.since.add(question)
            reply = self._choose(question)
        time.sleep(0.002 + reply.delay_s)
        return reply

    def _choose(self, question: str) -> Reply:
        self.times[question] += 1
        draw = share(self.seed, question, self.times[question])
        if draw < FAULTY and self.faults_of[question] < MOST_IN_A_ROW:
            self.faults_of[question] += 1
            fault = self.faults[int(draw / FAULTY * len(self.faults))]
            self.num_faults += 1
            self.num_billed_faults += fault.status == 200 and '"choices"' in fault.body
            return fault
        self.num_answers += 1
        is_cut = question.endswith(f" {SHORT}") and share(question) < TRUNCATED
        return completion(f"<think>so</think>{question}", finish="length" if is_cut else "stop")


# -- the run ------------------------------------------------------------------------------------


def write_recipe(folder: Path, url: str, num_requests: int) -> Path:
    """A recipe that asks for so many texts, four of a problem."""
    problems = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(num_requests // 4)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    source = {"name": "file", "path": str(folder / "sums.jsonl")}
    engine = {"name": "openai", "model": "teacher", "base_url": url, "concurrency": CONCURRENCY}
    engine |= {"timeout_s": LATE_S * 0.8, "longer_max_tokens": LONG}
    sample = {"problems": "./collect/problems", "engine": engine, "num_samples": 4}
    stages = {"collect": {"source": source, "num": len(problems)}, "sample": sample}
    stages["sample"]["max_tokens"] = SHORT
    path = folder / "sums.yaml"
    machine = {"threads": 1, "device": "cpu"}
    path.write_text(json.dumps({"name": "sums", "machine": machine, "stages": stages}))
    return path


def start(
    arguments: list[str], said: Path, kill_at: str = ""
) -> multiprocessing.process.BaseProcess:
    """`limbeck` in a process of its own, forked from one that has imported what it needs."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOAD)
    process = processes.Process(target=_child, args=(arguments, str(said), kill_at))
    process.start()
    return process


def _child(arguments: list[str], said: str, kill_at: str) -> None:
    """A run whose waits are a hundredth, and whose parts are small."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # seconds, for nothing
    from limbeck import cli
    from limbeck.engines import sampling
    from limbeck.engines.http import faults

    faults.FIRST_WAIT_S, faults.LONGEST_WAIT_S = 0.005, 0.05
    sampling.write_missing.__defaults__ = (ROWS_PER_PART,)
    os.environ |= {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "LIMBECK_KILL_AT": kill_at}
    sys.stdout = sys.stderr = open(said, "a")  # noqa: SIM115
    sys.argv = arguments
    cli.main()


class Runs:
    """Starts the same run again and again."""

    def __init__(self, folder: Path, url: str, num_requests: int) -> None:
        self.folder, self.said = folder / "run", folder / "said.txt"
        path = write_recipe(folder, url, num_requests)
        self.arguments = ["limbeck", "run", str(path), "--run", str(self.folder), "--quiet"]

    def received(self) -> Iterator[str]:
        """What was asked by every answer that is in the journal or in a part."""
        table = self.folder / "sample" / "traces"
        for part in tables.parts(table):
            yield from map(_question, pq.read_table(part)["text"].to_pylist())
        paid = table.with_name("traces.journal")
        for record in journal.parse(paid.read_bytes()).records if paid.exists() else ():
            if record.get("text"):
                yield _question(record["text"])


def _question(text: str) -> str:
    return text.rpartition("</think>")[2]


def torment(num_requests: int, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """What became of a run that was killed so often."""
    rng = random.Random(seed)
    moments = sorted(rng.uniform(0.02, 0.95) * num_requests for _ in range(kills))
    received: set[str] = set()
    repaid = above = 0
    with Teacher(seed) as server:
        runs = Runs(folder, server.url, num_requests)
        for moment in [*moments, None]:
            process = start(runs.arguments, runs.said)
            while process.is_alive() and (moment is None or server.num_answers < moment):
                time.sleep(0.002)
            if moment is not None:
                time.sleep(rng.uniform(0, 0.02))
                process.kill()
            process.join()
            ended = process.exitcode
            if ended != (0 if moment is None else -9):
                raise SystemExit(f"ended with {ended}:\n{runs.said.read_text()}")
            repaid += len(received & server.since)
            received |= set(runs.received())
            open_ = server.since - received - set(_before(server.since))
            above = max(above, len(open_) if moment is not None else 0)
            server.since = set()
    rows = tables.read_table(runs.folder / "sample" / "traces").to_pylist()
    told = {
        "requests": num_requests,
        "kills": kills,
        "sent": server.num_requests,
        "faults": server.num_faults,
        "billed_faults": server.num_billed_faults,
        **_compare(rows, num_requests),
        "repaid": repaid,
        "above": above,
    }
    needed = num_requests + sum(share(q) < TRUNCATED for q in _firsts(rows))
    told["excess"] = server.num_answers + server.num_billed_faults - needed
    told["excess_allowed"] = kills * CONCURRENCY + server.num_billed_faults
    return told | {"is_good": _is_good(told)}


def _before(questions: Iterable[str]) -> Iterator[str]:
    """What must have been answered before these were asked: truncated, and in no part."""
    for question in questions:
        if question.endswith(f" {LONG}"):
            yield f"{question.rpartition(' ')[0]} {SHORT}"


def _firsts(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What each row was asked first."""
    for row in rows:
        yield f"{_question(row['text']).rpartition(' ')[0]} {SHORT}"


def _compare(rows: list[dict[str, Any]], num_requests: int) -> dict[str, int]:
    questions = {_question(row["text"]).rpartition(" to ")[0] for row in rows}
    ids = {row["id"] for row in rows}
    whole = sum(row["finish"] == "stop" for row in rows)
    return {
        "lost": num_requests - min(len(ids), len(questions), whole),
        "doubled": len(rows) - len(ids),
    }


def _is_good(told: dict[str, Any]) -> bool:
    nothing = not (told["lost"] or told["doubled"] or told["repaid"])
    bounded = told["excess"] <= told["excess_allowed"] and told["above"] <= CONCURRENCY
    return nothing and bounded


def leaks(folder: Path) -> list[str]:
    """Files under a folder in which the key is to be read."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = [str(path) for path in files if KEY.encode() in path.read_bytes()]
    for path in files:
        if path.suffix == ".parquet" and KEY in str(pq.read_table(path).to_pylist()):
            found.append(str(path))  # its pages are packed
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="[10000]")
    parser.add_argument("--kills", type=int, default=20, help="[20]")
    parser.add_argument("--seed", type=int, default=0, help="of faults and moments [0]")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="limbeck-teacher-") as folder:
        told = torment(chosen.requests, chosen.kills, chosen.seed, Path(folder))
        told["leaks"] = len(leaks(Path(folder)))
    told["seconds"] = round(time.monotonic() - begun, 1)
    print(json.dumps(told))
    sys.exit(0 if told["is_good"] and not told["leaks"] else 1)


if __name__ == "__main__":
    main()
