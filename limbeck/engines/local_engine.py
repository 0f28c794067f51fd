"""The local engine: a Hugging Face causal language model writes many texts at once.

What makes it quick: rows refill as they finish; a prompt is read once for all its samples, whose
rows look at the same keys and values; the cache lies ready and is written in place; projections are
fused; on a CPU a small compiled kernel does what stands between the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import memory, models
from limbeck.engines.decoder import kernel, weights
from limbeck.engines.decoder.forward import Operations, read
from limbeck.engines.decoder.plain import Plain
from limbeck.engines.decoder.quantized import Stored
from limbeck.engines.drafts import (
    Draft,
    NotFiniteError,
    no_room,
    read_prompts,
    stop_ids,
    trace_of,
)
from limbeck.engines.pool import DRAW_NUMBERS, Pool, batches
from limbeck.errors import UserError
from limbeck.types import Request, Sampling, Scored, Trace

REFILL_SHARE = 16  # a sixteenth of the rows is free before new prompts are read
MEMORY_SHARE = 0.7  # of what is free, for keys and values


class LocalEngine:
    """Writes with a copy of the model's weights; `load_weights` brings newer ones.

    `name` is what its traces are signed with; `batch_rows` how many texts are written at once;
    `compiled` whether the kernel is used where it can be; `device` where it writes, the model's
    own by default. With `stored` its weights are what a folder of codes holds, and the model only
    says what it is.
    """

    costs_money = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_rows: int = 512,
        compiled: bool = True,
        device: torch.device | None = None,
        stored: Stored | None = None,
    ) -> None:
        self.tokenizer, self.name, self.batch_rows = tokenizer, name, batch_rows
        self.num_parameters = models.num_parameters(model)
        self.config = model.config
        self.decoder = weights.read(model, device, stored)
        self.context = self.longest_scored = self.decoder.context
        self.stops = stop_ids(model, tokenizer)
        self.operations: Operations = Plain()
        if compiled and kernel.fits(self.decoder) and (built := kernel.load()):
            self.operations = built
            built.take_over(self.decoder)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, as they finish.

        A prompt that leaves no room in the context gives an empty trace that says 'error'.
        Raises UserError where the model's numbers are not finite.
        """
        prompts = read_prompts(self.tokenizer, requests)
        fitting = []
        for request in requests:
            prompt = prompts[request.problem.id]
            if 0 < len(prompt.ids) < self.context:
                fitting.append(request)
            else:
                yield no_room(request, prompt, self.name)
        if not fitting:
            return
        asked = {prompts[request.problem.id].ids for request in fitting}
        pool = self.pool(
            min(self.batch_rows, len(fitting)),
            num_prompts=len(asked),
            longest_prompt=max(map(len, asked)),
            longest_own=min(sampling.max_tokens, self.context - min(map(len, asked))),
        )
        pool.refill = -(-pool.num_rows // REFILL_SHARE)
        whose: dict[Draft, Request] = {}
        for request in fitting:
            draft = Draft(prompts[request.problem.id].ids, request.seed, sampling)
            whose[draft] = request
            pool.add(draft)
        while whose:
            try:
                moved = pool.step()
            except NotFiniteError as error:
                raise error.told(self.name, whose) from error
            for draft in moved:
                if draft.finish is not None:
                    request = whose.pop(draft)
                    prompt = prompts[request.problem.id]
                    yield trace_of(request, prompt, draft, self.name, self.stops, self.text)

    def pool(
        self,
        num_rows: int | None = None,
        *,
        num_prompts: int | None = None,
        longest_prompt: int | None = None,
        longest_own: int | None = None,
    ) -> Pool:
        """Fresh rows, `num_rows` or as many as the memory holds; at most `batch_rows`.

        Without lengths, every prompt and text that the context allows has room.
        """
        longest_prompt = longest_prompt or self.context
        longest_own = longest_own or self.context
        dtype = self.operations.cache_dtype(self.decoder)
        tokens = longest_prompt + longest_own
        if self.decoder.device.type == "cpu":  # takes only the pages that are written to
            tokens = min(tokens, self.context)
        each = self.decoder.cache_bytes(dtype) * tokens
        fitting = int(MEMORY_SHARE * memory.left(self.decoder.device) / each)
        if fitting < 1:
            what = f"has no memory for keys and values of one text of {longest_own} tokens"
            raise UserError(f"model {self.name}", what, "lower max_tokens, or take a smaller model")
        num_rows = min(num_rows or self.batch_rows, fitting)
        return Pool(
            self.decoder,
            self.operations,
            stops=self.stops,
            decode=self.text,
            num_rows=num_rows,
            num_prompts=min(num_prompts or num_rows, num_rows),
            longest_prompt=longest_prompt,
            longest_own=longest_own,
        )

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]], num_top: int = 0) -> Iterator[Scored]:
        """How likely each given token is after those before it, in the order of `sequences`.

        UserError for a sequence that is longer than the context, or a token that does not exist.
        """
        num_tokens = len(self.decoder.embedding)
        for ids in sequences:
            if len(ids) > self.context or any(not 0 <= token < num_tokens for token in ids):
                what = f"cannot score {len(ids)} tokens, or one of them"
                way_out = f"give at most {self.context} tokens below {num_tokens}"
                raise UserError(f"model {self.name}", what, way_out)
        found = {i: Scored((), (), ()) for i, ids in enumerate(sequences) if not ids}
        order = sorted(
            (i for i in range(len(sequences)) if i not in found), key=lambda i: len(sequences[i])
        )
        places = iter(order)
        for batch in batches([tuple(sequences[i]) for i in order]):
            hidden = read(self.decoder, batch, self.operations)
            for ids, states in zip(batch, hidden, strict=True):
                found[next(places)] = self._scored(ids, states, num_top)
        yield from (found[i] for i in range(len(sequences)))

    def _scored(self, ids: Sequence[int], hidden: Tensor, num_top: int) -> Scored:
        logprobs: list[float | None] = [None]
        top_ids: list[tuple[int, ...]] = [()]
        top_logprobs: list[tuple[float, ...]] = [()]
        rows = max(1, DRAW_NUMBERS // len(self.decoder.head.weight))
        targets = torch.tensor(ids[1:], device=hidden.device)
        for states, wanted in zip(hidden[:-1].split(rows), targets.split(rows), strict=True):
            table = self.decoder.head(states).float().log_softmax(-1)  # (n, V)
            logprobs += table.gather(-1, wanted[:, None])[:, 0].tolist()
            top = table.topk(min(num_top, table.shape[-1]))
            top_ids += map(tuple, top.indices.tolist())
            top_logprobs += map(tuple, top.values.tolist())
        return Scored(tuple(logprobs), tuple(top_ids), tuple(top_logprobs))

    def load_weights(self, named: Mapping[str, Tensor]) -> None:
        """Newer weights of the same model, by their Hugging Face names (as in `state_dict()`)."""
        self.decoder.load(named, self.config)

    def text(self, ids: Sequence[int]) -> str:
        """What tokens say, special ones included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
