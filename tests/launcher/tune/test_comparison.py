# SPDX-License-Identifier: Apache-2.0
"""One set of measurements is better than another only when chance hardly explains it; ranks respect limits and fronts."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.launcher.tune.comparison import (
    CERTAINTY,
    Measurement,
    clearly_better,
    clearly_greater,
    front,
    ranking,
    spread_percent,
)

NUMBERS = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=6)


def runs(*goals, excess=()):
    return [Measurement((goal,) if isinstance(goal, int | float) else goal, excess) for goal in goals]


def chance_by_counting(first, second):
    """That a random split of distinct values wins at least as many pairs: the definition of the test, counted out."""
    wins = sum(a > b for a in first for b in second)
    places = range(len(first) + len(second))
    favourable = 0
    for chosen in itertools.combinations(places, len(first)):
        rest = [place for place in places if place not in chosen]
        favourable += sum(a > b for a in chosen for b in rest) >= wins
    return favourable / math.comb(len(places), len(first))


@given(NUMBERS, NUMBERS)
def test_greater_is_the_exact_rank_test(first, second):
    assert clearly_greater(first, second) == (chance_by_counting(first, second) <= CERTAINTY)


@given(NUMBERS, NUMBERS)
def test_both_are_never_greater_than_each_other(first, second):
    assert not (clearly_greater(first, second) and clearly_greater(second, first))


def test_three_against_three_need_full_separation():
    assert clearly_greater([11, 12, 13], [8, 9, 10])
    assert not clearly_greater([11, 12, 10], [8, 9, 10])
    assert not clearly_greater([100, 101], [1, 2])
    assert not clearly_greater([], [1.0])


def test_better_in_one_goal_and_worse_in_none():
    both, first, second = (runs(*([point] * 3)) for point in [(2.0, 2.0), (2.0, 1.0), (1.0, 2.0)])
    worst = runs(*([(1.0, 1.0)] * 3))
    assert clearly_better(first, worst) and clearly_better(both, second)
    assert not clearly_better(first, second) and not clearly_better(second, first)


def test_keeping_the_limit_beats_speed():
    keeping, breaking = runs(1, 1, 1, excess=(0.0,)), runs(9, 9, 9, excess=(0.5,))
    assert clearly_better(keeping, breaking)
    assert not clearly_better(breaking, keeping)
    assert not clearly_better(keeping[:2], breaking[:2])
    assert ranking([breaking, keeping]) == [1, 0]


def test_among_those_that_exceed_the_nearest_comes_first():
    assert ranking([runs(1, excess=(0.5,)), runs(1, excess=(0.1,)), []]) == [1, 0]


def test_ranking_is_by_median():
    assert ranking([runs(1, 100, 1), runs(2, 2, 2), runs(3, 3, 0)]) == [2, 1, 0]


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(POINTS)
def test_front_holds_exactly_those_that_nobody_dominates(points):
    samples = [runs(tuple(map(float, point))) for point in points]
    expected = [
        place
        for place, point in enumerate(points)
        if not any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points)
    ]
    assert front(samples) == expected
    assert ranking(samples)[: len(expected)] == sorted(ranking(samples)[: len(expected)], key=ranking(samples).index)
    assert set(ranking(samples)[: len(expected)]) == set(expected)


def test_spread():
    assert spread_percent([9, 10, 12]) == pytest.approx(30)
