"""The language model's head and its loss, tile by tile: (N, V) logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.train.attention import PACKED_ATTENTION
from limbeck.train.batch import TokenBatch, Tokens

TokenLoss = Callable[[Tensor, Tokens], Tensor]

TILE_BYTES = 64 * 2**20

# Config fields by which some models change their logits after the head.
LOGIT_FIELDS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


class TokenModel(nn.Module):
    """A causal language model as a function of a packed batch and a loss of tokens.

    The head is computed inside `forward`, so that sharding hooks see every use of a weight.
    The wrapped model attends inside documents only from now on; to use it without this wrapper,
    `set_attn_implementation` back.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        _refuse_unknown_heads(model)
        model.set_attn_implementation(PACKED_ATTENTION)
        self.model = model

    def forward(self, batch: TokenBatch, token_loss: TokenLoss) -> Tensor:
        """Sum of weight * loss over the batch's tokens: a float32 scalar."""
        hidden = self.hidden(batch)[batch.loss_positions]  # (M, C)
        weight = self.model.get_output_embeddings().weight  # (V, C)
        return chunked_loss(hidden, weight, batch.loss_tokens(), token_loss)

    def hidden(self, batch: TokenBatch) -> Tensor:
        """The last hidden states, (N, C)."""
        output = self.model.base_model(
            input_ids=batch.ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            document_layout=batch.layout,
        )
        return output.last_hidden_state[0]


def _refuse_unknown_heads(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    fields = [name for name in LOGIT_FIELDS if getattr(model.config, name, None) not in (None, 1.0)]
    if not isinstance(head, nn.Linear) or head.bias is not None or fields:
        raise UserError(
            type(model).__name__,
            f"its head is more than one matrix ({', '.join(fields) or head})",
            "take a model with a plain linear head, such as Qwen2, Qwen3 or Llama",
        )


def chunked_loss(
    hidden: Tensor,
    head_weight: Tensor,
    tok: Tokens,
    token_loss: TokenLoss,
    tile_tokens: int | None = None,
) -> Tensor:
    """sum_n tok.weights[n] * token_loss(hidden @ head_weight^T, tok)[n], float32 scalar.

    hidden (N, C), head_weight (V, C). Each tile's logits are made, judged and differentiated
    before the next tile's, so there are three matrix products and nothing is computed twice
    (as in Liger Kernel, arXiv:2410.10989). Under autocast the products run in its dtype and
    sum up in float32.
    """
    if tile_tokens is None:
        tile_tokens = max(16, TILE_BYTES // (4 * head_weight.shape[0]))
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or head_weight.requires_grad)
    return _ChunkedLoss.apply(hidden, head_weight, tok, token_loss, tile_tokens, needs_grad)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        tok: Tokens,
        token_loss: TokenLoss,
        tile_tokens: int,
        needs_grad: bool,
    ) -> Tensor:
        device = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        weight = head_weight.to(dtype)  # (V, C)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros_like(head_weight, dtype=torch.float32) if needs_grad else None
        with torch.autocast(device, enabled=False):
            for start in range(0, hidden.shape[0], tile_tokens):
                tile = slice(start, start + tile_tokens)
                rows = hidden[tile].to(dtype)  # (N, C)
                logits = (rows @ weight.T).float()  # (N, V)
                loss, grad_logits = _loss_and_grad(logits, tok[tile], token_loss, needs_grad)
                total += loss
                if grad_hidden is not None and grad_weight is not None:
                    grad_logits = grad_logits.to(dtype)
                    grad_hidden[tile] = grad_logits @ weight
                    _add_product(grad_weight, grad_logits.T, rows)
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(head_weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        return grad_hidden * scale, grad_weight * scale, None, None, None, None


def _loss_and_grad(
    logits: Tensor, tok: Tokens, token_loss: TokenLoss, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """A tile's weighted loss and, if needed, its gradient with respect to the logits, (N, V)."""
    with torch.set_grad_enabled(needs_grad):
        logits.requires_grad_(needs_grad)
        loss = (token_loss(logits, tok) * tok.weights).sum()
    if not needs_grad:
        return loss, logits
    (grad_logits,) = torch.autograd.grad(loss, logits)
    return loss.detach(), grad_logits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where total is float32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
