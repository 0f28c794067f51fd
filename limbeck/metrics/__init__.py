"""What graded samples tell: pass@k, intervals that know of problems, paired tests, ratings.

Throughout, P is the number of problems, and a problem's mean is the share of its samples that are
correct. Problems are what was drawn at random, so all uncertainty is over problems: sixteen samples
of one problem are not sixteen problems (Miller 2024, https://arxiv.org/abs/2411.00640).
"""

from limbeck.metrics import elo
from limbeck.metrics.counts import cons_at_k, pass_at_k
from limbeck.metrics.intervals import bootstrap, interval, mean_interval
from limbeck.metrics.needed import needed
from limbeck.metrics.paired import PairedTest, change, paired_test, seeds_test, verdict
from limbeck.metrics.results import (
    NATS,
    SHARES,
    noise_of,
    result,
    summarise,
    unit_of,
    value_of,
    weight_of,
)

__all__ = [
    "NATS",
    "SHARES",
    "PairedTest",
    "bootstrap",
    "change",
    "cons_at_k",
    "elo",
    "interval",
    "mean_interval",
    "needed",
    "noise_of",
    "paired_test",
    "pass_at_k",
    "result",
    "seeds_test",
    "summarise",
    "unit_of",
    "value_of",
    "verdict",
    "weight_of",
]
