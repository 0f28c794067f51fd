"""The server against its engine alone: 64 clients that stream, the same requests as 64 rows.

    python bench/serve.py [--quick]

An 11M model is made on the spot. Throughput is tokens a second over HTTP, the clients in a process
of their own, over tokens a second of the engine's pool with as many rows and the same requests; the
two take turns and the median of their ratios counts. No request may be lost: each must come back
with a reason for its end and the count of its tokens. At last, short requests with and without 300
slow sockets and a stream of malformed requests beside them: the p99 of their times may double.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

NOISY = 1.1
NUM_CLIENTS = 64
NUM_SLOW = 300
MALFORMED_EVERY_S = 0.01
TARGET = 0.8
SLOWER = 2.0
SIZES = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Load:
    """What is asked: prompts as token ids, at most `num_tokens` written for each."""

    prompts: list[list[int]]
    num_tokens: int


@dataclass(frozen=True)
class Measured:
    """One round: tokens written in so many seconds, requests lost, times to the first token."""

    num_tokens: int
    seconds: float
    lost: int
    first_s: list[float]
    processor_s: float = float("nan")
    """What all threads of the process that writes have computed."""

    @property
    def is_noisy(self) -> bool:
        """Whether others had the processor."""
        return self.seconds > NOISY * self.processor_s

    @property
    def rate(self) -> float:
        return self.num_tokens / self.seconds


def make_model(folder: Path) -> None:
    """Random weights, and a tokenizer of 4096 tokens."""
    import random

    from limbeck import models, newborn

    words = ["".join(random.Random(i).choices("abcdefghijklmnop", k=5)) for i in range(4000)]
    texts = (" ".join(random.Random(i).choices(words, k=40)) for i in range(4000))
    tokenizer = newborn.train_tokenizer(texts, 4096)
    model = newborn.create_model(
        "qwen2",
        4096,
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    models.save_model(model, tokenizer, folder)


def make_load(num: int, num_tokens: int) -> Load:
    """Prompts of 16 to 128 tokens, no two alike."""
    import random

    draw = random.Random(0)
    prompts = [draw.choices(range(300, 4000), k=draw.randint(16, 128)) for _ in range(num)]
    return Load(prompts, num_tokens)


def engine_alone(engine, load: Load) -> Measured:
    """What the pool does with the load, with as many rows as there are clients."""
    from limbeck.engines.pool import Draft
    from limbeck.types import Sampling

    pool = engine.pool(NUM_CLIENTS)
    sampling = Sampling(max_tokens=load.num_tokens)
    begun = time.perf_counter()
    for seed, prompt in enumerate(load.prompts):
        pool.add(Draft(tuple(prompt), seed, sampling))
    written = 0
    while pool.num_waiting or pool.num_writing:
        written += len(pool.step())
    return Measured(written, time.perf_counter() - begun, 0, [])


async def over_http(url: str, model: str, load: Load) -> Measured:
    """Every client asks for one text after another, until all are done."""
    import openai

    waiting = iter(enumerate(load.prompts))
    total, lost, first_s = 0, 0, []

    async def work(client: openai.AsyncOpenAI) -> None:
        nonlocal total, lost
        for seed, prompt in waiting:
            begun, first, finish, written = time.perf_counter(), None, None, 0
            try:
                stream = await client.completions.create(
                    model=model,
                    prompt=prompt,
                    max_tokens=load.num_tokens,
                    seed=seed,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                async for chunk in stream:
                    first = first or time.perf_counter() - begun
                    finish = chunk.choices[0].finish_reason if chunk.choices else finish
                    written = chunk.usage.completion_tokens if chunk.usage else 0
            except openai.OpenAIError as error:
                print(f"lost: {error}", file=sys.stderr)
            is_whole = written == load.num_tokens or (finish == "stop" and written)
            lost += not is_whole
            total += written
            first_s.append(first or float("inf"))

    begun = time.perf_counter()
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        await asyncio.gather(*(work(client) for _ in range(NUM_CLIENTS)))
    return Measured(total, time.perf_counter() - begun, lost, first_s)


def client_main(url: str, model: str) -> None:
    """A round for every line on stdin, which tells its load; the result on stdout."""
    for line in sys.stdin:
        measured = asyncio.run(over_http(url, model, Load(**json.loads(line))))
        print(json.dumps(measured.__dict__), flush=True)


def attack_main(port: int) -> None:
    """Half-sent headers on 300 sockets, opened anew when they are closed, and broken requests."""
    import random
    import socket

    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    bodies = [b"{", b"[" * 10_000, b'{"model":1e400}', b'{"n":' + b"9" * 5000 + b"}", b"\xff"]
    slow: list[socket.socket] = []
    while True:
        slow += [socket.create_connection(("127.0.0.1", port)) for _ in range(NUM_SLOW - len(slow))]
        for victim in random.sample(slow, 3):
            try:
                victim.sendall(head if random.random() < 0.5 else b"x")
            except OSError:
                slow.remove(victim)
        with socket.create_connection(("127.0.0.1", port)) as broken:
            body = random.choice(bodies)
            broken.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert b" 4" in broken.recv(64), "a malformed request was not refused"
        time.sleep(MALFORMED_EVERY_S)


def p99_s(url: str, model: str, num: int) -> float:
    """Of the seconds that short requests take, one after another."""
    import httpx

    seconds = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for seed in range(num):
            asked = {"model": model, "prompt": [300 + seed % 99], "max_tokens": 8, "seed": seed}
            begun = time.perf_counter()
            client.post("/completions", json=asked).raise_for_status()
            seconds.append(time.perf_counter() - begun)
    return sorted(seconds)[int(0.99 * (num - 1))]


def attacked(port: int, model: str, num: int, num_rounds: int) -> float:
    """How many times longer short requests take when others attack; the median of rounds."""
    url, ratios = f"http://127.0.0.1:{port}/v1", []
    for _ in range(num_rounds):
        calm = p99_s(url, model, num)
        attacker = subprocess.Popen([sys.executable, __file__, "--attack", str(port)])
        time.sleep(1.0)
        try:
            ratios.append(p99_s(url, model, num) / calm)
            assert attacker.poll() is None, "the attacker gave up"
        finally:
            attacker.kill()
            attacker.wait()
        print(f"p99 of short requests {calm * 1e3:.0f} ms, attacked {ratios[-1]:.2f} x")
    return statistics.median(ratios)


class Clients:
    """The clients in their own process."""

    def __init__(self, url: str, model: str):
        command = [sys.executable, __file__, "--client", url, model]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def round(self, load: Load) -> Measured:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(load.__dict__) + "\n")
        self.process.stdin.flush()
        return Measured(**json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def timed(pid: int, run: Callable[[], Measured]) -> Measured:
    """A round with the processor time that the process has taken for it."""
    before = processor_s(pid)
    measured = run()
    return replace(measured, processor_s=processor_s(pid) - before)


def processor_s(pid: int) -> float:
    """Seconds that all threads of a process have computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The server, once it answers."""
    import httpx

    command = [sys.executable, "-m", "limbeck", "serve", str(folder), "--port", str(port)]
    server = subprocess.Popen([*command, "--rows", str(NUM_CLIENTS)])
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
            return server
        except httpx.HTTPError:
            assert server.poll() is None, "the server did not start"
            time.sleep(0.1)
    raise TimeoutError("the server did not start")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(
    folder: Path, load: Load, num_rounds: int
) -> tuple[list[tuple[Measured, Measured]], float]:
    """Rounds of the engine alone and over HTTP, which take turns after one to warm up; `attacked`.

    A round in which others had the processor is run again, at most three times.
    """
    from limbeck.engines import local

    engine = local.connect(model=str(folder), batch_rows=NUM_CLIENTS)
    port = free_port()
    server = start_server(folder, port)
    clients = Clients(f"http://127.0.0.1:{port}/v1", engine.name)
    rounds = []
    try:
        for number in range(num_rounds + 1):
            for _ in range(4):
                alone = timed(os.getpid(), lambda: engine_alone(engine, load))
                served = timed(server.pid, lambda: clients.round(load))
                told = f"round {number}" if number else "warm up"
                rates = f"engine {alone.rate:8,.0f} tokens/s   server {served.rate:8,.0f} tokens/s"
                is_noisy = alone.is_noisy or served.is_noisy
                noise = "   noisy" if is_noisy else ""
                print(f"{told:<10}{rates}   {served.rate / alone.rate:.2f} x{noise}", flush=True)
                if not is_noisy:
                    break
            rounds.append((alone, served))
        slower = attacked(port, engine.name, 30 * num_rounds, num_rounds)
    finally:
        clients.end()
        server.terminate()
        assert server.wait(60) == 0, "the server did not end in good order"
    return rounds[1:], slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="for CI: less, and 70 %% of the target"
    )
    parser.add_argument("--client", nargs=2, metavar=("URL", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        attack_main(options.attack)
    if options.client:
        client_main(*options.client)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the engine, alone and served; HTTP has the other core
    load = make_load(2 * NUM_CLIENTS, 64) if options.quick else make_load(2 * NUM_CLIENTS, 128)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        make_model(folder)
        rounds, slower = measure(folder, load, 3 if options.quick else 5)
    ratios = [served.rate / alone.rate for alone, served in rounds]
    processor = [
        (served.num_tokens / served.processor_s) / (alone.num_tokens / alone.processor_s)
        for alone, served in rounds
    ]
    first_s = sorted(second for _, served in rounds for second in served.first_s)
    p50, p99 = (first_s[int(share * (len(first_s) - 1))] for share in (0.5, 0.99))
    target = TARGET * (0.7 if options.quick else 1.0)
    throughput, lost = statistics.median(ratios), sum(served.lost for _, served in rounds)
    cases = [
        ("throughput", throughput, "x engine", target, throughput >= target),
        ("lost", lost, "requests", 0, lost == 0),
        (
            "processor",
            statistics.median(processor),
            "x engine, tokens a processor second",
            None,
            True,
        ),
        ("attacked_p99", slower, "x calm", SLOWER, slower <= SLOWER),
        ("first_token_p50", p50, "s", None, True),
        ("first_token_p99", p99, "s", None, True),
    ]
    for name, value, unit, wanted, met in cases:
        told = "" if wanted is None else f"   target {wanted:g}, {'met' if met else 'MISSED'}"
        print(f"{name:<16} {value:8.3f} {unit}{told}")
    names = ("case", "value", "unit", "target", "met")
    result = {
        "bench": "serve",
        "cases": [dict(zip(names, (c[0], round(c[1], 4), *c[2:]), strict=True)) for c in cases],
        "load": {"clients": NUM_CLIENTS, "requests": len(first_s), "tokens_each": load.num_tokens},
        "versions": {
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            **{name: version(name) for name in ("torch", "fastapi", "uvicorn", "openai")},
        },
    }
    print(json.dumps(result))
    sys.exit(not all(case[-1] for case in cases))


if __name__ == "__main__":
    main()
