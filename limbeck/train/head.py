"""The language model's head and its loss, tile by tile: (N, V) logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.train.attention import PACKED_ATTENTION
from limbeck.train.batch import TokenBatch, Tokens
from limbeck.train.losses import cross_entropy
from limbeck.train.policy_loss import PolicyLoss

TokenLoss = Callable[[Tensor, Tokens], Tensor]

TILE_BYTES = 64 * 2**20
ROWS_TO_ADD = 4096

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

    def forward(
        self, batch: TokenBatch, token_loss: TokenLoss | PolicyLoss | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Sum of weight * loss over the batch's tokens: a float32 scalar.

        Without a loss, what policy losses need: the log-probability (M,) of every token that is
        learned and the entropy (M,) of the distribution it came from, in nats, differentiable.
        """
        hidden = self.hidden(batch).index_select(0, batch.loss_positions)  # (M, C)
        weight = self.model.get_output_embeddings().weight  # (V, C)
        tok = batch.loss_tokens()
        if token_loss is None:
            return logp_and_entropy(hidden, weight, tok.targets)
        if not isinstance(token_loss, PolicyLoss):
            return chunked_loss(hidden, weight, tok, token_loss)
        temperature = token_loss.temperature
        logp, entropy = logp_and_entropy(hidden, weight, tok.targets, temperature=temperature)
        return (token_loss(logp, entropy.detach(), tok) * tok.weights).sum()

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
    sum up in float32. A side that is frozen costs nothing. Goes backward once.
    """
    wanted = _wanted(hidden, head_weight)
    return _ChunkedLoss.apply(hidden, head_weight, tok, token_loss, tile_tokens, wanted)


def logp_and_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    tile_tokens: int | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(log p(target), entropy of p), each (N,) float32 in nats; p is softmax(hidden @ head^T / T).

    hidden (N, C), head_weight (V, C), targets (N,). Differentiable in both for whatever comes from
    above, which is known in the backward only: that makes the logits again, tile by tile, if there
    are more than one.
    """
    return _LogpAndEntropy.apply(hidden, head_weight, targets, tile_tokens, temperature)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        tok: Tokens,
        token_loss: TokenLoss,
        tile_tokens: int | None,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradients = _Gradients(hidden, head_weight, wanted)
        dtype = _product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            for tile, rows, weight, logits in _logits(hidden, head_weight, dtype, tile_tokens):
                loss, grad_logits = _loss_and_grad(logits, tok[tile], token_loss, any(wanted))
                total += loss
                gradients.add(tile, grad_logits, rows, weight)
                del logits, grad_logits  # before the next tile's are made
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "a chunked loss goes backward once"
        gradients, ctx.gradients = ctx.gradients, None
        return *gradients.times(grads[0]), None, None, None, None


