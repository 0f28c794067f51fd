"""How a benchmark is asked and counted: a source of problems with a `PROTOCOL` in its file.

The paper's own protocol is the default: 32,768 tokens at temperature 0.6 and top-p 0.95, pass@1 the
mean over k answers (DeepSeek-AI et al. 2025, https://arxiv.org/abs/2501.12948, 3 and D.1). It tells
k for AIME and GPQA (64), MATH-500 and Codeforces (16) and LiveCodeBench (8), and of all others that
it lies between 4 and 64, by the size of the set: here 16 up to a thousand problems, 8 up to ten
thousand, then 4.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.config import suggest
from limbeck.errors import UserError

BOXED = (  # the README of R1
    "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
)
LETTER = (
    "Answer this multiple-choice question. Think step by step; then end with a line that says "
    "'Answer: X' and nothing else, where X is the letter of the one right option.\n\n{question}"
)


@dataclass(frozen=True)
class Protocol:
    """What is asked how often, and what is counted."""

    num_samples: int
    """Answers to each problem: the paper's k."""
    num_problems: int
    """How many the public set has, or at most can have."""
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 32_768
    pass_at: tuple[int, ...] = ()
    cons_at: tuple[int, ...] = ()
    greedy: bool = False
    """Also one answer at temperature 0, which is what others report of such a set."""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """What its source has to be told so that it gives the benchmark, the split for instance."""
    paper: str | None = None
    """What the published figures call it; None where there are none."""
    differs: tuple[str, ...] = ()
    """Where its numbers can differ from others', and why."""


def names() -> list[str]:
    """The benchmarks: files of this folder that have a `PROTOCOL`."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(f.stem for f in files if "\nPROTOCOL = " in f.read_text(encoding="utf-8"))


def of(name: str) -> Protocol:
    """UserError with a suggestion where no benchmark is called so."""
    if name not in (known := names()):
        raise UserError(name, "is no benchmark", suggest(name, known))
    protocol: Protocol = importlib.import_module(f"limbeck.problems.{name}").PROTOCOL
    return protocol
