"""What others say of the same rows: math-verify and the accuracy reward of TRL.

Both read the whole response with the settings that their authors chose. They may hang over hostile
text (their own time limits are signals), so they are asked in processes that can be killed.
"""

from __future__ import annotations

import importlib.util
import re

from limbeck.types import Problem, Trace
from limbeck.verifiers import workers

PACKAGES = {"math_verify": "math_verify", "trl": "trl"}
TIMEOUT_S = 30.0  # twice what they allow themselves
IN_LATEX = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")  # but \$36 is money


def installed() -> list[str]:
    """The peers that can be asked here."""
    return [peer for peer, package in PACKAGES.items() if importlib.util.find_spec(package)]


def accepts(peer: str, problem: Problem, trace: Trace) -> bool | None:
    """Whether a peer takes a text for right; None where it cannot say, or not in time."""
    gold = problem.answer if IN_LATEX.search(problem.answer) else f"${problem.answer}$"
    question = {"gold": gold, "text": trace.text}
    try:
        return workers.ask(f"limbeck.audit.peers:{peer}", question, TIMEOUT_S)
    except (workers.Late, workers.Died, workers.Failed):
        return None


def math_verify(question: dict[str, str]) -> bool | None:
    """In the worker: the way that its README shows."""
    from math_verify import parse, verify

    gold = parse(question["gold"])
    return verify(gold, parse(question["text"])) if gold else None


def trl(question: dict[str, str]) -> bool | None:
    """In the worker: a completion's reward; none where it cannot read the gold answer."""
    from trl.rewards import accuracy_reward

    completion = [{"role": "assistant", "content": question["text"]}]
    reward = accuracy_reward([completion], [question["gold"]])[0]
    return None if reward is None else reward == 1.0
