"""Models that the decoder does not know, through transformers' own generate: slower, same words.

Tokens are drawn by `draw.draw` inside generate, so every knob means what it means elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from limbeck import models
from limbeck.engines.drafts import (
    Draft,
    NotFiniteError,
    Prompt,
    no_room,
    read_prompts,
    stop_ids,
    trace_of,
)
from limbeck.engines.draw import Knobs, draw, uniform
from limbeck.errors import UserError
from limbeck.types import Request, Sampling, Trace


class ForeignEngine:
    """Writes with `model` itself: `batch_rows` texts at once, until the last of them has ended."""

    costs_money = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_rows: int = 512,
        device: torch.device | None = None,
    ) -> None:
        self.model: Any = model.eval()
        self.model.to(device or model.device)
        self.tokenizer = tokenizer
        self.name, self.batch_rows = name, batch_rows
        self.num_parameters = models.num_parameters(model)
        self.stops = stop_ids(model, tokenizer)
        self.model.generation_config = GenerationConfig(pad_token_id=0)  # its own knobs are ours
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", 2**31)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, prompts of like length together; as `local_engine.LocalEngine`."""
        prompts = read_prompts(self.tokenizer, requests)
        fitting = []
        for request in requests:
            prompt = prompts[request.problem.id]
            if 0 < len(prompt.ids) < self.context:
                fitting.append((prompt, request))
            else:
                yield no_room(request, prompt, self.name)
        fitting.sort(key=_length)
        groups = [fitting]
        if fitting and _length(fitting[-1]) + sampling.max_tokens > self.context:
            # Ended rows are led on by generate, and must not leave the context before the others.
            groups = [list(same) for _, same in groupby(fitting, _length)]
        for group in groups:
            for start in range(0, len(group), self.batch_rows):
                yield from self._write(group[start : start + self.batch_rows], sampling)

    def load_weights(self, named: Mapping[str, Tensor]) -> None:
        """Newer weights of the same model, by their names in `state_dict()`; tied ones once.

        UserError, and no change, where they do not fit.
        """
        own = self.model.state_dict()
        given = {own[name].data_ptr() for name in named if name in own}
        missing = [name for name, weight in own.items() if weight.data_ptr() not in given]
        wrong = [n for n, w in named.items() if n not in own or w.shape != own[n].shape]
        if missing or wrong:
            what = f"cannot take the new weights: {(missing + wrong)[0]} is missing or does not fit"
            way_out = "give it the weights of the same model"
            raise UserError(f"model {self.name}", what, way_out)
        models.check_finite(named, f"model {self.name}")
        self.model.load_state_dict(dict(named), strict=False)  # what is tied is named once

    def text(self, ids: Sequence[int]) -> str:
        """What tokens say, special ones included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _write(
        self, pairs: Sequence[tuple[Prompt, Request]], sampling: Sampling
    ) -> Iterator[Trace]:
        whose = {Draft(prompt.ids, request.seed, sampling): request for prompt, request in pairs}
        drafts = [*whose]
        longest = max(len(draft.prompt) for draft in drafts)
        padding = [longest - len(draft.prompt) for draft in drafts]
        ids = [[0] * n + [*draft.prompt] for n, draft in zip(padding, drafts, strict=True)]
        seen = [[0] * n + [1] * (longest - n) for n in padding]
        with torch.inference_mode():
            self.model.generate(
                torch.tensor(ids, device=self.model.device),
                attention_mask=torch.tensor(seen, device=self.model.device),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=min(sampling.max_tokens, self.context - len(drafts[0].prompt)),
                    pad_token_id=0,
                ),
                logits_processor=LogitsProcessorList([Drawing(self, drafts)]),
                stopping_criteria=StoppingCriteriaList([Ended(drafts)]),
            )
        if broken := [d for d in drafts if not all(map(math.isfinite, d.logprobs))]:
            raise NotFiniteError(broken).told(self.name, whose)
        for draft, (prompt, request) in zip(drafts, pairs, strict=True):
            yield trace_of(request, prompt, draft, self.name, self.stops, self.text)


def _length(pair: tuple[Prompt, Request]) -> int:
    return len(pair[0].ids)


class Drawing(LogitsProcessor):
    """Draws each draft's next token as we do, and leaves generate nothing else to choose."""

    def __init__(self, engine: ForeignEngine, drafts: Sequence[Draft]) -> None:
        self.engine, self.drafts, self.step = engine, drafts, 0
        self.seeds = np.array([draft.seed for draft in drafts], dtype=np.uint64)
        self.knobs: Knobs | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self.knobs is None:
            samplings = [draft.sampling for draft in self.drafts]
            self.knobs = Knobs.of(samplings, scores.shape[-1], scores.device)
        uniforms = torch.from_numpy(uniform(self.seeds, self.step)).to(scores.device)
        tokens, logprobs = draw(scores.float(), uniforms, self.knobs)
        self.step += 1
        rows = zip(self.drafts, tokens.tolist(), logprobs.tolist(), strict=True)
        for draft, token, logprob in rows:
            if draft.finish is None:
                limit = min(draft.sampling.max_tokens, self.engine.context - len(draft.prompt))
                draft.take(token, logprob, limit, self.engine.stops, self.engine.text)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(-1, tokens[:, None], 0.0)


class Ended(StoppingCriteria):
    """Which drafts are finished."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self.drafts = drafts

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        ended = [draft.finish is not None for draft in self.drafts]
        return torch.tensor(ended, device=input_ids.device)
