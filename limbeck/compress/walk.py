"""Texts that walk through a model block by block, and what they bring to each of its matrices.

Only one block and one batch are on the device at a time: what memory must hold there is that of
one block. Between blocks the hidden states wait on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from limbeck.compress import anatomy
from limbeck.errors import UserError

STRIP = 256
"""Rows that are added up at once."""


@dataclass
class Stats:
    """What came into one matrix, over all tokens; float32, on the device of its block.

    Matrices that read the same, such as q, k and v, share one object.
    """

    num_tokens: int
    squares: Tensor
    """(in,) the sum of x²."""
    magnitudes: Tensor
    """(in,) the sum of |x|."""
    gram: Tensor | None
    """(in, in) the sum of x xᵀ, where it was asked for."""
    factors: dict[float, Tensor] = field(default_factory=dict, repr=False)
    """What `hessian.inverse_factor` has made of it."""

    def add(self, inputs: Tensor) -> None:
        """Counts more tokens' inputs, (tokens, in)."""
        inputs = inputs.float()
        self.num_tokens += len(inputs)
        for some in inputs.split(STRIP):  # what lies near is summed up in no time
            self.squares += some.square().sum(0)
            self.magnitudes += some.abs().sum(0)
        if self.gram is not None:
            add_gram(self.gram, inputs)


@dataclass
class Block:
    """One block of a decoder, and what the texts brought to it."""

    index: int
    name: str
    module: nn.Module
    matrices: dict[str, nn.Module]
    stats: dict[str, Stats]
    influence: float
    """1 - the mean cosine of what goes in and what comes out (ShortGPT, arXiv:2403.03853)."""


@dataclass
class Batch:
    """Texts of like length on their way: `hidden` is (B, L, C), and B texts have `lengths`.

    `arguments` are what the model gives each block beside the hidden states: by position, by name.
    """

    hidden: Tensor
    lengths: list[int]
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def through(self, block: nn.Module, index: int, device: torch.device) -> Tensor:
        """What comes out of the block of this index, (B, L, C), on the device."""
        positional, named = _moved(self.arguments[index], device)
        with torch.no_grad():
            out = block(self.hidden.to(device), *positional, **named)
        return out[0] if isinstance(out, tuple) else out

    def real(self, values: Tensor) -> Tensor:
        """(B, L, ...), flat in some models, as (tokens, ...) without the padding."""
        values = values.reshape(len(self.lengths), -1, values.shape[-1])
        if min(self.lengths) == values.shape[1]:
            return values.flatten(0, 1)
        return torch.cat([row[:n] for row, n in zip(values, self.lengths, strict=True)])


def walk(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    *,
    device: str | torch.device,
    gram: bool = False,
    changes: bool = True,
    max_batch_tokens: int = 2048,
) -> Iterator[Block]:
    """The blocks in order, each with what the texts bring to its matrices; none may be empty.

    The loop's body may change a block's matrices in place: the texts then go on through the block
    as it is left, so that later ones see what earlier ones have become. `changes=False` saves
    that pass. `gram` adds up x xᵀ, too, which takes most of the time; it is gone when the loop goes
    on. Without texts there are no stats. The model is left in evaluation mode, and where it was.
    """
    device, names = torch.device(device), anatomy.names(model)
    batches = list(begin(model, texts, max_batch_tokens))
    for index, (name, module) in enumerate(zip(names, anatomy.blocks(model), strict=True)):
        home = next(module.parameters()).device
        module.to(device)
        block = Block(index, name, module, anatomy.matrices(module), {}, 0.0)
        measure(block, batches, device, gram, changes)
        yield block
        if changes and index + 1 < len(names):
            for batch in batches:
                batch.hidden = batch.through(module, index, device).to("cpu")
        module.to(home)
        for stats in block.stats.values():
            stats.gram = None
            stats.factors.clear()


def begin(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], max_batch_tokens: int
) -> Iterator[Batch]:
    """The texts as they come to the first block, in batches of like length.

    Padded at the right, where causal attention never looks. Recorders stand in the place of the
    blocks while the model runs, and so see what it would give each.
    """
    model.eval()
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, Tensor)
    in_tuples = bool(texts) and _gives_tuples(model, texts[0][0])
    with _recording(anatomy.blocks(model), in_tuples) as recorders:
        for chosen in _like_length(texts, max_batch_tokens):
            lengths = [len(text) for text in chosen]
            padded = [[*text, *[text[0]] * (lengths[0] - len(text))] for text in chosen]
            ids = torch.tensor(padded, device=embeddings.device)
            with torch.no_grad():
                model.base_model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
            arguments = [recorder.seen[1:] for recorder in recorders]
            yield Batch(recorders[0].seen[0].to("cpu"), lengths, arguments)


