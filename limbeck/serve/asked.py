"""What clients may ask, and how much of it: OpenAI's request bodies, checked to the last field."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json

from limbeck.serve.refusal import Refusal
from limbeck.types import Message, Sampling

MAX_MESSAGES = 2048
MAX_CHOICES = 128  # of one request: prompts times n
MAX_STOPS = 16
MAX_STOP_CHARS = 256

# Fields that are taken and change nothing.
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# What this server cannot do; to say that it is off does no harm.
ABSENT: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("a text holds no NUL character")
    return value


Text = Annotated[str, AfterValidator(_text)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Shape):
    """A piece of a message's content; only text is understood."""

    type: Literal["text"]
    text: Text


class Turn(Shape):
    """A message. What an assistant thought in earlier turns is not shown to it again."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None
    name: str | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None

    def message(self) -> Message:
        """As templates know it, which have no word for developers."""
        parts = self.content if isinstance(self.content, list) else []
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in parts)
        return Message("system" if self.role == "developer" else self.role, content)


class StreamOptions(Shape):
    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(Shape):
    """What both kinds of request share."""

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: Stop | Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_off(cls, body: Any) -> Any:
        """The body without fields that are null, ignored, or say that something absent is off."""
        if not isinstance(body, dict):
            raise ValueError("the body is a JSON object")
        kept = {}
        for name, value in body.items():
            if value is None or name in IGNORED:
                continue
            if name not in ABSENT or name in cls.model_fields:
                kept[name] = value
            elif value not in ABSENT[name]:
                raise ValueError(f"{name} is not offered by this server; leave it out")
        return kept

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, most: int, default: int) -> Sampling:
        """How to draw. Refusal for more tokens than `most`, the model's context."""
        wanted = default if self.max_tokens is None else self.max_tokens
        if wanted > most:
            raise Refusal(400, f"max_tokens is at most {most}, the model's context", "max_tokens")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=wanted,
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            min_p=self.min_p,
            stop=tuple(stops),
        )


class ChatRequest(Asked):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        if self.max_tokens == 0:
            raise ValueError("max_tokens is at least 1")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionRequest(Asked):
    """The body of /v1/completions."""

    prompt: (
        Text
        | Ids
        | Annotated[list[Text] | Annotated[list[Ids], Field(fail_fast=True)], Field(min_length=1)]
    )
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _writes_something(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 needs echo: true")
        if len(self.prompts()) * self.n > MAX_CHOICES:
            raise ValueError(f"prompts times n are at most {MAX_CHOICES}")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """Each text, or list of token ids, that is to be continued."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt


Kind = TypeVar("Kind", bound=Asked)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """The request in a body. Refusal with the first thing that is wrong with it."""
    try:
        parsed = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    try:
        return kind.model_validate(parsed)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Of a value that may be of several types, a step is the type that was tried.
        steps = [str(step) for step in first["loc"] if not str(step).endswith(("]", ")"))]
        place = ".".join(steps)[:200]
        told = first["msg"].removeprefix("Value error, ")
        told = "there is no such field" if first["type"] == "extra_forbidden" else told
        raise Refusal(400, f"{place}: {told}" if place else told, place or None) from error
