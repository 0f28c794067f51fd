"""A server over an engine that says what it is told: the last user's message, or the prompt.

`python -m tests.serve.echo MODEL [STEP_S [PATIENCE_S]]`; its key, if any, is in ECHO_KEY. The time
limits on headers, bodies and draining become PATIENCE_S. A message "fail" breaks the model, "nan"
gives a text that ends in error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


@dataclass
class Running:
    """A server in its own process."""

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def measured(self, name: str, key: str = "") -> float:
        """A number of /metrics."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        text = httpx.get(f"{self.url}/metrics", headers=headers).text
        return float(
            next(x for x in text.splitlines() if x.startswith(f"limbeck_{name} ")).split()[1]
        )

    def memory_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(x for x in status.splitlines() if x.startswith("VmRSS")).split()[1])

    def num_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def serving(*command: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """A server, from the line in which it says where it is to its end."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    try:
        assert process.stderr
        said = ""
        for line in process.stderr:
            said += line
            if "is served at" in line:
                break
        else:
            raise AssertionError(said)
        url = line.partition("is served at ")[2].partition("/v1")[0]
        yield Running(url, process)
    finally:
        process.kill()
        process.wait()


class EchoPool:
    """Rows of drafts whose texts are known."""

    def __init__(self, engine: EchoEngine, num_rows: int) -> None:
        self.engine, self.num_rows = engine, num_rows
        self.queue, self.rows = [], {}

    @property
    def num_waiting(self) -> int:
        return len(self.queue)

    @property
    def num_writing(self) -> int:
        return len(self.rows)

    def add(self, draft) -> None:
        self.queue.append(draft)

    def drop(self, draft) -> None:
        self.queue = [other for other in self.queue if other is not draft]
        self.rows.pop(draft, None)

    def step(self) -> list:
        while self.queue and len(self.rows) < self.num_rows:
            draft = self.queue.pop(0)
            self.rows[draft] = iter(self.engine.words(draft.prompt))
        time.sleep(self.engine.step_s)
        moved = list(self.rows)
        for draft in moved:
            self.move(draft)
        self.rows = {draft: rest for draft, rest in self.rows.items() if not draft.finish}
        return moved

    def move(self, draft) -> None:
        engine = self.engine
        draft.ids.append(next(self.rows[draft], engine.stops[0]))
        draft.logprobs.append(-0.25)
        if draft.num_top:
            draft.tops.append([(draft.ids[-1], -0.25), (0, -2.0)][: draft.num_top])
        text = engine.text(draft.ids)
        ends = [text.find(stop) for stop in draft.sampling.stop if stop in text]
        if text == "fail":
            raise RuntimeError("the model fell over")
        if text == "nan":
            draft.finish = "error"
        elif draft.ids[-1] in engine.stops:
            draft.finish = "stop"
        elif ends:
            draft.finish, draft.text_end = "stop", min(ends)
        elif len(draft.ids) >= draft.sampling.max_tokens:
            draft.finish = "length"


class EchoEngine:
    """An engine with a real tokenizer and no model."""

    name = "echo"
    context = 512

    def __init__(self, folder: str, step_s: float) -> None:
        from limbeck import models

        self.tokenizer, self.step_s = models.load_tokenizer(folder), step_s
        self.stops = (self.tokenizer.eos_token_id,)

    def pool(self, num_rows: int | None = None) -> EchoPool:
        return EchoPool(self, num_rows or 4)

    def score(self, sequences, num_top: int = 0):
        raise RuntimeError("it has no model")

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def words(self, prompt: Sequence[int]) -> list[int]:
        asked = self.text(prompt).rpartition("<|user|>")[2].partition("<|assistant|>")[0]
        return self.tokenizer(asked, add_special_tokens=False)["input_ids"]


def main(folder: str, step_s: str = "0", patience_s: str = "") -> None:
    from limbeck import serve
    from limbeck.engines.pool import Draft
    from limbeck.serve import limits as guards
    from limbeck.serve import sockets

    if patience_s:
        guards.BODY_S = sockets.IDLE_S = sockets.DRAIN_S = float(patience_s)
    limits = serve.Limits(num_rows=8, num_waiting=16, time_s=20.0)
    key = serve.check("127.0.0.1", "ECHO_KEY")
    serve.run(EchoEngine(folder, float(step_s)), Draft, serve.bind("127.0.0.1", 0), key, limits)


if __name__ == "__main__":
    main(*sys.argv[1:])
