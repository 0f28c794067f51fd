"""A chat completion server on loopback that answers, or fails, as its script says."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer of the server. `{key}` in its body stands for the key that the client has sent."""

    body: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hangs_up: bool = False
    """Closes the connection, without a word where there is no body, else in the middle."""


def completion(
    content: Any = "<think>1+1=2</think>2",
    *,
    finish: str | None = "stop",
    delay_s: float = 0.0,
    **fields: Any,
) -> Reply:
    """A chat completion of 7 and 11 tokens; `fields` join the message."""
    message = {"role": "assistant", "content": content, **fields}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 11},
    }
    return Reply(json.dumps(body), delay_s=delay_s)


def failure(status: int, message: str = "no", code: str = "", **headers: str) -> Reply:
    """An error as OpenAI words it; `retry_after="1"` is the header Retry-After."""
    body = json.dumps({"error": {"message": message, "code": code, "type": code}})
    return Reply(body, status, {k.replace("_", "-"): v for k, v in headers.items()})


class FaultyServer:
    """Gives the script's replies in the order of requests, and then `default` for ever.

    `requests` are the JSON bodies it was sent, `keys` the keys; `most_at_once` is how many requests
    it ever had at the same time.
    """

    def __init__(self, script: Iterable[Reply] = (), default: Reply | None = None) -> None:
        self.script, self.default = iter(script), default or completion()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.http = _Http(("127.0.0.1", 0), _Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self) -> FaultyServer:
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def reply_to(self, body: dict[str, Any], key: str) -> Reply:
        """The next reply, after its delay."""
        with self.lock:
            self.requests.append(body)
            self.keys.append(key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            reply = next(self.script, self.default)
        time.sleep(reply.delay_s)
        with self.lock:
            self.at_once -= 1
        return reply


class _Http(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False  # a handler may be asleep
    owner: FaultyServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the middle of a request is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError | EOFError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    server: _Http

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        if len(asked := self.rfile.read(length)) < length:
            raise EOFError("the client was killed")
        sent = json.loads(asked)
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        reply = self.server.owner.reply_to(sent, key)
        self.close_connection = reply.hangs_up
        if reply.hangs_up and not reply.body:
            return
        body = reply.body.replace("{key}", key).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        try:
            self.send_response(reply.status)
            for name, value in {**headers, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the client no longer waits
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
