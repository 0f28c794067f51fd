"""The two forms of an answer, chat completion and completion: whole or in chunks, as OpenAI's."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

from limbeck.serve.loop import Engine
from limbeck.serve.telling import News, Token
from limbeck.types import Scored

Json = dict[str, Any]


class Form(Protocol):
    """How an answer is written; a stream may end with a chunk that `tells_usage`."""

    tells_usage: bool

    def whole(self, told: Sequence[News], usage: Json) -> Json:
        """The answer of all texts in the order of their index."""

    def chunk(self, fresh: Sequence[News], usage: Json | None = None) -> Json:
        """A piece of a stream; `usage` in the last one, which has no text."""


def usage(num_prompt: int, num_written: int) -> Json:
    """Tokens read, each prompt once, and written, end of turn included."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_written,
        "total_tokens": num_prompt + num_written,
    }


def _head(prefix: str, kind: str, model: str) -> Json:
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


class Chat:
    """Answers to /v1/chat/completions."""

    def __init__(self, engine: Engine, keeps_tokens: bool, tells_usage: bool):
        self.engine, self.keeps_tokens, self.tells_usage = engine, keeps_tokens, tells_usage
        self.head = _head("chatcmpl", "chat.completion", engine.name)
        self.begun: set[int] = set()

    def whole(self, told: Sequence[News], usage: Json) -> Json:
        choices = []
        for news in told:
            message = {"role": "assistant", "content": news.text, "refusal": None}
            if news.thinking:
                message["reasoning_content"] = news.thinking
            choices.append(self._choice(news, "message", message))
        return {**self.head, "choices": choices, "usage": usage}

    def chunk(self, fresh: Sequence[News], usage: Json | None = None) -> Json:
        choices = [self._choice(news, "delta", self._delta(news)) for news in fresh]
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": choices}
        return {**chunk, "usage": usage} if self.tells_usage else chunk

    def _delta(self, news: News) -> Json:
        delta = {} if news.index in self.begun else {"role": "assistant"}
        self.begun.add(news.index)
        if news.thinking:
            delta["reasoning_content"] = news.thinking
        if news.text:
            delta["content"] = news.text
        return delta

    def _choice(self, news: News, name: str, said: Json) -> Json:
        logprobs = {"content": [self._token(t) for t in news.tokens], "refusal": None}
        return {
            "index": news.index,
            name: said,
            "logprobs": logprobs if self.keeps_tokens else None,
            "finish_reason": news.finish,
        }

    def _token(self, token: Token) -> Json:
        top = [self._likely(id, logprob) for id, logprob in token.top]
        return {**self._likely(token.id, token.logprob), "top_logprobs": top}

    def _likely(self, id: int, logprob: float | None) -> Json:
        text = self.engine.text([id])
        is_whole = "\ufffd" not in text
        octets = list(text.encode()) if is_whole else None
        return {"token": text, "logprob": finite(logprob), "bytes": octets}


class Completion:
    """Answers to /v1/completions, with `num_top` alternatives for each token.

    None is no log-probabilities at all. Texts begin with their `echoes`, tokens with `scores`: the
    prompts, where they are wished.
    """

    def __init__(self, engine: Engine, num_top: int | None, tells_usage: bool):
        self.engine, self.num_top, self.tells_usage = engine, num_top, tells_usage
        self.head = _head("cmpl", "text_completion", engine.name)
        self.echoes: Sequence[str] = ()
        self.scores: Sequence[Sequence[Token]] = ()
        self.ends: dict[int, int] = {}  # of the tokens told of each text, in characters

    def whole(self, told: Sequence[News], usage: Json) -> Json:
        return {**self.head, "choices": [self._choice(news) for news in told], "usage": usage}

    def chunk(self, fresh: Sequence[News], usage: Json | None = None) -> Json:
        chunk = {**self.head, "choices": [self._choice(news) for news in fresh]}
        return {**chunk, "usage": usage} if self.tells_usage else chunk

    def _choice(self, news: News) -> Json:
        text, tokens = news.text, list(news.tokens)
        if news.index not in self.ends:  # its first piece
            self.ends[news.index] = 0
            text = (self.echoes[news.index] if self.echoes else "") + text
            tokens = [*(self.scores[news.index] if self.scores else ()), *tokens]
        return {
            "index": news.index,
            "text": text,
            "logprobs": None if self.num_top is None else self._logprobs(news.index, tokens),
            "finish_reason": news.finish,
        }

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json:
        texts = [self.engine.text([token.id]) for token in tokens]
        ends = list(accumulate(map(len, texts), initial=self.ends[index]))
        self.ends[index] = ends[-1]
        return {
            "tokens": texts,
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens] if self.num_top else None,
            "text_offset": ends[:-1],
        }

    def _top(self, token: Token) -> dict[str, float | None] | None:
        """By text; of tokens that look the same the likeliest. None where nothing foretells it."""
        top: dict[str, float | None] = {}
        for id, logprob in token.top:
            top.setdefault(self.engine.text([id]), finite(logprob))
        return top or None


def scored_tokens(ids: Sequence[int], scored: Scored) -> list[Token]:
    """A prompt's tokens with what the model thinks of them."""
    tops = (
        zip(*pair, strict=True) for pair in zip(scored.top_ids, scored.top_logprobs, strict=True)
    )
    return [
        Token(id, logprob, list(top))
        for id, logprob, top in zip(ids, scored.logprobs, tops, strict=True)
    ]


def finite(logprob: float | None) -> float | None:
    """JSON knows no infinity: what is impossible is very unlikely."""
    return None if logprob is None else max(logprob, -9999.0)
