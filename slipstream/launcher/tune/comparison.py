# SPDX-License-Identifier: Apache-2.0
"""When one set of measurements is called better than another, and how sets are ranked. Pure.

Every number here is signed so that greater is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

CERTAINTY = 0.05
"""At most this chance that chance alone would have put one set so far above the other. Three runs against three reach
it, just: every one of the first must beat every one of the second, 1 of the 20 orders that six runs can have."""


@dataclass(frozen=True)
class Measurement:
    """One run by the objective: the goals, and by how much (relatively) each limit is exceeded; 0 keeps it."""

    goals: tuple[float, ...]
    excess: tuple[float, ...] = ()


Sample = Sequence[Measurement]


def clearly_greater(first: Sequence[float], second: Sequence[float]) -> bool:
    """One-sided Mann-Whitney test, exact; ties speak against the first."""
    wins = sum(one > other for one in first for other in second)
    return bool(first and second) and _chance_of(wins, len(first), len(second)) <= CERTAINTY


def clearly_better(first: Sample, second: Sample) -> bool:
    """Better in one goal beyond doubt and worse in none; or the only one of the two that keeps the limits."""
    if not first or not second:
        return False
    if feasible(first) != feasible(second):
        return feasible(first) and all(any(run.excess) for run in second) and len(second) > 2 and len(first) > 2
    if not feasible(first):
        return clearly_greater([-sum(run.excess) for run in first], [-sum(run.excess) for run in second])
    pairs = list(zip(_columns(first), _columns(second), strict=True))
    worse = any(clearly_greater(theirs, ours) for ours, theirs in pairs)
    return not worse and any(clearly_greater(ours, theirs) for ours, theirs in pairs)


def feasible(sample: Sample) -> bool:
    """Whether the median of every limit is kept."""
    return not any(statistics.median(column) > 0 for column in zip(*(run.excess for run in sample), strict=True))


def medians(sample: Sample) -> tuple[float, ...]:
    return tuple(statistics.median(column) for column in _columns(sample))


def spread_percent(values: Sequence[float]) -> float:
    """From the least to the greatest, in percent of the median."""
    middle = statistics.median(values)
    return float(100 * (max(values) - min(values)) / abs(middle)) if middle else 0.0


def front(samples: Sequence[Sample]) -> list[int]:
    """The places of those that no other one dominates: Pareto, by medians, among those that keep the limits."""
    points = {place: medians(sample) for place, sample in enumerate(samples) if sample and feasible(sample)}
    return [place for place, point in points.items() if not any(_dominates(other, point) for other in points.values())]


def ranking(samples: Sequence[Sample]) -> list[int]:
    """Places, best first; empty samples are left away.

    Those that keep the limits come first, by their median; the others by how much they exceed. With several goals, one
    front after the other, each by the sum of its members' ranks over the goals, so that no goal's unit counts.
    """
    keeping = [place for place, sample in enumerate(samples) if sample and feasible(sample)]
    others = [place for place, sample in enumerate(samples) if sample and not feasible(sample)]
    ordered: list[int] = []
    while keeping:
        first = [keeping[place] for place in front([samples[place] for place in keeping])]
        sums = _rank_sums([medians(samples[place]) for place in first])
        ordered += [place for _, place in sorted(zip(sums, first, strict=True))]
        keeping = [place for place in keeping if place not in first]
    return ordered + sorted(others, key=lambda place: (_total_excess(samples[place]), place))


def _total_excess(sample: Sample) -> float:
    return math.fsum(statistics.median(column) for column in zip(*(run.excess for run in sample), strict=True))


def _columns(sample: Sample) -> list[tuple[float, ...]]:
    return list(zip(*(run.goals for run in sample), strict=True))


def _dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first != second and all(one >= other for one, other in zip(first, second, strict=True))


def _rank_sums(points: Sequence[tuple[float, ...]]) -> list[int]:
    return [
        sum(sum(other[goal] > point[goal] for other in points) for goal in range(len(point))) for point in points
    ]


def _chance_of(wins: int, first: int, second: int) -> float:
    """That ``first`` values win at least so many of the pairs with ``second`` others of the same distribution."""
    favourable = sum(_orders(first, second, count) for count in range(wins, first * second + 1))
    return float(favourable / math.comb(first + second, first))


@cache
def _orders(first: int, second: int, wins: int) -> int:
    """In how many orders of all values exactly so many pairs are won: the largest value is one of either side."""
    if wins < 0:
        return 0
    if first == 0 or second == 0:
        return int(wins == 0)
    return _orders(first - 1, second, wins - second) + _orders(first, second - 1, wins)
