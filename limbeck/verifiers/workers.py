"""Functions that may hang or eat memory, asked in worker processes that can be killed.

A worker is a plain child process: a question a line on its standard input, a reply a line on its
standard output, both JSON. It is started when first needed and kept; past its time it is killed
and another takes its place. No signals and no `select`: it works in any thread, on any platform.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

START_S = 120.0  # importing sympy, on a machine that has other things to do
MEMORY_BYTES = 1 << 30  # of addresses; what is really used stays well below
MAX_QUESTIONS = 1000  # then a worker has leaked enough
MAX_REPLY_BYTES = 1 << 24
SERVE = "import sys; from limbeck.verifiers.workers import serve; serve(sys.argv[1])"


class Late(Exception):
    """No reply within the time; the worker was killed."""


class Died(Exception):
    """The worker ended before it replied: out of memory, say."""


class Failed(Exception):
    """The function raised; the message is `type: what`."""


def ask(function: str, question: Any, timeout_s: float) -> Any:
    """What `package.module:function` returns for a JSON value; it returns one, too.

    Several threads may ask at once; those that find every worker busy wait. Neither this nor the
    start of a process counts into `timeout_s`. Raises Late, Died or Failed.
    """
    line = json.dumps([timeout_s, question]).encode() + b"\n"
    with _pool(function).worker() as worker:
        reply = worker.exchange(line, timeout_s)
    if "error" in reply:
        raise Failed(reply["error"])
    return reply["value"]


class Pool:
    """The workers of one function: as many as are needed at once, at most one for each core."""

    def __init__(self, function: str):
        self.function = function
        self.num_most = os.cpu_count() or 1
        self.free = threading.BoundedSemaphore(self.num_most)
        self.idle: list[Worker] = []
        self.num_busy = 0

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker for one question.

        Whatever goes wrong meanwhile (Ctrl-C, too) ends it: a reply that is still to come would
        be taken for the next question's.
        """
        with self.free:
            worker = self._take()
            try:
                yield worker
            except BaseException as error:
                worker.kill()
                if isinstance(error, Late):
                    self._prepare()
                raise
            finally:
                with _lock:
                    self.num_busy -= 1
            if worker.num_asked < MAX_QUESTIONS:
                self.idle.append(worker)
            else:
                worker.kill()

    def _prepare(self) -> None:
        """Starts the next worker and, where there is a core for it, the one after that.

        Where questions are late one after the other, the next of them then never waits.
        """
        with _lock:
            for _ in range(min(2, self.num_most - self.num_busy + 1) - len(self.idle)):
                self.idle.insert(0, Worker(self.function))

    def _take(self) -> Worker:
        with _lock:
            self.num_busy += 1
        with suppress(IndexError):
            while worker := self.idle.pop():
                if worker.process.poll() is None:
                    return worker
                worker.kill()
        return Worker(self.function)


class Worker:
    """One process, and a thread that waits for it in the place of whoever asks."""

    def __init__(self, function: str):
        path = os.pathsep.join(entry for entry in sys.path if entry)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which may want to finish
        )
        self.function, self.num_asked = function, 0
        self.questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        _alive.add(self)
        threading.Thread(target=self._carry, daemon=True).start()

    def exchange(self, line: bytes, timeout_s: float) -> dict[str, Any]:
        """The reply to a question."""
        if not self.num_asked:
            self._reply(START_S)
        self.num_asked += 1
        self.questions.put(line)
        return self._reply(timeout_s)

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self.replies.get(timeout=timeout_s)
        except queue.Empty:
            raise Late(f"{self.function}: no reply within {timeout_s:g} s") from None
        if not line.endswith(b"\n"):
            raise Died(f"{self.function}: the worker process ended without a reply")
        return json.loads(line)

    def _carry(self) -> None:
        """Takes questions to the process and its replies back, until it is killed."""
        asked, told = self.process.stdin, self.process.stdout
        assert asked and told
        with asked, told, suppress(OSError):
            self.replies.put(told.readline(MAX_REPLY_BYTES))
            while line := self.questions.get():
                with suppress(OSError):  # it has ended, as its empty reply says
                    asked.write(line)
                    asked.flush()
                self.replies.put(told.readline(MAX_REPLY_BYTES))

    def kill(self) -> None:
        """Ends the process, and with it the thread."""
        self.process.kill()
        self.process.wait()
        self.questions.put(None)
        _alive.discard(self)


_alive: set[Worker] = set()
_pools: dict[str, Pool] = {}
_lock = threading.Lock()


def _pool(function: str) -> Pool:
    with _lock:
        return _pools.setdefault(function, Pool(function))


def _start_anew() -> None:
    """For a forked child, which has none of the threads that carry questions to the workers."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


@atexit.register
def _kill_all() -> None:
    for worker in list(_alive):
        worker.kill()


def serve(name: str) -> None:
    """The worker's side: answers until its standard input ends, which it does with the parent."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nobody else's print is a reply
    module, _, function = name.partition(":")
    answer = getattr(importlib.import_module(module), function)
    _limit_memory()
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=[questions], daemon=True).start()
    replies.write(b"{}\n")
    while True:
        replies.flush()
        timeout_s, question = json.loads(questions.get())
        _limit_time(timeout_s)
        replies.write(_answered(answer, question) + b"\n")


def _answered(answer: Callable[[Any], Any], question: Any) -> bytes:
    try:
        return json.dumps({"value": answer(question)}).encode()
    except Exception as error:  # the question is hostile text: the parent knows what to make of it
        return json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}).encode()


def _listen(questions: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        questions.put(line)
    os._exit(0)


def _limit_memory() -> None:
    """Where the platform can."""
    with suppress(ImportError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _limit_time(timeout_s: float) -> None:
    """Ends a worker, where the platform can, whose parent is no longer there to kill it."""
    with suppress(ImportError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        limit = int(time.process_time() + timeout_s) + 2
        soft = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, most))