def _gives_tuples(model: PreTrainedModel, token: int) -> bool:
    """Whether blocks give their hidden states as the first of several values, as Falcon's do."""
    found: list[bool] = []
    first = anatomy.blocks(model)[0]
    ids = torch.tensor([[token]], device=model.device)
    with (
        torch.no_grad(),
        first.register_forward_hook(lambda _, inputs, out: found.append(isinstance(out, tuple))),
    ):
        model.base_model(ids, use_cache=False)
    return found[0]


@contextmanager
def _recording(layers: nn.ModuleList, in_tuples: bool) -> Iterator[list[_Recorder]]:
    """Puts recorders in the place of the blocks, and the blocks back."""
    whole = list(layers)
    recorders = [_Recorder(layer, in_tuples) for layer in whole]
    try:
        for index, recorder in enumerate(recorders):
            layers[index] = recorder
        yield recorders
    finally:
        for index, layer in enumerate(whole):
            layers[index] = layer


def _like_length(
    texts: Sequence[Sequence[int]], max_batch_tokens: int
) -> Iterator[list[Sequence[int]]]:
    """The texts, longest first, so that no batch is more than `max_batch_tokens` wide and high."""
    waiting = sorted(texts, key=len, reverse=True)
    while waiting:
        num = max(1, max_batch_tokens // len(waiting[0]))
        yield waiting[:num]
        waiting = waiting[num:]


class _Recorder(nn.Module):
    """Stands in the place of a block, looks like it, and keeps what it is `seen` with."""

    def __init__(self, layer: nn.Module, in_tuples: bool) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not as a part: the model has it no longer
        self.in_tuples = in_tuples
        self.seen: tuple[Tensor, tuple[Any, ...], dict[str, Any]]

    def forward(
        self, hidden: Tensor, *positional: Any, **named: Any
    ) -> Tensor | tuple[Tensor, ...]:
        self.seen = (hidden, positional, named)
        return (hidden,) if self.in_tuples else hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)


def measure(
    block: Block, batches: Sequence[Batch], device: torch.device, gram: bool, changes: bool
) -> None:
    """Fills in what the batches bring to a block; they go on at once if nothing will change it.

    UserError where they overflow on their way.
    """
    distance, num_tokens = 0.0, 0
    for batch in batches:
        with watching(block, batch, gram):
            out = batch.through(block.module, block.index, device)
        before, after = batch.real(batch.hidden).to(device), batch.real(out)
        distance += float((1 - cosine_similarity(before.float(), after.float(), dim=-1)).sum())
        num_tokens += len(after)
        if not changes:
            batch.hidden = out.to("cpu")
    block.influence = distance / max(1, num_tokens)
    for name, stats in block.stats.items():
        if not bool(stats.squares.isfinite().all()):
            way_out = "take other weights, or a wider dtype"
            raise UserError(f"{block.name}.{name}", "what comes into it is not finite", way_out)
        if stats.gram is not None:
            mirror(stats.gram)


@contextmanager
def watching(block: Block, batch: Batch, gram: bool) -> Iterator[None]:
    """Adds what comes into a block's matrices to its stats, while a batch goes through it."""
    last: tuple[Tensor | None, str] = (None, "")

    def look(name: str, inputs: Tensor) -> None:
        nonlocal last
        if inputs is last[0]:
            block.stats[name] = block.stats[last[1]]
            return
        last = (inputs, name)
        if name not in block.stats:
            block.stats[name] = nothing_yet(inputs, gram)
        block.stats[name].add(batch.real(inputs))

    with ExitStack() as hooks:
        for name, matrix in block.matrices.items():
            hooks.enter_context(
                matrix.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
            )
        yield


def nothing_yet(inputs: Tensor, gram: bool) -> Stats:
    """Stats of no token, for inputs of this width and device."""
    zeros = torch.zeros(inputs.shape[-1], device=inputs.device)
    square = inputs.new_zeros(len(zeros), len(zeros), dtype=torch.float32) if gram else None
    return Stats(0, zeros, zeros.clone(), square)


def add_gram(gram: Tensor, inputs: Tensor) -> None:
    """Adds inputsᵀ inputs on and right of the diagonal: the rest is the same, see `mirror`."""
    for start in range(0, len(gram), STRIP):
        strip = gram[start : start + STRIP, start:]
        strip.addmm_(inputs[:, start : start + STRIP].T, inputs[:, start:])


def mirror(gram: Tensor) -> None:
    """Fills in what `add_gram` left out, left of the diagonal."""
    for start in range(0, len(gram), STRIP):
        gram[start + STRIP :, start : start + STRIP] = gram[
            start : start + STRIP, start + STRIP :
        ].T


def _moved(value: Any, device: torch.device) -> Any:
    """Whatever a block is given, its tensors on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(part, device) for part in value)
    return value
