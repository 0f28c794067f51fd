"""A Hugging Face causal language model writes many texts at once, token by token.

Four things make it quick. Each distinct prompt is read once and its keys and values are repeated
for its samples. The cache lies ready and is written in place. Attention of one new token is two
plain batched products with the heads that share keys side by side. Texts that have ended leave the
batch.

Every sample draws with its own uniform numbers, a hash of (seed, step): what it says does not
depend on who shares its batch, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase

from limbeck import chat
from limbeck.engines.draw import draw, uniform
from limbeck.errors import UserError
from limbeck.types import Finish, Request, Sampling, Trace

ATTENTION = "limbeck_decode"
PREFILL_TOKENS = 16_384  # read at once; bounds the memory of long prompts
GROW_COLUMNS = 64
KEEP_SHARE = 0.7  # of a batch's rows still writing, below which the others' memory is given back


@dataclass(frozen=True)
class Prompt:
    """What a request asks, as the model reads it."""

    request: Request
    ids: tuple[int, ...]
    opened: str


class LocalEngine:
    """Writes with `model`, which may be in the middle of its training: its mode is restored.

    `name` is what its traces are signed with; `batch_rows` how many texts are written at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_rows: int = 512,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.name, self.batch_rows = name, batch_rows
        self.costs_money = False
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.context = _context(model)
        self.stops = _stop_ids(model, tokenizer)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, prompts of like length together.

        A prompt that leaves no room in the context gives an empty trace that says 'error'.
        """
        prompts = self._prompts(requests)
        fitting = [p for p in prompts if 0 < len(p.ids) < self.context]
        for prompt in prompts:
            if not 0 < len(prompt.ids) < self.context:
                yield self._trace(prompt, [], [], "error")
        fitting.sort(key=lambda p: (len(p.ids), p.ids))
        for start in range(0, len(fitting), self.batch_rows):
            yield from self._write(fitting[start : start + self.batch_rows], sampling)

    def _prompts(self, requests: Sequence[Request]) -> list[Prompt]:
        """A problem's samples share its prompt."""
        rendered: dict[str, tuple[tuple[int, ...], str]] = {}
        for request in requests:
            if request.problem.id not in rendered:
                messages = request.problem.messages
                text = chat.render_prompt(self.tokenizer, messages)
                ids = tuple(chat.prompt_ids(self.tokenizer, messages))
                rendered[request.problem.id] = ids, chat.opened_thinking(text)
        return [Prompt(request, *rendered[request.problem.id]) for request in requests]

    def _write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Trace]:
        """A batch from its prompts to its last token."""
        with torch.inference_mode(), decoding(self.model):
            ids, logprobs, lengths = write_batch(
                self.model,
                [p.ids for p in prompts],
                np.array([p.request.seed for p in prompts], dtype=np.uint64),
                sampling,
                self.stops,
                self.context,
            )
        _check_finite(logprobs, lengths, prompts, self.name)
        traces = []
        for row, prompt in enumerate(prompts):
            written = ids[row, : lengths[row]].tolist()
            finish: Finish = "stop" if written[-1] in self.stops else "length"
            traces.append(
                self._trace(prompt, written, logprobs[row, : lengths[row]].tolist(), finish)
            )
        return traces

    def _trace(
        self, prompt: Prompt, ids: list[int], logprobs: list[float], finish: Finish
    ) -> Trace:
        said = ids[:-1] if finish == "stop" else ids
        text = str(self.tokenizer.decode(said, skip_special_tokens=False))
        return Trace(
            id=prompt.request.id,
            problem_id=prompt.request.problem.id,
            index=prompt.request.index,
            text=prompt.opened + text if finish != "error" else "",
            finish=finish,
            model=self.name,
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(ids),
            token_ids=tuple(ids),
            logprobs=tuple(logprobs),
        )


