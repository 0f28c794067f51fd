"""The routes: OpenAI's /v1/chat/completions, /v1/completions and /v1/models; /health, /metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from time import monotonic
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from limbeck.serve.asked import Asked, ChatRequest, CompletionRequest, parse
from limbeck.serve.forms import Chat, Completion, Form, scored_tokens, usage
from limbeck.serve.loop import Draft, Engine, Job, Writer
from limbeck.serve.metrics import CONTENT_TYPE, Metrics
from limbeck.serve.prompts import Prompt, Prompts
from limbeck.serve.reading import Splitter
from limbeck.serve.refusal import Refusal
from limbeck.serve.telling import Choice, News, news, too_late

logger = logging.getLogger(__name__)

COMPLETION_TOKENS = 16  # of a completion where nobody says how many, as at OpenAI
GONE = 499  # nobody is there to read it; others have called it so
DONE = b"data: [DONE]\n\n"


@dataclass
class Service:
    """What the routes share. `make_draft` is the engine's Draft; a request may take `time_s`.

    An engine may tell texts alone: whoever asks for log-probabilities is then refused.
    """

    engine: Engine
    make_draft: Callable[..., Draft]
    writer: Writer
    time_s: float
    tells_logprobs: bool = True
    metrics: Metrics = field(default_factory=Metrics)
    prompts: Prompts = field(init=False)

    def __post_init__(self) -> None:
        self.prompts = Prompts(self.engine)

    async def chat(self, asked: ChatRequest) -> Response:
        """One conversation, continued `n` times."""
        self.check_told(asked.logprobs)
        sampling = asked.sampling(self.engine.context, default=self.engine.context)
        prompt = await self.prompts.chat([turn.message() for turn in asked.messages])
        moved = asyncio.Event()
        choices = []
        for index, seed in enumerate(seeds(asked.seed, asked.n)):
            draft = self.make_draft(prompt.ids, seed, sampling, asked.top_logprobs)
            job = Job(draft, moved, asked.stream)
            choices.append(
                Choice(index, job, self.engine, asked.logprobs, prompt.opened, Splitter())
            )
        form = Chat(self.engine, asked.logprobs, asked.tells_usage)
        return await self._answer(form, choices, len(prompt.ids), asked.stream)

    async def complete(self, asked: CompletionRequest) -> Response:
        """Each prompt continued `n` times, behind itself and its scores where that is wished."""
        self.check_told(asked.logprobs is not None)
        sampling = asked.sampling(self.engine.context, default=COMPLETION_TOKENS)
        prompts = await self.prompts.texts(asked.prompts())
        form = await self._completion(asked, prompts)
        moved = asyncio.Event()
        choices = []
        for index, seed in enumerate(seeds(asked.seed, len(prompts) * asked.n)):
            prompt = prompts[index // asked.n]
            draft = self.make_draft(prompt.ids, seed, sampling, asked.logprobs or 0)
            job = Job(draft, moved, asked.stream)
            if not sampling.max_tokens:  # the prompt's scores are all that is wanted
                job.finish = "length"
                moved.set()
            choices.append(Choice(index, job, self.engine, asked.logprobs is not None))
        return await self._answer(form, choices, sum(len(p.ids) for p in prompts), asked.stream)

    async def _completion(self, asked: CompletionRequest, prompts: Sequence[Prompt]) -> Completion:
        form = Completion(self.engine, asked.logprobs, asked.tells_usage)
        if asked.echo:
            echoes = [await self.prompts.says(prompt) for prompt in prompts]
            form.echoes = [echo for echo in echoes for _ in range(asked.n)]
        if asked.echo and asked.logprobs is not None:
            sequences = [prompt.ids for prompt in prompts]
            scored = await self.writer.score(sequences, asked.logprobs)
            tokens = [scored_tokens(p.ids, s) for p, s in zip(prompts, scored, strict=True)]
            form.scores = [part for part in tokens for _ in range(asked.n)]
        return form

    async def _answer(
        self, form: Form, choices: Sequence[Choice], num_prompt: int, is_streamed: bool
    ) -> Response:
        """All texts in one response, or an event stream of what they grow by."""
        begun = monotonic()
        jobs = [choice.job for choice in choices]

        def count() -> dict[str, int]:
            written = [job for job in jobs if job.num_written]
            if written:
                self.metrics.request_s.observe(monotonic() - begun)
                self.metrics.first_token_s.observe(min(j.begun_at for j in written) - begun)
            return usage(num_prompt, sum(job.num_written for job in jobs))

        deadline = asyncio.get_running_loop().time() + self.time_s
        with ExitStack() as stack:
            stack.enter_context(self.writer.writing([job for job in jobs if not job.finish]))
            self.metrics.num_prompt_tokens += num_prompt
            if is_streamed:
                told = events(form, news(choices, deadline), count)
                return EventStream(told, stack.pop_all().close)
            last = {n.index: n async for fresh in news(choices, deadline) for n in fresh}
            return JSONResponse(form.whole([last[i] for i in sorted(last)], count()))

    def models(self) -> Response:
        """The one model that is served."""
        model = {"id": self.engine.name, "object": "model", "created": 0, "owned_by": "limbeck"}
        return JSONResponse(
            {"object": "list", "data": [{**model, "max_model_len": self.engine.context}]}
        )

    def health(self) -> Response:
        """Whether texts are written."""
        if not self.writer.is_alive:
            raise Refusal(503, "the model's thread has ended; start the server again")
        return JSONResponse({"status": "ok"})

    def measured(self) -> Response:
        """What Prometheus collects."""
        writer = self.writer
        text = self.metrics.text(
            counters={"generated_tokens_total": writer.num_tokens},
            gauges={
                "rows_writing": writer.num_writing,
                "rows_waiting": writer.num_waiting,
                "texts_in_work": writer.num_open,
            },
        )
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    def check_model(self, asked: Asked) -> None:
        """Refusal for another model than ours: its answers would be signed with a wrong name."""
        if asked.model != self.engine.name:
            what = f"there is no model {asked.model[:200]!r}; this server has {self.engine.name!r}"
            raise Refusal(404, what, "model")

    def check_told(self, wants_logprobs: bool) -> None:
        """Refusal for what the engine does not tell."""
        if wants_logprobs and not self.tells_logprobs:
            raise Refusal(400, "logprobs are not offered for this model", "logprobs")


def seeds(seed: int | None, num: int) -> list[int]:
    """A seed (uint64) for each of a request's texts; the same ones for the same `seed`."""
    if seed is None:
        return [secrets.randbits(64) for _ in range(num)]
    hashes = [blake2b(f"{seed}/{index}".encode(), digest_size=8) for index in range(num)]
    return [int.from_bytes(digest.digest(), "little") for digest in hashes]


