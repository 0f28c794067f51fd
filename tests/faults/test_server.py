"""The server among those who mean it no good, or go away: class H of the catalogue of faults."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import httpx
import pytest

from tests.serve import small
from tests.serve.echo import ROOT, Running, serving

KEY = "correct-horse-battery-staple"
PATIENCE_S = 2.0
NUM_MALFORMED = 2000
NUM_SLOW = 300
CHAT = "/v1/chat/completions"
GOOD = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("serve") / "model"
    small.save_model(place)
    return place


@pytest.fixture
def server(folder):
    with serving("-m", "tests.serve.echo", str(folder), "0.002", str(PATIENCE_S)) as running:
        yield running


def request(body: bytes = b"", path: str = CHAT, method: str = "POST", **headers: str) -> bytes:
    """A request as bytes; a header given as '' is left out."""
    wanted = {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in wanted.items() if v)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def send(server: Running, raw: bytes, ends: bool) -> int:
    """The status of the answer; 0 where the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        try:
            client.sendall(raw)
            if ends:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it may have heard enough
        try:
            answer = client.recv(65536)
        except ConnectionError:
            return 0
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def good(**fields) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def says(content: str) -> bytes:
    return b'{"model":"echo","messages":[{"role":"user","content":%s}]}' % content.encode()


# What is sent, and the statuses that may come of it; 0 is a closed connection.
MALFORMED: list[tuple[bytes, set[int]]] = [
    (request(b""), {400}),
    (request(b"{"), {400}),
    (request(b"null"), {400}),
    (request(b"[" * 100_000), {400}),
    (request(b'{"a":' * 100_000), {400}),
    (request(b'{"model":"echo","n":' + b"9" * 5000 + b"}"), {400}),
    (request(good(temperature=float("nan"))), {400}),
    (request(good(temperature=float("inf"))), {400}),
    (request(good()[:-1] + b',"max_tokens":1e400}'), {400}),
    (request(good()[:-1] + b',"temperature":1e400}'), {400}),
    (request(says('"\\ud800"')), {400}),
    (request(says('"\\u0000"')), {400}),
    (request(b'{"model":"echo","messages":[{"role":"user","content":"\xff"}]}'), {400}),
    (request(good(messages=[{}] * 50_000)), {400}),
    (request(good(messages=[GOOD["messages"][0]] * 3000)), {400}),
    (request(says(json.dumps("word " * 100_000))), {400}),
    (request(good(n=10**9)), {400}),
    (request(good(n=128)), {400}),
    (request(good(max_tokens=10**9)), {400}),
    (request(good(max_tokens=-1)), {400}),
    (request(good(best_of=5)), {400}),
    (request(good(stop=["x"] * 100_000)), {400}),
    (request(good(logit_bias={str(i): 1 for i in range(10_000)})), {400}),
    (request(good(chat_template="{% for i in range(10**9) %}x{% endfor %}")), {400}),
    (request(good(model="x" * 100_000)), {404}),
    (request(good(), content_type="text/plain"), {415}),
    (request(good(), content_type=""), {415}),
    (request(good(), path=f"{CHAT}?api_key=x"), {400}),
    (request(good(), path="/v1/nothing"), {404}),
    (request(good(), path="http://evil.example/v1/chat/completions"), {404}),
    (request(good(), path="/v1/../etc/passwd"), {404}),
    (request(good(), method="BREW"), {405}),
    (request(good(), method="GET"), {405}),
    (request(good(), host="evil.example"), {403}),
    (request(good(), host=""), {400}),
    (request(good(), host="localhost\r\nhost: evil.example"), {400}),
    (request(good(), origin="http://evil.example"), {403}),
    (request(good(), origin="null"), {403}),
    (request(good(), content_length="-1"), {400}),
    (request(good(), content_length="1e9"), {400}),
    (request(good(), content_length="5\r\ncontent-length: 6"), {400}),
    (request(good(), transfer_encoding="chunked"), {400}),
    (request(b"zz\r\n", transfer_encoding="chunked", content_length=""), {0, 400}),
    (request(good(), content_length="10000"), {0, 400}),
    (request(b"x" * (5 << 20)), {413}),
    (request(b"", content_length=str(200 << 20)), {0, 400, 413}),
    (request(good(), padding="x" * 200_000), {400}),
    (b"\x16\x03\x01\x02\x00\x01\x00", {0, 400}),
    (b"GET / HTTP/9.9\r\n\r\n", {400, 403}),
    (b"GET /v1/models HTTP/1.0\r\n\r\n", {403}),
    (b"\r\n" * 1000, {0, 400}),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {0, 400, 403}),
]


def test_malformed_requests_get_their_due_and_leave_nothing_behind(server):
    for raw, allowed in MALFORMED:
        status = send(server, raw, ends=0 in allowed)
        assert status in allowed, f"{status} for {raw[:300]!r}"
    draw = random.Random(0)
    cases = draw.choices(MALFORMED, k=NUM_MALFORMED - len(MALFORMED))
    before = server.memory_kib(), server.num_files()
    with ThreadPoolExecutor(16) as clients:
        statuses = list(clients.map(lambda case: send(server, case[0], 0 in case[1]), cases))
    for (raw, allowed), status in zip(cases, statuses, strict=True):
        assert status in allowed | {429}, f"{status} for {raw[:300]!r}"
    assert server.memory_kib() - before[0] < 50 << 10
    deadline = time.monotonic() + 60
    while server.num_files() > before[1] + 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.num_files() <= before[1] + 2
    assert httpx.post(server.url + CHAT, json=GOOD).status_code == 200
    assert server.measured("texts_in_work") == 0