def write_batch(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    seeds: NDArray[np.uint64],
    sampling: Sampling,
    stops: Sequence[int],
    context: int,
) -> tuple[Tensor, Tensor, list[int]]:
    """(ids (B, M), log-probabilities (B, M), lengths) of B texts of at most M tokens.

    Equal prompts must stand side by side. A length counts the stop token.
    """
    device = model.device
    cache, starts, logits = prefill(model, prompts)
    rows = len(prompts)
    room = [min(sampling.max_tokens, context - len(ids)) for ids in prompts]
    limits = torch.tensor(room, device=device)  # (B,)
    most = int(limits.max())
    ids = torch.zeros((rows, most), dtype=torch.long, device=device)
    logprobs = torch.zeros((rows, most), device=device)
    lengths = limits.clone()
    alive = torch.arange(rows, device=device)  # which text each row of the cache writes
    writing = torch.ones(rows, dtype=torch.bool, device=device)  # by row of the cache
    stop_ids = torch.tensor(stops, device=device)
    for step in range(most):
        uniforms = torch.from_numpy(uniform(seeds, step)).to(device)
        tokens, logp = draw(logits.float(), uniforms, sampling)
        ids[alive, step], logprobs[alive, step] = tokens, logp
        ended = torch.isin(tokens, stop_ids) & writing
        lengths[alive[ended]] = step + 1
        writing &= ~ended & (limits[alive] > step + 1)
        num_writing = int(writing.sum())
        if num_writing == 0:
            break
        if num_writing < KEEP_SHARE * len(alive):
            kept = writing.nonzero()[:, 0]
            cache.keep(kept)
            alive, starts, tokens, writing = alive[kept], starts[kept], tokens[kept], writing[kept]
            seeds = seeds[kept.cpu().numpy()]
        logits = forward(model, tokens[:, None], cache, starts)
    return ids.cpu(), logprobs.cpu(), lengths.tolist()


