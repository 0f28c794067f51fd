"""The student in training as an engine: what it writes, and how often that is right."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limbeck import ledger
from limbeck.engines.sampling import requests_for
from limbeck.folder import StageFolder
from limbeck.types import Problem, Request, Sampling, Trace
from limbeck.verifiers.judging import Ask, judge_all

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.engines.foreign import ForeignEngine
    from limbeck.engines.local_engine import LocalEngine


class Author:
    """Writes with a copy of the student's weights, as they were at the last `refresh`.

    Adapters are written with as they will be saved: added to the weights that they adapt. `name`
    is what the traces are signed with, `batch_rows` how many texts are written at once; an `engine`
    that can load weights writes in the place of the local one, which computes in `dtype`, by
    default the student's.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        batch_rows: int = 512,
        engine: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        from limbeck.train.adapters import num_parameters

        self.student, self.engine = student, engine
        self.name, self.num_parameters = name, num_parameters(student)
        if engine is None:
            self.engine = _engine(student, tokenizer, name, batch_rows, dtype)
        else:
            self.refresh()

    def refresh(self) -> None:
        """Takes the student's newest weights."""
        from limbeck.train import adapters

        self.engine.load_weights(adapters.plain_weights(self.student))

    def write(self, requests: Sequence[Request], sampling: Sampling) -> list[Trace]:
        """One trace a request, in their order; a text depends on its request's seed alone."""
        traces = {trace.id: trace for trace in self.engine.generate(requests, sampling)}
        return [traces[request.id] for request in requests]

    def flops(self, traces: Sequence[Trace]) -> float:
        """What writing these has cost."""
        num_tokens = sum(trace.prompt_tokens + trace.completion_tokens for trace in traces)
        return ledger.forward_flops(self.num_parameters, num_tokens)


def _engine(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    batch_rows: int,
    dtype: torch.dtype | None,
) -> LocalEngine | ForeignEngine:
    from limbeck.engines.decoder.weights import cannot_read
    from limbeck.engines.foreign import ForeignEngine
    from limbeck.engines.local_engine import LocalEngine
    from limbeck.train import adapters

    is_foreign = cannot_read(student.config)
    model, device = student, student.device
    if not adapters.is_plain(student):
        model = adapters.plain_copy(student)
    elif is_foreign or dtype is not None:  # it would write with the student itself, or change it
        model = copy.deepcopy(student)
    if is_foreign:
        model.set_attn_implementation("sdpa")
    if dtype is not None:
        for weight in model.parameters():  # and no buffer: rotary frequencies need their bits
            weight.data = weight.data.to(dtype)
    kind = ForeignEngine if is_foreign else LocalEngine
    return kind(model, tokenizer, name=name, batch_rows=batch_rows, device=device)


def pass_at_1(
    author: Author,
    problems: Sequence[Problem],
    sampling: Sampling,
    num_samples: int,
    seed: int,
    out: StageFolder,
    ask: Ask | None = None,
) -> float:
    """The share of the author's answers that are right, over `num_samples` for each problem.

    The same weights give the same answers, whenever they are asked. What could not be judged
    counts as wrong. UserError where a problem needs a model as its judge and `ask` is None.
    """
    requests = requests_for(problems, num_samples, seed, out)
    with out.account("rollout") as row:
        traces = author.write(requests, sampling)
        row["tokens_in"] = sum(trace.prompt_tokens for trace in traces)
        row["tokens_out"] = sum(trace.completion_tokens for trace in traces)
        row["flops"] = author.flops(traces)
    pairs = [(request.problem, trace) for request, trace in zip(requests, traces, strict=True)]
    verdicts = judge_all(pairs, out, ask, lambda _: None)
    return sum(verdict.correct is True for verdict in verdicts) / len(verdicts)
