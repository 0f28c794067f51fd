"""vLLM in an environment of its own, spoken to over HTTP: a server that runs, or one started here.

Texts are written by way of the openai engine; what only vLLM has is asked for here. Its words are
those of the releases 0.32 and 0.33; older ones have known holes and are refused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from limbeck import chat, progress
from limbeck.config import HowRun, ModelPath
from limbeck.engines import openai as openai_engine
from limbeck.engines.http.address import plain_address, read_key
from limbeck.engines.local import signature
from limbeck.engines.vllm_server import proof
from limbeck.engines.vllm_server.keeper import KeptProcess
from limbeck.engines.vllm_server.server import Server, ended, wait_until_well, whole_command
from limbeck.errors import UserError
from limbeck.types import Request, Sampling, Scored, Trace

if TYPE_CHECKING:
    from torch import Tensor

Address = Annotated[str, AfterValidator(plain_address)]
Command = Annotated[list[str], Field(min_length=2)]
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]

LOOPBACK = ("127.0.0.1", "localhost")
MAX_ATTEMPTS = 6
WATCH_S = 1.0
# A server's defaults may be the model's own, from its generation_config.json: none is left to it.
# Special tokens stay in a text, as <think> may be one.
ALWAYS: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "return_token_ids": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
}


def check(*, base_url: str, key_variable: str, start: list[str] | None, **_: Any) -> None:
    """Raises UserError if package, key or command is missing, or the command cannot be ours."""
    openai_engine.check(base_url=base_url, key_variable=key_variable)
    if start is None:
        return
    if shutil.which(start[0]) is None:
        way_out = "install vLLM in an environment of its own and give the path of its vllm"
        raise UserError("engine vllm", f"start: there is no command {start[0]!r}", way_out)
    if "serve" not in start:
        what = "start: the command does not say serve"
        raise UserError("engine vllm", what, "write it like [/opt/vllm/bin/vllm, serve]")
    if urlsplit(base_url).hostname not in LOOPBACK:
        what = f"start: {base_url} is not on this machine"
        raise UserError("engine vllm", what, "take http://127.0.0.1:8000/v1")


def connect(
    *,
    model: ModelPath,
    base_url: HowRun[Address] = "http://127.0.0.1:8000/v1",
    start: HowRun[Command | None] = None,
    start_timeout_s: HowRun[PositiveFloat] = 900.0,
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
    concurrency: HowRun[PositiveInt] = 256,
    timeout_s: HowRun[PositiveFloat] = 3600.0,
    key_variable: HowRun[Variable] = "VLLM_API_KEY",
) -> VLLMEngine:
    """The `model` that the server at `base_url` serves, once that is well and proved to be it.

    Without `start` it is a server that runs. A `start` like `[/opt/vllm/bin/vllm, serve]` starts
    one, with the weights as `dtype`, which ends with the engine. At most `concurrency` requests
    are in flight, each with `timeout_s`. The key is in the environment variable `key_variable`.
    """
    check(base_url=base_url, key_variable=key_variable, start=start)
    key = read_key(key_variable, base_url)
    if start is None:
        server = Server(base_url, key, timeout_s)
        wait_until_well(server, None, start_timeout_s)
        return join(server, model, concurrency, key_variable)
    server = Server(base_url, key or token_urlsafe(32), timeout_s)
    if server.is_well() is not None:
        way_out = "leave out start to join it, or take another port"
        raise UserError(server.where, "something answers there already", way_out)
    own = {"VLLM_API_KEY": server.key or "", "VLLM_NO_USAGE_STATS": "1"}
    kept = KeptProcess(whole_command(start, model, base_url, dtype), {**os.environ, **own})
    progress.say(f"vLLM starts; what it says goes to {kept.log}")
    try:
        wait_until_well(server, kept, start_timeout_s)
        engine = join(server, model, concurrency, key_variable, kept)
    except BaseException:
        kept.stop()
        raise
    engine.close = weakref.finalize(engine, kept.forget)
    return engine


def join(
    server: Server,
    model: str,
    concurrency: int,
    key_variable: str,
    kept: KeptProcess | None = None,
) -> VLLMEngine:
    """The engine, once the server is proved to be the one that is wanted."""
    proved = proof.prove(server, model, ALWAYS)
    writer = openai_engine.OpenAIEngine(
        name=signature(model),
        base_url=server.base_url,
        key_variable=key_variable,
        key=server.key,
        concurrency=concurrency,
        timeout_s=server.timeout_s,
        max_attempts=MAX_ATTEMPTS,
        logprobs=True,
    )
    return VLLMEngine(writer.name, proved.num_parameters, server, proved, writer, kept)


@dataclass
class VLLMEngine:
    """Writes, scores and learns with what was `proved` to be the server's model.

    Made by `connect`. `close` stops the server if it was `kept`: started for this engine.
    """

    name: str
    num_parameters: int | None
    server: Server
    proved: proof.Proved
    writer: openai_engine.OpenAIEngine
    kept: KeptProcess | None = None
    costs_money: bool = False
    close: Callable[[], Any] = lambda: None

    @property
    def longest_scored(self) -> int:
        """Tokens of a sequence that can be scored at most: one more is always written."""
        return self.proved.context - 1

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, as they finish; a prompt that is too long gives one of 'error'.

        Raises UserError where no request can succeed, and for knobs that mean something else here.
        """
        if sampling.min_p and sampling.top_p < 1:
            what = "vLLM leaves out by min_p before it does by top_p, Limbeck after it"
            raise UserError("engine vllm", what, "give one of the two")
        body = {
            **ALWAYS,
            "model": self.proved.name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "min_p": sampling.min_p,
            "stop": list(sampling.stop),
            "stop_token_ids": list(self.proved.ends),
        }
        # The writer, which keeps log-probabilities only of plain draws, learns of no other knob:
        # here they are always those of what was drawn from. More than the context is refused.
        writer = replace(self.writer, extra_body=body)
        plain = Sampling(max_tokens=min(sampling.max_tokens, self.proved.context))
        with self._watched(writer):
            for trace in writer.generate(requests, plain):
                yield self._whole(trace)

    @contextmanager
    def _watched(self, writer: openai_engine.OpenAIEngine) -> Iterator[None]:
        """While it writes, a server that was started here and ends is not waited for."""
        if self.kept is None:
            yield
            return
        server, kept, is_done = self.server, self.kept, threading.Event()

        def watch() -> None:
            while not is_done.wait(WATCH_S):
                if not kept.is_alive():
                    writer.stopped = ended(server, kept)
                    return

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            is_done.set()

    def _whole(self, trace: Trace) -> Trace:
        """The trace with the thinking tag that stands in the prompt, where there is one."""
        if not self.proved.opened or trace.finish == "error":
            return trace
        return replace(trace, text=self.proved.opened + trace.text.removeprefix(chat.OPEN))

    def score(self, sequences: Sequence[Sequence[int]], num_top: int = 0) -> Iterator[Scored]:
        """Each sequence as the model sees it, in their order; up to `concurrency` at a time.

        A server gives `num_top` up to its --max-logprobs, which is 20 where it is not told.
        """
        at_once = self.writer.concurrency
        with ThreadPoolExecutor(at_once) as threads:
            for begin in range(0, len(sequences), at_once):
                batch = sequences[begin : begin + at_once]
                yield from threads.map(partial(self._score, num_top=num_top), batch)

    def _score(self, ids: Sequence[int], num_top: int) -> Scored:
        if not ids:
            return Scored((), (), ())
        body = {
            "model": self.proved.name,
            "prompt": list(ids),
            "max_tokens": 1,  # there is no less
            "prompt_logprobs": num_top,
        }
        context = self.proved.context
        way_out = f"score less than {context} tokens, with num_top up to its --max-logprobs"
        answer = self.server.post("/v1/completions", body, way_out)
        return scored(ids, answer["choices"][0]["prompt_logprobs"], num_top)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Writes and scores with these from now on; names are those of a Hugging Face checkpoint.

        The server reads them from a temporary folder, so it is on this machine or sees TMPDIR at
        the same place. What it is writing, it finishes first.
        """
        from safetensors.torch import save_file

        from limbeck import models

        models.check_finite(weights, f"weights for {self.name}")
        way_out = "start it anew, with VLLM_SERVER_DEV_MODE=1 in its environment and on loopback"
        ask = partial(self.server.post, way_out=way_out)
        with tempfile.TemporaryDirectory(prefix="limbeck-weights-") as folder:
            # Copies, as tied weights are one tensor, which a file may not hold twice.
            copies = {k: w.detach().to("cpu", copy=True).contiguous() for k, w in weights.items()}
            save_file(copies, Path(folder) / "model.safetensors")
            ask("/pause?mode=wait", {})
            try:
                reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
                ask("/collective_rpc", reload)
                if not ask("/reset_prefix_cache", {})["success"]:
                    what = "remembers prompts as the old weights read them"
                    raise UserError(self.server.where, what, way_out)
            finally:
                ask("/resume", {})


def scored(ids: Sequence[int], told: Sequence[Any], num_top: int) -> Scored:
    """A server's prompt log-probabilities: for each place a mapping from token id to its own."""
    logprobs: list[float | None] = [None]
    tops: list[list[tuple[int, float]]] = [[]]
    for token, place in zip(ids[1:], told[1:], strict=True):
        logprobs.append(place[str(token)]["logprob"])
        ranked = sorted(place.items(), key=lambda item: item[1]["rank"])[:num_top]
        tops.append([(int(id), one["logprob"]) for id, one in ranked])
    return Scored(
        tuple(logprobs),
        tuple(tuple(id for id, _ in top) for top in tops),
        tuple(tuple(logprob for _, logprob in top) for top in tops),
    )