class _LogpAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        tile_tokens: int | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype, ctx.tile_tokens = _product_dtype(hidden), tile_tokens
        ctx.temperature, ctx.log_p = temperature, None
        ctx.set_materialize_grads(False)
        logp = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        entropy = torch.empty_like(logp)
        with torch.autocast(hidden.device.type, enabled=False):
            for tile, _, _, logits in _logits(hidden, head_weight, ctx.dtype, tile_tokens):
                log_p = logits.div_(temperature).log_softmax(-1)  # (N, V)
                logp[tile] = log_p.gather(1, targets[tile, None])[:, 0]
                entropy[tile] = -log_p.exp().mul_(log_p).sum(-1)
                if len(log_p) == len(logp):  # a single tile is kept: it is as large as allowed
                    ctx.log_p = log_p
        ctx.save_for_backward(hidden, head_weight, targets, entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """d logp / dz = onehot(target) - p, d entropy / dz = -p (log p + entropy), z = logits/T."""
        hidden, head_weight, targets, entropy = ctx.saved_tensors
        kept, ctx.log_p = ctx.log_p, None  # it is overwritten
        grad_logp, grad_entropy = grads
        if grad_logp is None:
            grad_logp = torch.zeros_like(entropy)
        gradients = _Gradients(hidden, head_weight, ctx.needs_input_grad[:2])
        with torch.autocast(hidden.device.type, enabled=False):
            for tile, rows, weight in _tiles(hidden, head_weight, ctx.dtype, ctx.tile_tokens):
                log_p = kept
                if log_p is None:
                    log_p = (rows @ weight.T).float().div_(ctx.temperature).log_softmax(-1)
                grad_logits = log_p.exp()  # (N, V)
                pull = above = grad_logp[tile, None]
                if grad_entropy is not None:
                    log_p.add_(entropy[tile, None]).mul_(grad_entropy[tile, None])
                    above = log_p.add_(pull)
                grad_logits.mul_(-above).scatter_add_(1, targets[tile, None], pull)
                gradients.add(tile, grad_logits, rows, weight)
                del log_p, above, grad_logits  # before the next tile's are made
        return *gradients.times(1 / ctx.temperature), None, None, None


def _wanted(hidden: Tensor, head_weight: Tensor) -> tuple[bool, bool]:
    is_on = torch.is_grad_enabled()
    return is_on and hidden.requires_grad, is_on and head_weight.requires_grad


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    is_autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_autocast else hidden.dtype


def _logits(
    hidden: Tensor, head_weight: Tensor, dtype: torch.dtype, tile_tokens: int | None
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Tile after tile, as `_tiles`, and the logits (N, V) float32."""
    for tile, rows, weight in _tiles(hidden, head_weight, dtype, tile_tokens):
        yield tile, rows, weight, (rows @ weight.T).float()


def _tiles(
    hidden: Tensor, head_weight: Tensor, dtype: torch.dtype, tile_tokens: int | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Tile after tile: (which tokens, hidden (N, C), head weight (V, C)), in `dtype`."""
    if tile_tokens is None:
        tile_tokens = max(16, TILE_BYTES // (4 * head_weight.shape[0]))
    weight = head_weight.to(dtype)
    for start in range(0, hidden.shape[0], tile_tokens):
        tile = slice(start, start + tile_tokens)
        yield tile, hidden[tile].to(dtype), weight


def _loss_and_grad(
    logits: Tensor, tok: Tokens, token_loss: TokenLoss, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """A tile's weighted loss and, if needed, its gradient with respect to the logits, (N, V)."""
    if token_loss is cross_entropy:
        return _cross_entropy_and_grad(logits, tok)
    with torch.set_grad_enabled(needs_grad):
        logits.requires_grad_(needs_grad)
        loss = (token_loss(logits, tok) * tok.weights).sum()
    if not needs_grad:
        return loss, logits
    (grad_logits,) = torch.autograd.grad(loss, logits)
    return loss.detach(), grad_logits


def _cross_entropy_and_grad(logits: Tensor, tok: Tokens) -> tuple[Tensor, Tensor]:
    """The same for cross-entropy in the logits' own memory, in half the time that autograd takes.

    p = softmax(logits) replaces them; log sum exp(logits) = largest logit - log(largest p), which
    holds where the target's own p has underflowed. d loss / d logits = p - onehot(target).
    """
    targets = tok.targets[:, None]  # (N, 1)
    target, largest = logits.gather(1, targets), logits.amax(-1, keepdim=True)
    p = torch.softmax(logits, -1, out=logits)
    loss = largest - p.amax(-1, keepdim=True).log() - target  # (N, 1)
    p.scatter_add_(1, targets, torch.full_like(loss, -1.0))
    weights = tok.weights[:, None]
    return (loss * weights).sum(), p.mul_(weights)


class _Gradients:
    """What a loss's tiles add up to for the hidden states (N, C) and the head's weight (V, C).

    None where it is not `wanted`. The weight's is summed up in float32.
    """

    def __init__(self, hidden: Tensor, head_weight: Tensor, wanted: Sequence[bool]):
        self.dtype = head_weight.dtype
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(head_weight, dtype=torch.float32) if wanted[1] else None

    def add(self, tile: slice, grad_logits: Tensor, rows: Tensor, weight: Tensor) -> None:
        """One tile's: grad_logits (N, V), rows (N, C), weight (V, C)."""
        grad_logits = grad_logits.to(rows.dtype)
        if self.hidden is not None:
            self.hidden[tile] = grad_logits @ weight
        if self.weight is not None:
            _add_product(self.weight, grad_logits, rows)

    def times(self, scale: Tensor | float) -> tuple[Tensor | None, Tensor | None]:
        """Both, multiplied in place, the weight's in the weight's own type."""
        hidden = None if self.hidden is None else self.hidden.mul_(scale)
        weight = None if self.weight is None else self.weight.mul_(scale).to(self.dtype)
        return hidden, weight


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (V, C) += left^T right, in float32; left (N, V), right (N, C).

    Products of a narrower type are made and added a few rows at a time: a whole one would be as
    large as the head, and written to memory and read again.
    """
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
        return
    for start in range(0, total.shape[0], ROWS_TO_ADD):
        rows = slice(start, start + ROWS_TO_ADD)
        total[rows] += left[:, rows].T @ right
