# SPDX-License-Identifier: Apache-2.0
"""Statistics on timings mean what they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import spread

TIMES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30)


@given(TIMES)
def test_quartiles_are_ordered_and_within_the_sample(samples):
    found = spread.quartiles(samples)
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)


def test_quartiles_of_a_known_sample():
    assert spread.quartiles([4, 1, 3, 2, 5]) == spread.Quartiles(2, 3, 4)


def test_quartiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="nothing"):
        spread.quartiles([])


def test_a_machine_that_slows_down_between_rounds_leaves_the_ratio_alone():
    base = [[10.0, 11.0, 10.5], [20.0, 21.0, 22.0], [40.0, 40.0, 40.0]]
    twice_as_fast = [[sample / 2 for sample in samples] for samples in base]
    assert spread.ratio_by_round(base, twice_as_fast) == spread.Ratio(2, 2, 2)


def test_ratio_has_the_range_of_its_rounds():
    ratio = spread.ratio_by_round([[6.0], [6.0], [6.0]], [[1.0], [2.0], [3.0]])
    assert (ratio.low, ratio.value, ratio.high) == (2, 3, 6)
    assert str(ratio) == "3.00 (2.00–6.00)"


def test_ratio_skips_a_round_in_which_one_side_is_missing():
    assert spread.ratio_by_round([[6.0], []], [[2.0], [1.0]]).value == 3
    with pytest.raises(ValueError, match="both sides"):
        spread.ratio_by_round([[]], [[1.0]])


@given(TIMES)
def test_geometric_mean_turns_over_with_its_values(values):
    assert spread.geometric_mean(values) * spread.geometric_mean([1 / each for each in values]) == pytest.approx(1)
