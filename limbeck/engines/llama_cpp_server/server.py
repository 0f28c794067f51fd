"""A llama.cpp server in a child process, and what it is asked over a socket that is ours alone."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from limbeck.engines.vllm_server.keeper import KeptProcess
from limbeck.errors import UserError

SCRIPT = Path(__file__).with_name("child.py")
LOAD_S = 900.0  # until it can work; a file is read once, at the worst over a network
SILENT_S = 300.0  # between two answers; a batch of 2,048 tokens of a large model takes a minute
WELL_S, POLL_S = 5.0, 0.02  # to say that it works; between two times that it is asked that
NUM_ASKERS = 4  # at once beside the texts: who reads prompts, who looks whether it lives
MOST_BYTES = 256 << 20  # of an answer: a million tokens with their log-probabilities


TROUBLE = re.compile(r"error|assert|failed|terminate", re.IGNORECASE)
TIME = re.compile(r"^[\d.]+ \w ")  # llama.cpp begins a line by it


class Refused(Exception):
    """llama.cpp's words for what it does not do."""


class Connection(http.client.HTTPConnection):
    """HTTP over a socket in the file system, for one question."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self.path, self.line = path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def connect(self) -> None:
        self.line.settimeout(self.timeout)
        self.line.connect(self.path)
        self.sock = self.line

    def hang_up(self) -> None:
        """Ends the question, whoever waits for its answer in whichever thread."""
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        super().close()
        self.line.close()


class Server:
    """llama.cpp with a file loaded, writing `num_rows` texts of `context` tokens at once.

    A file that it dies of, or never ends to load, is a UserError; so is its end later on. It lives
    as long as this object, or until `close`. Any thread may ask.
    """

    def __init__(self, model: Path, *, num_rows: int, context: int, threads: int) -> None:
        self.where = str(model)
        self.folder = tempfile.mkdtemp(prefix="limbeck-")  # for this user alone
        self.socket = os.path.join(self.folder, "llama.sock")
        settings = {
            "model": str(model.resolve()),
            "socket": self.socket,
            "num_rows": num_rows,
            "num_askers": NUM_ASKERS,
            "context": context,
            "threads": threads,
        }
        command = [sys.executable, "-S", "-P", "-B", str(SCRIPT), json.dumps(settings)]
        path = os.pathsep.join(os.path.abspath(place) for place in sys.path)
        # Nothing else of our environment: keys stay here.
        self.kept = KeptProcess(command, {"PYTHONPATH": path, "PYTHONUTF8": "1"})
        self.close = weakref.finalize(self, _end, self.kept, self.folder)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + LOAD_S
        while not self._is_well():
            if not self.kept.is_alive():
                raise self.ended()
            if time.monotonic() > deadline:
                what = f"llama.cpp has not loaded it after {LOAD_S:g} s"
                raise UserError(self.where, what, "export it again")
            time.sleep(POLL_S)

    def _is_well(self) -> bool:
        try:
            with self.connected(WELL_S) as connection:
                return respond(connection, "/health", None).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer, which comes at once or not at all. UserError where it objects."""
        try:
            with self.connected(SILENT_S) as connection:
                return read(respond(connection, path, body))
        except Refused as error:
            way_out = "export it again, or ask for more: context"
            raise UserError(self.where, f"llama.cpp objects: {error}", way_out) from error
        except TimeoutError:
            what = f"llama.cpp says nothing for {SILENT_S:g} s"
            raise UserError(self.where, what, "export it again, or ask for less at once") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.ended() from error

    @contextmanager
    def connected(self, timeout_s: float | None = None) -> Iterator[Connection]:
        """A line for one question."""
        connection = Connection(self.socket, timeout_s)
        try:
            yield connection
        finally:
            connection.close()

    def probe(self) -> None:
        """UserError unless it lives and gets on: between two steps of its work, it answers this."""
        self.ask("/slots")

    def ended(self) -> UserError:
        """What to say of a server that is gone."""
        time.sleep(POLL_S)  # for its last words
        what = f"llama.cpp has ended; it said: {trouble(self.kept.log)}"
        way_out = "export the file again, or ask for less at once: context, batch_rows"
        return UserError(self.where, what, way_out)

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """Its tokens; control tokens are read as such, and a text may be opened by one."""
        about = {"content": text, "add_special": add_special, "parse_special": True}
        tokens: list[int] = self.ask("/tokenize", about)["tokens"]
        return tokens

    def detokenize(self, ids: Sequence[int]) -> str:
        """What tokens say, special ones included."""
        return str(self.ask("/detokenize", {"tokens": list(ids)})["content"])

    def ends(self) -> frozenset[int]:
        """The tokens that end a text: llama.cpp tells which it would keep from being written."""
        body = {"prompt": [0], "n_predict": 1, "ignore_eos": True, "cache_prompt": False}
        biases = self.ask("/completion", body)["generation_settings"]["logit_bias"]
        return frozenset(bias["token"] for bias in biases)

    def peak_memory_mib(self) -> float | None:
        """The most that it has held, the file's pages in memory included; None where untold."""
        if not hasattr(socket, "SO_PEERCRED"):
            return None
        with self.connected() as connection:
            connection.connect()
            who = connection.line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        number, _, _ = struct.unpack("3i", who)  # of the process, the user, the group
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines)
        return int(told["VmHWM"].split()[0]) / 1024


def trouble(log: Path) -> str:
    """What went wrong, in its own words: what comes behind them is told of everything."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if TROUBLE.search(line)), lines[-1] if lines else "nothing")
    return TIME.sub("", told)[:300]


def respond(
    connection: Connection, path: str, body: Mapping[str, Any] | None
) -> http.client.HTTPResponse:
    """An answer, as it begins. OSError or HTTPException where there is none."""
    headers = {"Connection": "close", "Content-Type": "application/json"}
    content = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, content, headers)
    return connection.getresponse()


def read(answer: http.client.HTTPResponse) -> Any:
    """A whole answer. Refused where it is an objection, ValueError where it is no JSON."""
    content = answer.read(MOST_BYTES)
    told = json.loads(content)
    if answer.status != 200:
        message = told.get("error", {}).get("message") if isinstance(told, dict) else None
        raise Refused(" ".join(str(message).split())[:300])
    return told


def _end(kept: KeptProcess, folder: str) -> None:
    kept.forget()
    shutil.rmtree(folder, ignore_errors=True)
