# SPDX-License-Identifier: Apache-2.0
"""Statistics on timings: medians, quartiles, and ratios that say how sure they are. Pure functions.

Machines are shared and drift by a factor of two within minutes, so contestants run in turn, A B C A B C, and a
ratio is taken inside each round, where both sides met the same machine; its spread is that over the rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Quartiles:
    """A sample in three numbers of its own unit."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """How many times faster, and the lowest and highest that any single round gave."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


def quartiles(samples: Sequence[float]) -> Quartiles:
    """Quartiles by linear interpolation between the sorted samples; one sample is all three."""
    if not samples:
        raise ValueError("quartiles of nothing")
    if len(samples) == 1:
        return Quartiles(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Quartiles(low, median, high)


def ratio_by_round(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio:
    """How many times faster ``other`` is than ``base``: one ratio of medians a round, then their median and range."""
    ratios = [
        statistics.median(slow) / statistics.median(fast) for slow, fast in zip(base, other, strict=True) if slow and fast
    ]
    if not ratios:
        raise ValueError("a ratio needs a round in which both sides were timed")
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean for ratios: twice as fast here and half as fast there is 1."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
