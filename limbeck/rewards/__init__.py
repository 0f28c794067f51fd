"""What reinforcement learning wants: functions that give an answer a number, more is better.

Two kinds, told apart by the name of their first parameter:

- of one answer: `(problem, trace, verdict, *, knobs) -> float`;
- of many at once (a model that reads them in batches): `(problems, traces, verdicts, *, knobs) ->
  list[float]`.

What is imported here is what a recipe may name; `weighted.py` adds several up.
"""

from limbeck.rewards.model import reward_model
from limbeck.rewards.reading import pattern
from limbeck.rewards.rules import correct, format, language, length, overlong, repetition

__all__ = [
    "correct",
    "format",
    "language",
    "length",
    "overlong",
    "pattern",
    "repetition",
    "reward_model",
]