async def events(
    form: Form, fresh: AsyncIterator[list[News]], count: Callable[[], dict[str, int]]
) -> AsyncIterator[bytes]:
    """An answer as server-sent events; one that fails in the middle ends with the error."""
    try:
        async for several in fresh:
            yield b"".join(event(form.chunk([told])) for told in several)
        counted = count()
        yield (event(form.chunk([], counted)) if form.tells_usage else b"") + DONE
    except Refusal as refusal:
        yield event(refusal.body)
    except Exception:  # its status was 200 long ago; the client must not take it for whole
        logger.exception("a stream failed")
        yield event(failure().body)


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def failure() -> Refusal:
    return Refusal(500, "the server failed; its log says how")


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called when they end, by whomever they are ended."""

    def __init__(self, told: AsyncIterator[bytes], close: Callable[[], None]):
        super().__init__(
            told, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


async def unless_gone(
    request: Request, work: Coroutine[Any, Any, Response], time_s: float
) -> Response:
    """The response, or an end of the work where the client goes away or the time is over."""
    answering = asyncio.create_task(work)
    going = asyncio.ensure_future(request.receive())  # what comes behind the body is the end
    try:
        await asyncio.wait({answering, going}, timeout=time_s, return_when="FIRST_COMPLETED")
        if answering.done():
            return answering.result()
        if going.done():
            return Response(status_code=GONE)
        raise too_late()
    finally:
        answering.cancel()
        going.cancel()


def create(service: Service) -> FastAPI:
    """The application. It has no routes that tell about itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.writer.start()
        yield
        service.writer.stop()

    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan
    )

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = parse(ChatRequest, await request.body())
        service.check_model(asked)
        return await unless_gone(request, service.chat(asked), service.time_s)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        asked = parse(CompletionRequest, await request.body())
        service.check_model(asked)
        return await unless_gone(request, service.complete(asked), service.time_s)

    @app.get("/v1/models")
    async def models() -> Response:
        return service.models()

    @app.get("/health")
    async def health() -> Response:
        return service.health()

    @app.get("/metrics")
    async def measured() -> Response:
        return service.measured()

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse(refusal.body, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return await refused(request, Refusal(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        return await refused(request, failure())

    return app
