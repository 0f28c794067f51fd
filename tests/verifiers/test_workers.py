"""Worker processes: killed on time, whole afterwards, in any thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from limbeck.verifiers import workers

HERE = "tests.verifiers.worked"
SECOND_S = 20.0  # long enough for a busy machine


def worker_of(function):
    return workers._pool(f"{HERE}:{function}").idle[-1]


@pytest.mark.parametrize(
    "value", [None, 1.5, "\ud800 \x00 \u202e", ["a\nb", {"c": [True]}], "x" * 10_000_000]
)
def test_a_reply_is_what_the_function_returns(value):
    assert workers.ask(f"{HERE}:same", value, SECOND_S) == value


def test_what_prints_and_what_reads_disturbs_nobody():
    assert workers.ask(f"{HERE}:loud", "a", SECOND_S) == "a"
    assert workers.ask(f"{HERE}:loud", "b", SECOND_S) == "b"


def test_what_is_late_is_killed_and_another_takes_its_place():
    workers.ask(f"{HERE}:sleep", 0, SECOND_S)
    process = worker_of("sleep").process
    began = time.monotonic()
    with pytest.raises(workers.Late, match=r"0.2 s"):
        workers.ask(f"{HERE}:sleep", 100, 0.2)
    assert time.monotonic() - began < SECOND_S
    assert process.poll() is not None
    assert workers.ask(f"{HERE}:sleep", 0, SECOND_S) == 0
    assert worker_of("sleep").process.pid != process.pid


def test_what_the_function_raises_comes_back_and_its_worker_lives():
    workers.ask(f"{HERE}:same", 1, SECOND_S)
    process = worker_of("same").process
    with pytest.raises(workers.Failed, match="KeyError: 'no'"):
        workers.ask(f"{HERE}:fail", "no", SECOND_S)
    with pytest.raises(workers.Failed, match="not JSON serializable"):
        workers.ask(f"{HERE}:unserialisable", "no", SECOND_S)
    with pytest.raises(TypeError, match="not JSON serializable"):
        workers.ask(f"{HERE}:same", {1, 2}, SECOND_S)
    assert workers.ask(f"{HERE}:same", 2, SECOND_S) == 2
    assert worker_of("same").process is process


@pytest.mark.parametrize("function", ["end", "endless_reply"])
def test_what_dies_of_a_question(function):
    for _ in range(2):
        with pytest.raises(workers.Died):
            workers.ask(f"{HERE}:{function}", None, SECOND_S)


def test_a_function_that_there_is_not():
    with pytest.raises(workers.Died):
        workers.ask(f"{HERE}:nothing", None, SECOND_S)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit that only Linux keeps")
def test_memory_is_bounded():
    with pytest.raises(workers.Failed, match="MemoryError"):
        workers.ask(f"{HERE}:eat", 2 << 30, SECOND_S)
    assert workers.ask(f"{HERE}:eat", 1 << 20, SECOND_S) == 1 << 20


def test_a_worker_that_somebody_else_killed_is_replaced():
    workers.ask(f"{HERE}:same", 1, SECOND_S)
    process = worker_of("same").process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert workers.ask(f"{HERE}:same", 2, SECOND_S) == 2


def test_sixteen_threads_get_their_own_replies_from_few_processes():
    replies = {}

    def ask(number):
        for turn in range(20):
            try:
                replies[number, turn] = workers.ask(f"{HERE}:slowly", [number, turn], 0.5)
            except workers.Late:
                replies[number, turn] = "late"

    threads = [threading.Thread(target=ask, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    late = [place for place, reply in replies.items() if reply == "late"]
    assert set(late) >= {(3, 3), (5, 5)}  # these two sleep
    assert all(list(place) == reply for place, reply in replies.items() if place not in late)
    assert len(replies) == 320
    assert 0 < len(workers._pool(f"{HERE}:slowly").idle) <= os.cpu_count()


def test_a_worker_is_replaced_before_it_grows_old(monkeypatch):
    monkeypatch.setattr(workers, "MAX_QUESTIONS", 3)
    pids = [workers.ask(f"{HERE}:pid", None, SECOND_S) for _ in range(7)]
    assert len(set(pids)) == 3


def test_an_interrupted_worker_answers_no_old_question(monkeypatch):
    workers.ask(f"{HERE}:same", 1, SECOND_S)
    process = worker_of("same").process

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(workers.Worker, "_reply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            workers.ask(f"{HERE}:same", 2, SECOND_S)
    assert process.poll() is not None
    assert workers.ask(f"{HERE}:same", 3, SECOND_S) == 3


FORKED = f"""
import os, threading, time
from limbeck.verifiers import workers
ask = lambda seconds: workers.ask("{HERE}:sleep", seconds, 60)
ask(0)
busy = [threading.Thread(target=ask, args=[1]) for _ in range(os.cpu_count())]
[thread.start() for thread in busy]
time.sleep(0.5)
child = os.fork()
if child == 0:
    os._exit(ask(0))
print(os.waitpid(child, 0)[1])
[thread.join() for thread in busy]
print(ask(0))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_asks_workers_of_its_own():
    told = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, cwd=os.getcwd(), timeout=60
    )
    assert told.stdout.split() == ["0", "0"]


PARENT = f"""
import os, sys, threading, time
from limbeck.verifiers import workers
print(workers.ask("{HERE}:pid", None, 60), flush=True)
if sys.argv[1] == "killed":
    threading.Thread(target=lambda: workers.ask("{HERE}:sleep", 1e6, 1e6), daemon=True).start()
    time.sleep(0.1)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="asks for a process by its number")
@pytest.mark.parametrize("how", ["ends", "killed"])
def test_workers_die_with_their_parent(how):
    told = subprocess.run(
        [sys.executable, "-c", PARENT, how], capture_output=True, text=True, cwd=os.getcwd()
    )
    pid, deadline = int(told.stdout), time.monotonic() + SECOND_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")
