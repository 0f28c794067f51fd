"""Texts in the making on this machine: from a request to a draft, from a draft to a trace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck import chat
from limbeck.errors import UserError
from limbeck.types import Finish, Request, Sampling, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]

SPARE_TOKENS = 8  # before a stop string: what a tail decodes to may differ at its beginning


@dataclass(eq=False, slots=True)
class Draft:
    """A text in the making.

    `ids` and `logprobs` grow by one a step, the end of turn included; `tops` has the `num_top`
    likeliest (id, log-probability at temperature 1) in each token's place. `finish` is None while
    it is written. `text_end` is where a stop string cuts the text off, in characters.
    """

    prompt: tuple[int, ...]
    seed: int
    sampling: Sampling
    num_top: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: Finish | None = None
    text_end: int | None = None

    def take(
        self, token: int, logprob: float, limit: int, stops: Collection[int], decode: Decode
    ) -> None:
        """Its next token, of at most `limit`; ends it where the token or the text says so."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in stops or (self.sampling.stop and self._says_stop(decode)):
            self.finish = "stop"
        elif len(self.ids) >= limit:
            self.finish = "length"

    def _says_stop(self, decode: Decode) -> bool:
        """Whether a stop string has just been completed; the text ends before it."""
        longest = max(len(stop.encode(errors="replace")) for stop in self.sampling.stop)
        tail = decode(self.ids[-longest - SPARE_TOKENS :])  # a token is at least a byte
        if not any(stop in tail for stop in self.sampling.stop):
            return False
        text = decode(self.ids)
        places = [place for stop in self.sampling.stop if (place := text.find(stop)) >= 0]
        self.text_end = min(places, default=None)
        return bool(places)


class NotFiniteError(Exception):
    """The model gives log-probabilities that are not finite, for these drafts."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        super().__init__(f"log-probabilities of {len(drafts)} texts are not finite")
        self.drafts = drafts

    def told(self, name: str, whose: Mapping[Draft, Request]) -> UserError:
        """The same for people, by the problems that the model called `name` was asked."""
        ids = [*dict.fromkeys(whose[draft].problem.id for draft in self.drafts)]
        what = f"gives log-probabilities that are not finite for problem {', '.join(ids[:8])}"
        what += f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        return UserError(f"model {name}", what, "its weights are broken: take another checkpoint")


@dataclass(frozen=True)
class Prompt:
    """What a problem asks, as the model reads it; `opened` as in `chat.opened_thinking`."""

    ids: tuple[int, ...]
    opened: str


def read_prompts(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request]
) -> dict[str, Prompt]:
    """By problem: its samples share a prompt."""
    prompts: dict[str, Prompt] = {}
    for request in requests:
        if request.problem.id not in prompts:
            messages = request.problem.messages
            text = chat.render_prompt(tokenizer, messages)
            ids = tuple(chat.prompt_ids(tokenizer, messages))
            prompts[request.problem.id] = Prompt(ids, chat.opened_thinking(text))
    return prompts


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The end of a turn and whatever else the model's generation config ends with."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    more = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return tuple(sorted({chat.end_of_turn(tokenizer), *more}))


def trace_of(
    request: Request, prompt: Prompt, draft: Draft, name: str, stops: Collection[int], text: Decode
) -> Trace:
    """What a finished draft has come to; the end of turn is a token, but no text."""
    said = draft.ids[:-1] if draft.ids[-1] in stops else draft.ids
    assert draft.finish is not None
    return Trace(
        id=request.id,
        problem_id=request.problem.id,
        index=request.index,
        text=prompt.opened + text(said)[: draft.text_end],
        finish=draft.finish,
        model=name,
        prompt_tokens=len(prompt.ids),
        completion_tokens=len(draft.ids),
        token_ids=tuple(draft.ids),
        logprobs=tuple(draft.logprobs),
    )


def no_room(request: Request, prompt: Prompt, name: str) -> Trace:
    """The empty trace of a prompt that leaves no room in the context."""
    return Trace(
        id=request.id,
        problem_id=request.problem.id,
        index=request.index,
        text="",
        finish="error",
        model=name,
        prompt_tokens=len(prompt.ids),
        token_ids=(),
        logprobs=(),
    )
