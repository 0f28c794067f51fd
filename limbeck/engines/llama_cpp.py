"""A GGUF file as an engine: llama.cpp writes, as it would for anybody who has the file.

It runs in a process of its own (`llama_cpp_server`), which may die of a file without harm to us.
Prompts are rendered by the template that the file brings and read by llama.cpp's own tokenizer. Of
its samplers only those run that a recipe can ask for, in Limbeck's order.

What is written does not depend on who is written beside it where the file's matrices are quantized
(q8_0, q4_0: the same bits, measured). At f32, f16 and bf16 llama.cpp multiplies one row by another
way than several, so that sums round otherwise; a draw near a border may then fall on its other
side. Keys and values are float16, as llama.cpp has them by default.
"""

from __future__ import annotations

import http.client
import math
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from limbeck import memory, store
from limbeck.config import FilePath, HowRun
from limbeck.engines.drafts import Prompt, no_room, read_prompts
from limbeck.engines.llama_cpp_server.server import Connection, Refused, Server, read, respond
from limbeck.engines.llama_cpp_server.tokenizer import Tokenizer
from limbeck.errors import UserError
from limbeck.guard.gguf import Header, read_gguf
from limbeck.types import Request, Sampling, Trace

HANG_UP_S = 0.01
PROBE_S = 10.0  # of silence, before it is asked whether it lives
MEMORY_SHARE = 0.7  # of what is free, for keys and values; it is taken at once
SAMPLERS = ("temperature", "top_k", "top_p", "min_p")


def check(*, model: str, **_: Any) -> None:
    """UserError where llama.cpp is not installed, or the file is not whole."""
    if find_spec("xllamacpp") is None:
        what, way_out = "llama.cpp is not installed (xllamacpp)", "pip install 'limbeck[gguf]'"
        raise UserError("engine llama_cpp", what, way_out)
    if not model.startswith("./"):
        read_gguf(Path(model))


def connect(
    *,
    model: FilePath,
    context: PositiveInt | None = None,
    batch_rows: HowRun[PositiveInt] = 8,
    threads: HowRun[PositiveInt | None] = None,
) -> LlamaCppEngine:
    """The GGUF file `model`: one that stage `export` wrote, `./export/gguf/q8_0.gguf`, or any.

    Up to `batch_rows` texts are written at once, or as many as the memory has room for, each of at
    most `context` tokens, its prompt included; by default as many as the model has learned to
    place.
    `threads` are as many as torch has been given, or the machine has.
    """
    check(model=model)
    path = Path(model)
    store.verify(path)
    header = read_gguf(path)
    tokens = context or header.context
    if tokens > header.context:
        what = f"has learned to place {header.context:,} tokens, not {tokens:,}"
        raise UserError(model, what, f"take a context of {header.context} or fewer")
    room = memory.left_here() // header.cache_bytes  # in tokens
    if tokens > room:
        what = f"keys and values of {tokens:,} tokens take more memory than is free"
        raise UserError(model, what, f"give it a context of {room // 2}, or fewer")
    rows = max(1, min(batch_rows, int(MEMORY_SHARE * room / tokens)))
    server = Server(path, num_rows=rows, context=tokens, threads=threads or _threads())
    return LlamaCppEngine(header, server, tokens, rows)


