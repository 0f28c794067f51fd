"""Whether a teacher that reasons shows it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from limbeck.engines.http.answers import bills_thinking, has_thinking
from limbeck.errors import UserError
from limbeck.types import Trace

logger = logging.getLogger(__name__)

MOST_SILENT = 0.05  # of the answers
MIN_SILENT = 20  # answers, before that share means anything


@dataclass
class Reasoning:
    """Looks at each answer of the server that `where` names.

    Where reasoning `is_expected`, an answer without it becomes an error, since it must not count
    as one that was given without thinking.
    """

    where: str
    is_expected: bool
    num_answers: int = 0
    num_silent: int = 0

    def checked(self, trace: Trace, body: Any) -> Trace:
        """The trace, or an error that was paid for."""
        self.num_answers += 1
        if trace.finish == "error" or has_thinking(trace.text):
            return trace
        if self.is_expected:
            self._warn("an answer came without reasoning; such are errors")
            return replace(trace, text="", finish="error", token_ids=None, logprobs=None)
        if bills_thinking(body):
            kept = "answers are kept without; `reasons: true` would refuse them"
            self._warn(f"reasoning is billed and not shown; {kept}")
        return trace

    def _warn(self, what: str) -> None:
        self.num_silent += 1
        if self.num_silent == 1:
            logger.warning("%s: %s", self.where, what)

    def stop(self) -> UserError | None:
        """Why nothing more should be asked, where too many answers came without."""
        too_many = self.num_silent >= max(MIN_SILENT, MOST_SILENT * self.num_answers)
        if not self.is_expected or not too_many:
            return None
        what = f"{self.num_silent:,} of {self.num_answers:,} answers came without reasoning"
        way_out = "check the model and how its server parses reasoning, or drop `reasons`"
        return UserError(self.where, what, way_out)