def slow_headers(client: socket.socket) -> None:
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n")


def slow_body(client: socket.socket) -> None:
    client.sendall(request(b"{", content_length="1000"))


def idle_after_a_request(client: socket.socket) -> None:
    client.sendall(request(path="/health", method="GET"))


def test_slow_sockets_are_closed_and_others_served_meanwhile(server):
    before, kinds = server.num_files(), (slow_headers, slow_body, idle_after_a_request)
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(NUM_SLOW)]
    for number, client in enumerate(sockets):
        kinds[number % 3](client)
    for number in range(NUM_SLOW // 10):  # dribbling does not help
        sockets[3 * number].sendall(b"x: y\r\n")
        assert httpx.post(server.url + CHAT, json=GOOD).status_code == 200
    statuses: Counter[bytes] = Counter()
    for number, client in enumerate(sockets):
        client.settimeout(5 * PATIENCE_S)
        said = b""
        try:
            while piece := client.recv(4096):
                said += piece
        except ConnectionError:
            pass
        statuses[said[9:12]] += 1
        if number % 3 == 1:
            assert said.startswith(b"HTTP/1.1 408 "), said
    assert statuses == {b"": NUM_SLOW // 3, b"408": NUM_SLOW // 3, b"200": NUM_SLOW // 3}
    assert server.num_files() <= before + 2


def test_a_key_is_demanded_for_all_but_health(folder):
    with serving("-m", "tests.serve.echo", str(folder), env={"ECHO_KEY": KEY}) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/", f"/x?api_key={KEY}"):
            assert httpx.get(server.url + path).status_code == 401
        for shown in (
            "",
            "Bearer",
            f"bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            f"Basic {KEY}",
            KEY,
            "Bearer é",
        ):
            reply = httpx.post(
                server.url + CHAT, json=GOOD, headers={"authorization": shown.encode("latin-1")}
            )
            assert reply.status_code == 401
            assert KEY not in reply.text
        right = {"authorization": f"Bearer {KEY}"}
        assert httpx.post(server.url + CHAT, json=GOOD, headers=right).status_code == 200
        assert httpx.get(f"{server.url}/v1/models?key={KEY}", headers=right).status_code == 400


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--host", "0.0.0.0"], {}, "holds no key, and 0.0.0.0 can be reached by others"),
        (["--host", "0.0.0.0"], {"LIMBECK_SERVE_KEY": "short"}, "a key that can be guessed"),
        (["--host", "0.0.0.0"], {"LIMBECK_SERVE_KEY": "né " * 9}, "characters that no key has"),
        (["--host", "no.such.host.invalid"], {"LIMBECK_SERVE_KEY": KEY}, "cannot be listened at"),
        (["--port", "99999"], {}, "less than or equal to 65535"),
    ],
)
def test_mistakes_at_the_start_are_one_line(arguments, env, says, tmp_path):
    command = [sys.executable, "-m", "limbeck", "serve", "nowhere", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"PATH": "", **env}
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert KEY not in done.stderr


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "limbeck", "serve", "nowhere", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "cannot be listened at (Address already in use)" in done.stderr


def stream(server: Running, text: str, lines: list[str]) -> None:
    """Adds the events of a streamed answer as they come."""
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], "stream": True}
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=30) as reply:
        lines += [line for line in reply.iter_lines() if line]


@pytest.mark.parametrize(("num_words", "ends_well"), [(20, True), (400, False)])
def test_sigterm_lets_answers_finish_or_says_that_they_did_not(folder, num_words, ends_well):
    text = " ".join(["x"] * num_words)  # a step takes 20 ms, draining at most PATIENCE_S
    with serving("-m", "tests.serve.echo", str(folder), "0.02", str(PATIENCE_S)) as server:
        told: list[list[str]] = [[] for _ in range(12)]  # some of them wait for a row
        threads = [Thread(target=stream, args=(server, text, lines)) for lines in told]
        for thread in threads:
            thread.start()
        while server.measured("texts_in_work") < 12:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(20)
        assert server.process.wait(60) == 0
    for lines in told:
        if ends_well:
            assert lines[-1] == "data: [DONE]"
        else:
            assert "the server is shutting down" in lines[-1]


def test_overload_is_turned_away_and_passes(folder):
    """Fifty times what 8 rows and 16 places hold, at once."""

    def ask(url: str) -> httpx.Response:
        # A client each: one that many threads share may close a connection that another reads.
        with httpx.Client(verify=False, timeout=60) as client:
            return client.post(url + CHAT, json={**GOOD, "n": 3})

    with (
        serving("-m", "tests.serve.echo", str(folder), "0.002") as server,
        ThreadPoolExecutor(400) as threads,
    ):
        replies = list(threads.map(ask, [server.url] * 400))
        statuses = Counter(reply.status_code for reply in replies)
        assert set(statuses) == {200, 429}, statuses
        assert all("retry-after" in r.headers for r in replies if r.status_code == 429)
        assert httpx.post(server.url + CHAT, json=GOOD).status_code == 200
        assert server.measured("texts_in_work") == 0
