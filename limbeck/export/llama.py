"""llama.cpp in a child process: start it on a file, ask, end it."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from limbeck.errors import UserError

Step = list[tuple[int, float]]
"""(token, log-prob), the likeliest first."""

MEMORY = 4 << 30  # bytes of llama.cpp beside the weights: keys and values, threads
SCRIPT = Path(__file__).with_name("llama_child.py")


def check() -> None:
    """UserError where llama.cpp is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        what, way_out = "llama.cpp is not installed (xllamacpp)", "pip install 'limbeck[gguf]'"
        raise UserError("export", what, way_out)


class Llama:
    """A GGUF file that llama.cpp has loaded; UserError names it when that dies or is late."""

    def __init__(self, child: subprocess.Popen[bytes], where: str, limit_s: float):
        self._child, self._where = child, where
        self._deadline = time.monotonic() + limit_s
        self._limit_s = limit_s
        self._rest = b""

    def render(self, turns: list[list[dict[str, str]]]) -> list[str]:
        """What its chat template makes of conversations, ready for the assistant's turn."""
        said: list[str] = self.ask({"do": "render", "turns": turns})
        return said

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts in which control tokens are read as such."""
        said: list[list[int]] = self.ask({"do": "tokenize", "texts": texts})
        return said

    def detokenize(self, ids: list[list[int]]) -> list[str]:
        said: list[str] = self.ask({"do": "detokenize", "ids": ids})
        return said

    def special(self) -> dict[str, str]:
        """The texts of its `bos` and `eos`."""
        said: dict[str, str] = self.ask({"do": "special"})
        return said

    def stops_at(self, token: int) -> bool:
        """Whether an answer ends with this token."""
        said: bool = self.ask({"do": "stops", "token": token})
        return said

    def greedy(
        self, prompts: list[list[int]], num_tokens: int, num_probs: int, plain: int, end: int
    ) -> list[list[Step]]:
        """For each prompt the steps of a greedy answer, up to the token that is its `end`: the
        likeliest tokens, the first first, with their log-probs. `plain` is any whole letter."""
        request = {"do": "greedy", "num_tokens": num_tokens, "num_probs": num_probs}
        about = {"plain": plain, "end": end}
        return [self.ask({**request, **about, "prompts": [prompt]})[0] for prompt in prompts]

    def ask(self, request: dict[str, Any]) -> Any:
        """One line there, one line back."""
        assert self._child.stdin
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
            reply = json.loads(self._line())
        except (OSError, ValueError) as error:
            raise self._wrong(f"llama.cpp died of it ({error})") from error
        if "error" in reply:
            raise self._wrong(f"llama.cpp objects ({reply['error']})")
        return reply["said"]

    def _line(self) -> bytes:
        assert self._child.stdout
        descriptor = self._child.stdout.fileno()
        while b"\n" not in self._rest:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise self._wrong(f"llama.cpp took more than {self._limit_s:g} s")
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                code = self._child.wait()
                raise OSError(f"exit code {code}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _wrong(self, what: str) -> UserError:
        return UserError(self._where, what, "take another --quant, or --to hf")


@contextmanager
def loaded(path: Path, where: str, context: int, limit_s: float) -> Iterator[Llama]:
    """llama.cpp on a file with room for `context` tokens, for at most `limit_s` seconds; `where` is
    what a mistake names."""
    check()
    child = subprocess.Popen(
        [sys.executable, "-S", "-P", "-B", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={  # keys stay here
            "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    try:
        llama = Llama(child, where, limit_s)
        memory = MEMORY + 2 * path.stat().st_size  # read, and put in another order
        llama.ask({"path": str(path.resolve()), "context": context, "memory": memory})
        yield llama
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                with suppress(OSError):  # which a pipe to who is gone raises
                    pipe.close()
