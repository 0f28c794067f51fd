"""Requests become parameters of a chat completion, in the words that the server takes."""

from __future__ import annotations

import re
from typing import Any

from limbeck.engines.http.faults import status_of
from limbeck.types import Request, Sampling

UNSUPPORTED = re.compile(
    r"un(supported|known|recogni[sz]ed|expected)|not (supported|support|permitted|allowed)"
)


def body(
    model: str, request: Request, sampling: Sampling, logprobs: bool, refused: frozenset[str]
) -> dict[str, Any]:
    """What is sent for a request, without what the server `refused` and can be spared."""
    messages = [{"role": m.role, "content": m.content} for m in request.problem.messages]
    drawn = parameters(sampling, request.seed, logprobs, refused)
    return {"model": model, "messages": messages, **drawn}


def parameters(
    sampling: Sampling, seed: int, logprobs: bool, refused: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """How the text is drawn."""
    asked: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": seed % 2**31,
    }
    if sampling.stop:
        asked["stop"] = list(sampling.stop)
    if logprobs:
        asked["logprobs"] = True
    beyond = {"top_k": sampling.top_k, "min_p": sampling.min_p}  # OpenAI's own API lacks these
    asked |= {name: value for name, value in beyond.items() if value}
    refused = refused & sparable(sampling)
    if "max_tokens" in refused:
        asked["max_completion_tokens"] = sampling.max_tokens
    return {name: value for name, value in asked.items() if name not in refused}


def is_plain(sampling: Sampling) -> bool:
    """Whether tokens are drawn from the model's own distribution.

    Only then are the log-probabilities that servers tell those of what was drawn from.
    """
    unfiltered = sampling.top_p == 1 and sampling.top_k is None and sampling.min_p == 0
    return sampling.temperature == 1 and unfiltered


def sparable(sampling: Sampling) -> frozenset[str]:
    """What may be left out, or said in another word, without another text being asked for."""
    neutral = {"temperature"} if sampling.temperature == 1 else set()
    neutral |= {"top_p"} if sampling.top_p == 1 else set()
    return frozenset({"max_tokens", "seed", "logprobs"} | neutral)


def refused_parameter(fault: Exception, sampling: Sampling) -> str | None:
    """The parameter that the server does not know and that can be spared, if that is the fault.

    The models that reason of OpenAI want `max_completion_tokens` and take neither `top_p` nor
    `logprobs`; Mistral's take no `seed`.
    """
    if status_of(fault) not in (400, 422):
        return None
    said = f"{getattr(fault, 'code', '')} {fault} {getattr(fault, 'body', '')}".lower()
    if not UNSUPPORTED.search(said):
        return None
    named = [name for name in sparable(sampling) if re.search(rf"\b{name}\b", said)]
    told = getattr(fault, "param", None)
    return told if told in named else min(named, default=None)