class KeyValues:
    """A cache that lies ready and is written in place, every row in the same column.

    Prompts are aligned on the right; what stands left of a row's start is never looked at.
    transformers calls `update` and `get_seq_length`, the rest is ours.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], column: int) -> None:
        self.keys, self.values = keys, values  # one (B, K, columns, E) a layer
        self.column = column  # the first that is not written yet

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the new columns (B, K, n, E) and gives all columns up to them."""
        end = self.column + key.shape[2]
        if layer_idx == len(self.keys):
            self.keys.append(key.new_empty(0))
            self.values.append(value.new_empty(0))
        for store, new in ((self.keys, key), (self.values, value)):
            if store[layer_idx].ndim < 4 or store[layer_idx].shape[2] < end:
                store[layer_idx] = _with_room(store[layer_idx], new, self.column, end)
            store[layer_idx][:, :, self.column : end] = new
        return self.keys[layer_idx][:, :, :end], self.values[layer_idx][:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many columns are written."""
        return self.column

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these; a row may be named often."""
        self.keys = [key[:, :, : self.column].index_select(0, rows) for key in self.keys]
        self.values = [value[:, :, : self.column].index_select(0, rows) for value in self.values]


def _with_room(old: Tensor, new: Tensor, written: int, needed: int) -> Tensor:
    """The written columns of `old` in a tensor for at least `needed` columns."""
    rows, heads, _, width = new.shape
    room = new.new_empty((rows, heads, needed + max(GROW_COLUMNS, needed // 2), width))
    if written:
        room[:, :, :written] = old[:, :, :written]
    return room


def prefill(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]
) -> tuple[KeyValues, Tensor, Tensor]:
    """(cache, starts (B,), logits (B, V) of the first new token); equal neighbours once."""
    longest = max(map(len, prompts))
    groups = [(ids, sum(1 for _ in same)) for ids, same in groupby(prompts)]
    per_pass = max(1, PREFILL_TOKENS // longest)
    caches, starts, logits = [], [], []
    for begin in range(0, len(groups), per_pass):
        part = groups[begin : begin + per_pass]
        padded = [[ids[0]] * (longest - len(ids)) + list(ids) for ids, _ in part]
        padding = torch.tensor([longest - len(ids) for ids, _ in part], device=model.device)
        cache = KeyValues([], [], 0)
        behind = forward(model, torch.tensor(padded, device=model.device), cache, padding)
        counts = torch.tensor([count for _, count in part], device=model.device)
        rows = torch.arange(len(part), device=model.device).repeat_interleave(counts)
        cache.keep(rows)
        caches.append(cache)
        starts.append(padding[rows])
        logits.append(behind[rows])
    return joined(caches), torch.cat(starts), torch.cat(logits)


def joined(caches: Sequence[KeyValues]) -> KeyValues:
    """The rows of several caches that stand in the same column."""
    if len(caches) == 1:
        return caches[0]
    keys = [torch.cat(layer) for layer in zip(*(c.keys for c in caches), strict=True)]
    values = [torch.cat(layer) for layer in zip(*(c.values for c in caches), strict=True)]
    return KeyValues(keys, values, caches[0].column)


def forward(model: PreTrainedModel, ids: Tensor, cache: KeyValues, starts: Tensor) -> Tensor:
    """Logits (B, V) behind the last of the new tokens `ids` (B, n), which enter the cache."""
    begin, end = cache.column, cache.column + ids.shape[1]
    columns = torch.arange(begin, end, device=ids.device)
    output = model(
        input_ids=ids,
        position_ids=(columns - starts[:, None]).clamp(min=0),
        attention_mask=_mask(columns, starts, end, model.dtype),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.column = end
    return output.logits[:, -1]


def _mask(columns: Tensor, starts: Tensor, end: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores, (B, 1, n, columns), or None where everything is visible."""
    if len(columns) == 1 and not starts.any():
        return None
    every = torch.arange(end, device=columns.device)
    seen = (every <= columns[:, None]) & (every >= starts[:, None, None])  # (B, n, columns)
    seen |= every == columns[:, None]  # padding sees itself: a softmax over nothing is not a number
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, float("-inf")
    )[:, None]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of n new tokens, (B, H, n, E) to (B, n, H, E), over keys (B, K, columns, E).

    torch's own for many new tokens; for one, two batched products in which the H / K heads that
    share a key are rows of one matrix, so that no key is repeated (5 times quicker on a CPU).
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise _cannot_decode(module, "soft-capped scores or attention sinks")
    if query.shape[2] > 1:
        out = functional.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    rows, heads, _, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    grouped = query.reshape(rows * key.shape[1], -1, width)  # (B K, H / K, E)
    scores = torch.bmm(grouped * scaling, key.flatten(0, 1).transpose(1, 2))
    if attention_mask is not None:
        scores = scores.view(rows, heads, -1) + attention_mask[:, 0]
        scores = scores.view(len(grouped), -1, key.shape[2])
    shares = scores.float().softmax(-1).to(value.dtype)
    return torch.bmm(shares, value.flatten(0, 1)).reshape(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, attend)


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode and with our attention; afterwards as it was."""
    before, training = model.config._attn_implementation, model.training
    model.config._attn_implementation = ATTENTION
    model.eval()
    try:
        yield
    finally:
        model.config._attn_implementation = before
        model.train(training)


def _context(model: PreTrainedModel) -> int:
    """How many tokens, prompt included, the model can attend to as we attend: all to all.

    A sliding window is no different from full attention for a text that fits in it. Raises
    UserError for layers that are not attention.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise _cannot_decode(model, ", ".join(sorted(kinds)))
    context = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds or (not kinds and window is not None)
    return min(context, window) if slides and window else context


def _check_finite(
    logprobs: Tensor, lengths: Sequence[int], prompts: Sequence[Prompt], name: str
) -> None:
    written = torch.arange(logprobs.shape[1])[None] < torch.tensor(lengths)[:, None]  # (B, M)
    bad = (~torch.isfinite(logprobs) & written).any(1).nonzero()[:, 0].tolist()
    if bad:
        ids = dict.fromkeys(prompts[row].request.problem.id for row in bad)
        what = "gives log-probabilities that are not finite for problem "
        what += ", ".join([*ids][:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise UserError(f"model {name}", what, "its weights are broken: take another checkpoint")


def _cannot_decode(module: Any, what: str) -> UserError:
    return UserError(
        f"model {module.config.name_or_path}",
        f"has {what}, which the local engine cannot decode",
        "serve it with vLLM and use the openai engine",
    )


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The end of a turn and whatever else the model's generation config ends with."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    more = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return tuple(sorted({chat.end_of_turn(tokenizer), *more}))
