"""The nouns of Limbeck: what is asked, what is answered, what is judged. Imports no torch.

Shape legend, for every `# (N, V)` comment in the code:
N tokens of a packed batch · D documents in it · L longest document · B rows · H heads ·
K key heads · E head width · C hidden width · V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Finish = Literal["stop", "length", "error"]
Reason = Literal["correct", "wrong", "unparsed", "truncated", "timeout", "bad_gold", "error"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, as in the OpenAI API."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """A question with a checkable answer.

    `verifier` is a verifier's name with its knobs, as in a recipe; `domain` a family or subject;
    `meta` whatever the source knows about it and a plug-in may want (plain JSON values).
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    verifier: str | dict[str, Any]
    domain: str = ""
    split: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last user turn."""
        return next(m.content for m in reversed(self.messages) if m.role == "user")


@dataclass(frozen=True)
class Trace:
    """One generated text, whoever wrote it: a teacher's sample, a rollout, an evaluation answer.

    `text` is whole: `<think>…</think>answer`, with the opening tag even where the chat template
    had already written it. `token_ids` and `logprobs` (natural log, under the distribution that
    was drawn from) are the model's own tokens, end-of-turn included, or None.
    """

    id: str
    problem_id: str
    index: int
    text: str
    finish: Finish
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """A verifier's judgement. `correct` is None when no judgement was possible.

    `score` is partial credit in [0, 1], where the verifier knows one: F1 of a span of text.
    """

    trace_id: str
    correct: bool | None
    extracted: str | None
    reason: Reason
    score: float | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; one meaning in every engine.

    Logits are divided by `temperature` (0 is greedy); of their softmax the `top_k` most probable
    stay (None: all), of these, renormalised, the fewest that hold `top_p`, and of these what is at
    least `min_p` times as probable as the first. A text ends before the first of its `stop`
    strings, which is not part of it, and at `max_tokens`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    top_k: int | None = None
    min_p: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One text to be written: sample `index` of `problem`, drawn with its own `seed` (uint64)."""

    id: str
    problem: Problem
    index: int
    seed: int


@dataclass(frozen=True)
class Scored:
    """A given token sequence (L,) as a model sees it.

    `logprobs` (L,), natural log at temperature 1, of each token after those before it; that of the
    first, which nothing foretells, is None. `top_ids` and `top_logprobs` (L, k): what was likeliest
    in its place, most likely first; empty in the first.
    """

    logprobs: tuple[float | None, ...]
    top_ids: tuple[tuple[int, ...], ...]
    top_logprobs: tuple[tuple[float, ...], ...]


class Generator(Protocol):
    """Every engine: writes one trace for each request, and yields them in any order.

    Where it `costs_money`, each answer goes to a journal before it counts. Such an engine may have
    a `budget`, which is then told what earlier answers cost, and a `longer_max_tokens`, with which
    it asks again for what was truncated: it gives both traces, of one id.
    """

    name: str
    num_parameters: int | None
    costs_money: bool

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]: ...


class Scorer(Protocol):
    """An engine that tells how likely given tokens are: local models, vLLM."""

    def score(self, sequences: Sequence[Sequence[int]], num_top: int = 0) -> Iterator[Scored]: ...


class WeightLoader(Protocol):
    """An engine whose model can learn while it runs: what RL samples from."""

    def load_weights(self, weights: Mapping[str, Any]) -> None: ...
