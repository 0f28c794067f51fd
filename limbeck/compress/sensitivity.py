"""How much worse a model becomes when one block alone is made smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from limbeck.compress import anatomy
from limbeck.compress.walk import Block
from limbeck.errors import UserError

HELD_BACK = 5
"""One text in so many judges, the others calibrate."""

Texts = Sequence[Sequence[int]]


def held_back(texts: Texts) -> tuple[Texts, Texts]:
    """(those that judge, those that calibrate). UserError where there is but one.

    A single token says nothing of how well it was foreseen: such texts are left out.
    """
    texts = [text for text in texts if len(text) > 1]
    if len(texts) < 2:
        what = "needs two texts of two tokens at least, to hold one back"
        raise UserError("scan", what, "raise num_texts, or take longer texts")
    return texts[::HELD_BACK], [text for i, text in enumerate(texts) if i % HELD_BACK]


def losses(
    model: PreTrainedModel,
    block: Block,
    texts: Texts,
    levels: Sequence[float],
    change: Callable[[Block, float], None],
) -> list[float]:
    """The model's loss on texts with a block that `change` made smaller in place, at each level.

    The block is made whole again.
    """
    whole = {name: anatomy.weight_of(m).clone() for name, m in block.matrices.items()}
    found = []
    for level in levels:
        change(block, level)
        found.append(loss(model, texts))
        for name, matrix in block.matrices.items():
            anatomy.set_weight(matrix, whole[name])
    return found


def loss(model: PreTrainedModel, texts: Texts) -> float:
    """What a model finds of whole texts: nats per token, the first of each left out."""
    total, num = 0.0, 0
    for text in texts:
        ids = torch.tensor([text], device=model.device)
        with torch.no_grad():
            mean = model(input_ids=ids, labels=ids, use_cache=False).loss
        total += float(mean) * (len(text) - 1)
        num += len(text) - 1
    return total / num
