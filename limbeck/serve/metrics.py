"""Counts and times in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Histogram:
    """How often a time fell below each of the bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        yield f"# TYPE {name} histogram"
        for bound, count in zip((*SECONDS, "+Inf"), accumulate(self.counts), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {sum(self.counts)}"


@dataclass
class Metrics:
    """What the server has done so far."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By route and status."""
    num_prompt_tokens: int = 0
    first_token_s: Histogram = field(default_factory=Histogram)
    """From the end of the queue to its first token."""
    request_s: Histogram = field(default_factory=Histogram)
    """Of requests that wrote something, to the end of the answer."""

    def text(self, counters: Mapping[str, int], gauges: Mapping[str, int]) -> str:
        """All of them, together with numbers that others keep."""
        return "\n".join(self._lines(counters, gauges)) + "\n"

    def _lines(self, counters: Mapping[str, int], gauges: Mapping[str, int]) -> Iterator[str]:
        yield "# TYPE limbeck_requests_total counter"
        for (route, status), count in sorted(self.requests.items()):
            yield f'limbeck_requests_total{{route="{route}",status="{status}"}} {count}'
        counters = {"prompt_tokens_total": self.num_prompt_tokens, **counters}
        for kind, numbers in (("counter", counters), ("gauge", gauges)):
            for name, value in numbers.items():
                yield f"# TYPE limbeck_{name} {kind}"
                yield f"limbeck_{name} {value}"
        yield from self.first_token_s.lines("limbeck_time_to_first_token_seconds")
        yield from self.request_s.lines("limbeck_request_seconds")
