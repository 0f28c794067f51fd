"""What answers may cost, in tokens or in money, and what they have cost so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, NonNegativeFloat

from limbeck.errors import UserError


def _both(prices: dict[Literal["input", "output"], float]) -> dict[Any, float]:
    if len(prices) < 2:
        raise ValueError("needs both sides; write {input: 0.55, output: 2.19}, per million tokens")
    return prices


# What a million tokens cost, in the currency of one's bill: {input: 0.55, output: 2.19}
Prices = Annotated[dict[Literal["input", "output"], NonNegativeFloat], AfterValidator(_both)]


@dataclass
class Budget:
    """Counts every answer that was billed, of use or not; None is no limit.

    What has been asked when a limit is reached is still answered, and costs beyond it.
    """

    prices: Prices | None = None
    max_cost: float | None = None
    max_total_tokens: int | None = None
    num_answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    wasted_in: int = 0
    wasted_out: int = 0
    """Tokens that were billed and are of no use, as far as no account has them yet."""
    is_blind: bool = False
    """An answer came without its token counts."""

    def count(self, usage: tuple[int, int] | None, num_answers: int = 1) -> None:
        """Adds answers by their (tokens in, tokens out), None where nobody knows."""
        self.num_answers += num_answers
        self.is_blind |= usage is None
        tokens_in, tokens_out = usage or (0, 0)
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out

    def waste(self, usage: tuple[int, int]) -> None:
        """Adds an answer that was billed for nothing."""
        self.count(usage)
        self.wasted_in += usage[0]
        self.wasted_out += usage[1]

    def take_waste(self) -> tuple[int, int]:
        """What was wasted since the last time, for an account."""
        wasted = self.wasted_in, self.wasted_out
        self.wasted_in = self.wasted_out = 0
        return wasted

    @property
    def cost(self) -> float:
        """So far, 0 without prices."""
        return self.price_of(self.tokens_in, self.tokens_out) or 0.0

    def price_of(self, tokens_in: int, tokens_out: int) -> float | None:
        """What so many tokens cost; None without prices."""
        if self.prices is None:
            return None
        return tokens_in / 1e6 * self.prices["input"] + tokens_out / 1e6 * self.prices["output"]

    @property
    def is_reached(self) -> bool:
        """Whether no more may be asked."""
        money = self.max_cost is not None and self.cost >= self.max_cost
        total = self.tokens_in + self.tokens_out
        tokens = self.max_total_tokens is not None and total >= self.max_total_tokens
        limited = self.max_cost is not None or self.max_total_tokens is not None
        return money or tokens or (limited and self.is_blind)

    def stop(self, where: str) -> UserError:
        """What was reached, and how to go on."""
        answers = f"{self.num_answers:,} answers, {self.tokens_in:,} tokens in"
        spent = f"{answers} and {self.tokens_out:,} out"
        if self.is_blind:
            what = f"tells no token counts, so that no budget can be kept, after {spent}"
            return UserError(where, what, "drop max_cost and max_total_tokens, or ask another")
        kept = "nothing that was paid for is lost"
        if self.max_cost is not None and self.cost >= self.max_cost:
            what = f"the budget is reached: {self.cost:,.4g} of max_cost {self.max_cost:,g}"
            return UserError(where, f"{what} for {spent}", f"raise max_cost to go on: {kept}")
        total = self.tokens_in + self.tokens_out
        what = f"the budget is reached: {total:,} of max_total_tokens {self.max_total_tokens:,}"
        return UserError(where, f"{what} for {spent}", f"raise max_total_tokens to go on: {kept}")
