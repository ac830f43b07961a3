# SPDX-License-Identifier: Apache-2.0
"""When a model is captured: not for a script that ends soon, not for tiny calls, a bounded number of times."""

import pytest

from slipstream.optimize.graph import schedule
from slipstream.optimize.graph.schedule import Schedule


def call_until_due(plan, seconds, sizes=((1, 2),), most=100_000):
    for number in range(most):
        plan.note(seconds, sizes[number % len(sizes)])
        if plan.is_due():
            return number + 1
    return None


def test_the_model_has_to_run_several_times_as_long_as_a_capture_takes():
    plan = Schedule(modules=100)
    calls = call_until_due(plan, 0.1)
    assert calls * 0.1 == pytest.approx(schedule.TIMES_AS_LONG * 100 * schedule.CAPTURE_S_PER_MODULE, abs=0.11)


def test_one_long_call_is_not_enough():
    assert call_until_due(Schedule(modules=1), 1000.0) == schedule.CALLS


def test_tiny_calls_never_are():
    assert call_until_due(Schedule(modules=1), schedule.SMALL_S / 2) is None


def test_each_further_capture_waits_longer_and_there_is_a_last_one():
    plan, waits = Schedule(modules=50), []
    for _ in range(schedule.MOST_CAPTURES):
        waits.append(call_until_due(plan, 0.05))
        plan.begin()
    assert waits == sorted(set(waits))
    assert call_until_due(plan, 0.05) is None


def test_sizes_that_change_are_captured_as_such():
    plan = Schedule(modules=1)
    call_until_due(plan, 1.0)
    assert not plan.is_varied()
    plan.note(1.0, ((1, 3),))
    assert plan.is_varied()
    fresh = Schedule(modules=1)
    fresh.begin()
    assert fresh.is_varied(), "the first capture did not hold for calls that came after it"