def _threads() -> int:
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class LlamaCppEngine:
    """Writes with a GGUF file that a `server` has loaded; made by `connect`.

    A trace has log-probabilities where llama.cpp tells all of them: not of a text that a stop
    string ended, nor where a character takes several tokens.
    """

    header: Header
    server: Server
    context: int
    batch_rows: int
    costs_money: bool = False
    name: str = field(init=False)
    num_parameters: int | None = field(init=False)

    def __post_init__(self) -> None:
        places = [part for part in self.header.path.parts if part != "gguf"]
        self.name = "/".join(places[-2:])  # not the whole path, as in `local.signature`
        self.num_parameters = self.header.num_parameters
        self.tokenizer: Any = Tokenizer(self.header, self.server)
        self.ends = {id: self.server.detokenize([id]) for id in self.server.ends()}

    def close(self) -> None:
        """Ends llama.cpp."""
        self.server.close()

    def peak_memory_mib(self) -> float | None:
        """The most that llama.cpp has held; None where the system does not tell."""
        return self.server.peak_memory_mib()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, as they finish.

        A prompt that leaves no room in the context gives an empty trace that says 'error'.
        UserError where llama.cpp dies, or says nothing for minutes.
        """
        prompts = read_prompts(self.tokenizer, requests)
        asked: set[Connection] = set()
        waiting: set[Future[Trace]] = set()
        with ThreadPoolExecutor(self.batch_rows, thread_name_prefix="llama.cpp") as threads:
            try:
                for request in requests:
                    prompt = prompts[request.problem.id]
                    if 0 < len(prompt.ids) < self.context:
                        waiting.add(threads.submit(self._write, request, prompt, sampling, asked))
                    else:
                        yield no_room(request, prompt, self.name)
                while waiting:
                    done, waiting = wait(waiting, PROBE_S, FIRST_COMPLETED)
                    if not done:
                        self.server.probe()
                    yield from (future.result() for future in done)
            finally:
                leave(waiting, asked)

    def _write(
        self, request: Request, prompt: Prompt, sampling: Sampling, asked: set[Connection]
    ) -> Trace:
        """Has a text written; its connection is among the `asked` for so long."""
        body = question(prompt.ids, request.seed, sampling, self.context) | {
            "stop": list(sampling.stop)
        }
        with self.server.connected() as connection:
            asked.add(connection)
            try:
                told = read(respond(connection, "/completion", body))
            except Refused as error:
                what = f"llama.cpp objects to problem {request.problem.id}: {error}"
                raise UserError(self.server.where, what, "ask it otherwise") from error
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise self.server.ended() from error
            finally:
                asked.discard(connection)
        return self._trace(request, prompt, told)

    def _trace(self, request: Request, prompt: Prompt, told: Mapping[str, Any]) -> Trace:
        ids, text = told["tokens"], told["content"]
        if told["stop_type"] == "eos":
            text = text.removesuffix(self.ends[ids[-1]])
        found = [logprob(each) for each in told.get("completion_probabilities", ())]
        if not all(map(math.isfinite, found)):
            what = "gives log-probabilities that are not finite for problem "
            way_out = "its weights are broken: export another checkpoint"
            raise UserError(self.server.where, what + request.problem.id, way_out)
        return Trace(
            id=request.id,
            problem_id=request.problem.id,
            index=request.index,
            text=prompt.opened + text,
            finish="length" if told["stop_type"] == "limit" else "stop",
            model=self.name,
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(ids),
            token_ids=tuple(ids),
            logprobs=tuple(found) if len(found) == len(ids) else None,
        )


def leave(waiting: Collection[Future[Trace]], asked: set[Connection]) -> None:
    """Ends what is not waited for any more; llama.cpp stops a text whose asker has hung up."""
    for future in waiting:
        future.cancel()
    while any(future.running() for future in waiting):
        for connection in [*asked]:
            connection.hang_up()
        time.sleep(HANG_UP_S)


def question(
    prompt: Sequence[int], seed: int, sampling: Sampling, context: int, num_top: int = 1
) -> dict[str, Any]:
    """What llama.cpp's /completion is asked, with none of its defaults left to it."""
    return {
        "prompt": list(prompt),
        "n_predict": min(sampling.max_tokens, context - len(prompt)),
        "samplers": SAMPLERS,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": seed % (2**32 - 1),  # the last one asks for chance
        "n_probs": num_top,
        # Of the plain softmax they are cheap, of what was drawn from the vocabulary is sorted.
        "post_sampling_probs": sampling.temperature > 0 and not _is_plain(sampling),
        "return_tokens": True,
        "cache_prompt": False,
    }


def _is_plain(sampling: Sampling) -> bool:
    """Whether what is drawn from is the model's own distribution."""
    filters = (sampling.temperature, sampling.top_p, sampling.top_k or 0, sampling.min_p)
    return filters == (1.0, 1.0, 0, 0.0)


def logprob(told: Mapping[str, Any]) -> float:
    """A token's, however llama.cpp says it; what rounds above certainty is certain.

    It says nothing instead of what is no number.
    """
    if told.get("prob"):
        return min(0.0, math.log(told["prob"]))
    said = told.get("logprob")
    return math.nan if said is None else min(0.0, float(said))
