"""The answer is the gold expression, by value: `math-verify` where strings and numbers do not do.

The package parses with sympy, which can take minutes over nine letters (`9^9^9^9`) and whose own
time limit works on the main thread only. So it runs in a process of its own that can be killed.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import subprocess
import sys
import threading
from functools import lru_cache

from pydantic import PositiveFloat

from limbeck.types import Problem, Reason, Trace, Verdict
from limbeck.verifiers import final_answer, judged, last_boxed, no_answer
from limbeck.verifiers.number import equal, read_quantity

START_S = 120.0  # importing sympy, on a machine that has other things to do
MEMORY_BYTES = 4 << 30
UNLIKE = {"am", "pm", "mm", "cm", "m", "km", "mg", "g", "kg"}  # math-verify drops every unit
SERVE = "from limbeck.verifiers.math import serve; serve()"


def verify(problem: Problem, trace: Trace, *, timeout_s: PositiveFloat = 2.0) -> Verdict:
    """Equal as numbers or as LaTeX strings, or else so says math-verify within `timeout_s`.

    Past it, `correct` is None and the reason `timeout`. Works on any thread.
    """
    if not problem.answer.strip():
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = final_answer(trace)
    if answer is None:
        return no_answer(trace, reason or "unparsed")
    gold = last_boxed(problem.answer) or problem.answer
    known = judge_quickly(gold, answer)
    if known is not None:
        return judged(trace, known, answer)
    judgement = judge_slowly(gold, answer, timeout_s)
    correct = {"correct": True, "wrong": False, "unparsed": False}.get(judgement)
    return Verdict(trace.id, correct, answer, judgement)


def judge_quickly(gold: str, answer: str) -> bool | None:
    """True or False where strings or bare numbers decide, else None.

    With a word or a variable only unlike units do: 5x is not 5, and 12 am never 12 pm.
    """
    if normalise(gold) == normalise(answer):
        return True
    (a, unit), (b, other) = read_quantity(gold), read_quantity(answer)
    if a is None or b is None:
        return None
    if unit != other and {unit, other} <= UNLIKE:
        return False
    return None if unit or other else equal(a, b)


def normalise(latex: str) -> str:
    """LaTeX without what does not change its value: dollars, spacing, sizes, a final period."""
    latex = latex.strip().removesuffix(".").strip("$").removesuffix(".")
    latex = re.sub(r"\\(?:left|right|displaystyle)\b|\\!|\\[()\[\]]", "", latex)
    latex = re.sub(r"\\[dt]frac\b", r"\\frac", latex)
    latex = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi", latex)
    latex = re.sub(r"\\[,;: ]|\s+", " ", latex)
    return re.sub(r"(?<!\d) +| +(?!\d)", "", latex)


def judge_slowly(gold: str, answer: str, timeout_s: float) -> Reason:
    """math-verify's judgement, from the worker process; a worker that is late is killed."""
    try:
        return _settle(gold, answer, timeout_s)
    except Unsettled as unsettled:
        return unsettled.reason


@lru_cache(maxsize=1 << 16)  # the samples of a problem repeat each other's answers
def _settle(gold: str, answer: str, timeout_s: float) -> Reason:
    reason = _worker.ask({"gold": gold, "answer": answer}, timeout_s)
    if reason in ("timeout", "error"):
        raise Unsettled(reason)
    return reason


class Unsettled(Exception):
    """No judgement this time: the next time may be luckier, so nothing remembers it."""

    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason = reason


class Worker:
    """One process that answers one question at a time; started when first asked."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def ask(self, question: dict[str, str], timeout_s: float) -> Reason:
        """Its answer, 'timeout', or 'error' where it died of the question.

        Whatever interrupts it (Ctrl-C, say) ends the process: the answer that is still to come
        would be taken for the next question's.
        """
        with self.lock:
            try:
                if self.process is None:
                    self._start()
                reply = self._exchange(json.dumps(question), timeout_s)
                if not reply:
                    self.stop()
                return "timeout" if reply is None else json.loads(reply or '"error"')
            except BaseException:
                self.stop()
                raise

    def _exchange(self, line: str, timeout_s: float) -> str | None:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError:
            return ""
        return self._read(timeout_s)

    def _start(self) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        if not self._read(START_S):
            raise RuntimeError("the math verifier's process does not start; is math-verify there?")

    def _read(self, timeout_s: float) -> str | None:
        """One line, '' from a process that has ended, None past the time."""
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        return self.process.stdout.readline() if ready else None

    def stop(self) -> None:
        """Kills the process; the next question starts another."""
        process, self.process = self.process, None
        if process:
            process.kill()
            process.communicate()


_worker = Worker()
atexit.register(_worker.stop)


def serve() -> None:
    """The worker's side: a question a line on stdin, a reason a line on stdout."""
    import resource

    from math_verify import parse, verify

    replies, sys.stdout = sys.stdout, sys.stderr  # nobody else's print is a reply
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            gold, answer = (
                parse(f"\\boxed{{{question[side]}}}", parsing_timeout=None, raise_on_error=True)
                for side in ("gold", "answer")
            )
            same = bool(gold and answer) and verify(gold, answer, timeout_seconds=None)
            reason = "bad_gold" if not gold else "unparsed" if not answer else None
            reason = reason or ("correct" if same else "wrong")
        except Exception:  # whatever sympy trips over: the answer is not an expression it knows
            reason = "unparsed"
        print(json.dumps(reason), file=replies, flush=True)
