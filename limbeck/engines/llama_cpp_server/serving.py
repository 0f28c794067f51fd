"""A GGUF file behind `limbeck serve`: texts that grow token by token, many at once.

llama.cpp keeps the tokens of a character that is not whole yet to itself, and tells its text with
the last of them. So what stands in a draft's `ids` are numbers of pieces of text, one for each
token: of those that were kept back, nothing.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from limbeck.engines.drafts import Draft
from limbeck.engines.llama_cpp import LlamaCppEngine, logprob, question
from limbeck.engines.llama_cpp_server.server import SILENT_S, Connection, Server, respond
from limbeck.errors import UserError

NOTHING, END = 0, 1  # the pieces of a token that was kept back, and of one that ends a text
WAIT_S = 0.02  # for news, before others are heard
MOST_LINE = 1 << 20  # bytes

News = Mapping[str, Any] | Exception


class Served:
    """An engine whose texts the server reads as they grow; of log-probabilities it tells nothing.

    `text` reads its own pieces, not the tokens of a prompt.
    """

    stops: tuple[int, ...] = (END,)

    def __init__(self, engine: LlamaCppEngine) -> None:
        self.engine, self.name, self.context = engine, engine.name, engine.context
        self.tokenizer = engine.tokenizer
        self.pieces = ["", ""]  # as many as there are tokens, and a few
        self.numbers: dict[str, int] = {}

    def pool(self, num_rows: int | None = None) -> Rows:
        """Fresh rows. UserError where llama.cpp has ended."""
        self.engine.server.probe()
        return Rows(self, min(num_rows or self.engine.batch_rows, self.engine.batch_rows))

    def score(self, sequences: Sequence[Sequence[int]], num_top: int = 0) -> Iterator[Any]:
        """llama.cpp's server tells nothing of given tokens."""
        raise NotImplementedError

    def text(self, ids: Sequence[int]) -> str:
        """What pieces say."""
        return "".join(self.pieces[id] for id in ids)

    def number(self, piece: str) -> int:
        """A piece's number."""
        if piece not in self.numbers:
            self.numbers[piece] = len(self.pieces)
            self.pieces.append(piece)
        return self.numbers[piece]


@contextmanager
def watched(server: Server) -> Iterator[None]:
    """Who serves meanwhile ends, as by a SIGTERM, when llama.cpp does; behind it a UserError."""
    is_over = threading.Event()

    def watch() -> None:
        server.kept.keeper.wait()
        if not is_over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
    if not server.kept.is_alive():
        raise server.ended()


class Rows:
    """At most `num_rows` texts at once, each asked for by a thread; the rest waits.

    One thread owns it: `add`, `drop` and `step` are called by no other.
    """

    def __init__(self, served: Served, num_rows: int) -> None:
        self.served, self.num_rows = served, num_rows
        self.waiting: deque[Draft] = deque()
        self.writing: dict[Draft, Connection] = {}
        self.said: SimpleQueue[tuple[Draft, News]] = SimpleQueue()

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def num_writing(self) -> int:
        return len(self.writing)

    def add(self, draft: Draft) -> None:
        """A text to be written as soon as a row is free."""
        self.waiting.append(draft)

    def drop(self, draft: Draft) -> None:
        """Ends a text; llama.cpp stops when nobody listens."""
        if connection := self.writing.pop(draft, None):
            connection.hang_up()
        elif draft in self.waiting:
            self.waiting.remove(draft)

    def step(self) -> list[Draft]:
        """The texts that have grown. UserError where llama.cpp dies, or says nothing for long."""
        while self.waiting and len(self.writing) < self.num_rows:
            self._start(self.waiting.popleft())
        moved: dict[Draft, None] = {}
        for draft, news in self._news():
            if draft not in self.writing:
                continue
            if isinstance(news, Exception):
                raise news
            self._take(draft, news)
            moved[draft] = None
            if draft.finish:
                self.drop(draft)
        return [*moved]

    def _news(self) -> Iterator[tuple[Draft, News]]:
        try:
            yield self.said.get(timeout=WAIT_S)
            while True:
                yield self.said.get_nowait()
        except Empty:
            return

    def _take(self, draft: Draft, told: Mapping[str, Any]) -> None:
        """Adds what an event tells: tokens that were kept back, then the one that it is about."""
        served = self.served
        limit = min(draft.sampling.max_tokens, served.context - len(draft.prompt))
        is_end = any(token in served.engine.ends for token in told["tokens"])
        piece = END if is_end else served.number(told["content"])
        num_back = told["tokens_predicted"] - len(draft.ids) - len(told["tokens"])
        for number in [NOTHING] * num_back + [piece] * len(told["tokens"]):
            draft.take(number, 0.0, limit, served.stops, served.text)
        if any(math.isnan(logprob(each)) for each in told.get("completion_probabilities", ())):
            draft.finish = "error"
        elif told["stop"] and not draft.finish:
            draft.finish = "length" if told["stop_type"] == "limit" else "stop"

    def _start(self, draft: Draft) -> None:
        engine = self.served.engine
        body = question(draft.prompt, draft.seed, draft.sampling, engine.context)
        body |= {"stream": True, "post_sampling_probs": False}
        self.writing[draft] = connection = Connection(engine.server.socket, SILENT_S)
        threading.Thread(target=self._listen, args=(draft, connection, body), daemon=True).start()

    def _listen(self, draft: Draft, connection: Connection, body: Mapping[str, Any]) -> None:
        server = self.served.engine.server
        try:
            for told in events(connection, body):
                if draft not in self.writing:
                    return
                self.said.put((draft, told))
        except UserError as error:
            self.said.put((draft, error))
        except (OSError, ValueError, http.client.HTTPException):
            self.said.put((draft, server.ended()))
        finally:
            connection.close()


def events(connection: Connection, body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What llama.cpp tells of a text, up to its end. ValueError for what it should not say."""
    answer = respond(connection, "/completion", body)
    if answer.status != 200:
        raise ValueError(answer.read(MOST_LINE))
    told: Mapping[str, Any] = {}
    while not told.get("stop"):
        line = answer.readline(MOST_LINE)
        if not line:
            raise ValueError("it broke off")
        if line.startswith(b"data: "):
            told = json.loads(line.removeprefix(b"data: "))
            if "tokens" not in told:
                raise ValueError(line)
            yield told
