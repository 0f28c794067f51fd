"""FLOPs by one rule for all models, which budgets of recipes count by."""

from __future__ import annotations

from pathlib import Path

from limbeck import store


def forward_flops(num_parameters: int, num_tokens: int) -> float:
    """2·N·D: a multiply and an add per parameter and token (Kaplan et al. 2020, 2001.08361).

    Where head and embedding are one table, that is what torch counts, to half a percent, but for
    the products within attention. Of a causal text of L tokens these are 2·layers·width·L a token,
    so layers·width·L/N of the rest: a tenth at 100 tokens of a miniature and at 4k tokens of a
    1.5B model, nine tenths at 32k. A table of its own for the embedding counts here, though it is
    only looked up. `models.flops_per_token` leaves that out and attention in.
    """
    return 2.0 * num_parameters * num_tokens


def training_flops(num_parameters: int, num_tokens: int) -> float:
    """6·N·D: the backward pass costs twice the forward pass."""
    return 3.0 * forward_flops(num_parameters, num_tokens)


def flops_of(output: str) -> float | None:
    """The FLOPs that the stage which wrote an output says it took; None where it does not say."""
    manifest = Path(output).parent / "stage.json"
    summary = store.read_sealed(manifest)["summary"] if manifest.exists() else {}
    return summary.get("flops")
