"""Chat templates and tokenizers in a child process: ask, wait, kill."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import UserError

RENDER_S = 1.0  # of processor time for RENDER_AT_ONCE prompts; an honest one takes a millisecond
RENDER_AT_ONCE = 64
LOAD_S = 4.0  # to read a tokenizer.json; one of 42 MB with 262,000 tokens took 2.5 s
PROBE_S = 1.0  # to tokenise the probes below; honest tokenizers take 0.05 s
WALL_S = 20.0  # until an answer, for one that sleeps; a busy machine may stretch the others so far
MEMORY = 1 << 30  # address space of the child, 0.2 GiB of it Python's and the tokenizer library's
MAX_CHARS = 10_000_000  # of prompts rendered at once, beyond what the messages themselves hold
MAX_WORDS = 100_000  # of an answer beside the texts
MAX_ADDED = 100_000  # tokens beside the vocabulary; the most known are 10,000
PROBES = (
    "What is 12 + 345? Let me check: it's 3,571 (really).\n\n\tdef f(x): return x # größer 漢字🙂",
    # What backtracking needs: long runs of one kind with something else behind them.
    *(run * 5_000 + "\x00" for run in ("a", "A", " ", "\n", "1", "!", "ä", "aA ", "<|", "x.")),
)

_trusted: set[str] = set()
_probed: dict[str, int] = {}
_lock = threading.Lock()
_child: tuple[int, subprocess.Popen[bytes]] | None = None  # (the process that started it, it)


class Died(Exception):
    """The child is gone, and with it what it was asked."""


class TooMuch(UserError):
    """What a template takes more of than any honest one."""


def trust_template(template: str) -> None:
    """Our own template is rendered in this process."""
    _trusted.add(template)


def is_trusted(template: str) -> bool:
    return template in _trusted


def render(
    where: str,
    template: str,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    special_tokens: Mapping[str, Any],
    add_generation_prompt: bool,
) -> list[str]:
    """The conversations as a stranger's chat template writes them; UserError names `where`."""
    texts: list[str] = []
    for begin in range(0, len(conversations), RENDER_AT_ONCE):
        part = conversations[begin : begin + RENDER_AT_ONCE]
        said = sum(len(str(m.get("content"))) for messages in part for m in messages)
        request = {
            "do": "render",
            "seconds": RENDER_S,
            "max_chars": MAX_CHARS + 4 * said,
            "template": template,
            "conversations": part,
            "special_tokens": special_tokens,
            "add_generation_prompt": add_generation_prompt,
        }
        with _lock:
            try:
                reply = _ask(_kept_child(), request, most=12 * (MAX_CHARS + 4 * said) + MAX_WORDS)
            except Died:
                _forget_child()
                reason = f"it takes more than {RENDER_S:g} s or 1 GiB"
                reply = {"error": reason, "too_much": True}
        if "error" in reply:
            what = f"its chat template cannot be rendered ({reply['error']})"
            kind = TooMuch if "too_much" in reply else UserError
            raise kind(where, what, "mend or replace its chat_template.jinja")
        texts += reply["texts"]
    return texts


def probe_tokenizer(path: Path, content_hash: str) -> int:
    """The largest token id of a tokenizer.json that reads the probes within its limits."""
    if content_hash not in _probed:
        request = {
            "do": "tokenize",
            "seconds": LOAD_S,
            "probe_s": PROBE_S,
            "path": str(path.resolve()),
            "max_added": MAX_ADDED,
            "probes": PROBES,
        }
        child = _start()
        try:
            reply = _ask(child, request, most=MAX_WORDS)
        except Died:
            limits = f"{LOAD_S:g} s to load, {PROBE_S:g} s for ordinary text, or 1 GiB"
            reply = {"error": f"it takes more than {limits}"}
        finally:
            _end(child)
        if "error" in reply:
            what = f"cannot be used ({reply['error']})"
            raise UserError(str(path), what, "take the tokenizer of another revision or model")
        _probed[content_hash] = reply["largest"]
    return _probed[content_hash]


def _kept_child() -> subprocess.Popen[bytes]:
    """The child that renders; a fork of this process must not share it."""
    global _child
    if _child is None or _child[0] != os.getpid() or _child[1].poll() is not None:
        _child = os.getpid(), _start()
    return _child[1]


@atexit.register
def _forget_child() -> None:
    global _child
    if _child is not None and _child[0] == os.getpid():
        _end(_child[1])
    _child = None


def _start() -> subprocess.Popen[bytes]:
    """A child with our import path, but nothing else of our environment: keys stay here."""
    script = Path(__file__).with_name("child.py")
    return subprocess.Popen(
        [sys.executable, "-S", "-P", "-B", str(script), str(MEMORY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={
            "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path),
            "PYTHONUTF8": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RAYON_NUM_THREADS": "1",
        },
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        try:
            if pipe:
                pipe.close()
        except OSError:
            pass


def _ask(child: subprocess.Popen[bytes], request: Mapping[str, Any], most: int) -> Any:
    """The child's reply, or Died when it takes too long or says too much."""
    assert child.stdin and child.stdout
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except OSError as error:
        raise Died from error
    descriptor, reply = child.stdout.fileno(), bytearray()
    deadline = time.monotonic() + WALL_S
    while not reply.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or len(reply) > most or not select.select([descriptor], [], [], left)[0]:
            raise Died
        piece = os.read(descriptor, 1 << 20)
        if not piece:
            raise Died
        reply += piece
    return json.loads(reply)
