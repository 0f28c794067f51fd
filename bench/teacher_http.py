"""Sampling from a slow teacher: 10,000 requests at a loopback server that takes 3 s for each.

The server is a process of its own. The client is the whole path of a stage: the engine, its
journal and its parts, 512 requests at once.

    overhead            wall time over the ideal, requests / concurrency rounds of 3 s, less one
    in_flight           requests at the server, the mean over the whole run, its ends included
    memory_growth_mib   how much the client's peak grows once the first part is written

    python bench/teacher_http.py [--quick] [--to bench/results/teacher_http.json]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import math
import multiprocessing
import os
import platform
import tempfile
import time
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LATENCY_S = 3.0
FULL = (10_000, 512, 4096)  # requests, at once, rows of a part
QUICK = (2048, 256, 1024)
TEXT = "<think>" + "2 and 2 is 4, and again. " * 80 + "</think>4"  # 2 KB
TARGETS = {"overhead": 0.10, "in_flight": 256, "memory_growth_mib": 16}
UNITS = {"overhead": "of the ideal", "in_flight": "requests", "memory_growth_mib": "MiB"}
PACKAGES = ("limbeck", "openai", "httpx2", "anyio")


# -- the server ---------------------------------------------------------------------------------


def serve(pipe: Connection) -> None:
    """Answers every request after the latency; at the end, tells how many it had at once."""
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    body = json.dumps(
        {
            "choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 500},
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    answer = head.encode() + b"\r\n" + body
    at_once, most, busy_s, changed = 0, 0, 0.0, time.monotonic()

    def count(change: int) -> None:
        nonlocal at_once, most, busy_s, changed
        now = time.monotonic()
        busy_s += at_once * (now - changed)
        at_once, changed = at_once + change, now
        most = max(most, at_once)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                length = asked.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                count(1)
                await asyncio.sleep(LATENCY_S)
                count(-1)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)  # the client is done
    pipe.send({"busy_s": busy_s, "most": most})


# -- the client ---------------------------------------------------------------------------------


def measure(num_requests: int, concurrency: int, rows_per_part: int) -> dict[str, float]:
    """What sampling so many texts takes."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    server.start()
    with tempfile.TemporaryDirectory(prefix="limbeck-bench-") as folder:
        told = sample(ours.recv(), num_requests, concurrency, rows_per_part, Path(folder))
    ours.send("done")
    seen = ours.recv()
    server.join()
    ideal = math.ceil(num_requests / concurrency) * LATENCY_S
    return {
        **told,
        "ideal_s": ideal,
        "overhead": told["wall_s"] / ideal - 1,
        "in_flight": seen["busy_s"] / told["wall_s"],
        "most_in_flight": seen["most"],
    }


def sample(
    port: int, num_requests: int, concurrency: int, rows_per_part: int, folder: Path
) -> dict[str, float]:
    """Writes a table of so many traces; the time it took, the CPU time, the peaks of memory."""
    importlib.import_module("openai")  # a second, which every start of a run takes
    from limbeck import ledger, progress, tables
    from limbeck.engines import openai
    from limbeck.engines.sampling import write_missing
    from limbeck.folder import StageFolder
    from limbeck.types import Message, Problem, Request, Sampling

    problem = Problem("p", (Message("user", "How much is 2 and 2? " * 10),), "4", "number")
    requests = [Request(str(n), problem, n, n) for n in range(num_requests)]
    url = f"http://127.0.0.1:{port}/v1"
    engine = openai.connect(model="teacher", base_url=url, concurrency=concurrency)
    peaks: list[float] = []
    really_write = tables.write_part

    def write_part(table: Path, rows: Any) -> Path:
        path = really_write(table, rows)
        peaks.append(ledger.peak_memory_mib())
        return path

    tables.write_part = write_part
    out, progress.quiet = StageFolder(folder, "sample"), True
    wall, cpu = time.monotonic(), time.process_time()
    write_missing(engine, requests, Sampling(), folder / "traces", out, rows_per_part)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    finishes = tables.read_table(folder / "traces", ["finish"])["finish"].to_pylist()
    assert finishes == ["stop"] * num_requests, "an answer is missing"
    return {"wall_s": wall, "cpu_s": cpu, "memory_growth_mib": peaks[-1] - peaks[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2,048 requests, 256 at once, for CI")
    parser.add_argument("--to", type=Path, help="also writes the last line to this file")
    chosen = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    num_requests, concurrency, rows = QUICK if chosen.quick else FULL
    found = measure(num_requests, concurrency, rows)
    print(f"{num_requests:,} requests of {LATENCY_S:g} s, {concurrency} at once")
    for name, value in found.items():
        print(f"  {name:<18} {value:9.3f}")
    loosened = 1 / 0.7 if chosen.quick else 1.0
    cases = []
    for case, target in TARGETS.items():
        value = round(found[case], 4)
        met = value >= target / loosened if case == "in_flight" else value <= target * loosened
        row = {"case": case, "value": value, "unit": UNITS[case], "target": target, "met": met}
        cases.append(row)
    versions = {name: metadata.version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    line = json.dumps({"bench": "teacher_http", "cases": cases, "versions": versions})
    if chosen.to:
        chosen.to.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
