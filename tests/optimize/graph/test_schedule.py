# SPDX-License-Identifier: Apache-2.0
"""When a model is captured: not for a script that ends soon, not for tiny calls, a bounded number of times."""

import os
import sys
import threading

import pytest
import torch
from torch import nn

from slipstream.optimize.graph import background, schedule
from slipstream.optimize.graph.schedule import Schedule, schedule_of


def call_until_due(plan, seconds, sizes=((1, 2),), most=100_000):
    for number in range(most):
        plan.note(seconds, sizes[number % len(sizes)])
        if plan.is_due():
            return number + 1
    return None


def seconds_until_due(plan, seconds):
    calls = call_until_due(plan, seconds)
    return None if calls is None else calls * seconds


def convolutional(count):
    return nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(count)))


def dense(count):
    return nn.Sequential(*(nn.Linear(1, 1) for _ in range(count)))


def test_a_capture_waits_until_a_graph_would_have_saved_what_it_costs():
    plan = Schedule(modules=100, share=0.1)
    calls = call_until_due(plan, 0.1)
    assert plan.saved() >= plan.cost()
    spent = calls * 0.1
    costs = schedule.BESIDE * 100 * schedule.CAPTURE_S_PER_MODULE + schedule.CALLS_OF_PROOF * 0.1
    assert spent * 0.1 + calls * 100 * schedule.DISPATCH_S == pytest.approx(costs, rel=0.02)


def test_what_gains_more_is_captured_earlier():
    """Convolutions before linear layers, bfloat16 before float32, short calls of many layers before long ones."""
    waits = [
        seconds_until_due(schedule_of(model, dtype, early=False), 0.02)
        for model in (convolutional(50), dense(50))
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert waits[0] <= waits[1] < waits[2] < waits[3]
    assert seconds_until_due(Schedule(100, 0.05), 0.005) < seconds_until_due(Schedule(100, 0.05), 0.5)


def test_where_a_graph_saves_a_third_a_script_has_to_last_for_as_long_as_it_costs():
    much, less = Schedule(modules=100, share=schedule.MUCH), Schedule(modules=100, share=0.9 * schedule.MUCH)
    call_until_due(much, 0.1)
    assert much.seconds >= schedule.RISK * much.cost() > much.seconds - 0.1
    assert much.saved() < much.cost()
    call_until_due(less, 1.0)
    assert less.saved() >= less.cost()


def test_a_graph_that_is_known_to_win_and_to_repay_is_captured_at_the_second_call():
    def plan(**earlier):
        return Schedule(modules=100, share=0.1, **earlier)

    known = plan(known=True, repaid=True)
    assert call_until_due(known, 0.01) == schedule.KNOWN_CALLS
    known.begin()
    assert call_until_due(known, 0.01) == schedule.CALLS, "the first capture did not hold"
    assert call_until_due(plan(known=True, repaid=True), schedule.SMALL_S / 2, most=1000) is None
    unsure = call_until_due(plan(), 0.01)
    assert unsure > schedule.CALLS
    for earlier in ({"known": True}, {"repaid": True}, {"known": True, "repaid": False}):
        assert call_until_due(plan(**earlier), 0.01) == unsure


def test_a_script_that_ended_too_early_before_is_not_risked_anything_for():
    risked, careful = (Schedule(modules=100, share=schedule.MUCH, repaid=repaid) for repaid in (None, False))
    call_until_due(risked, 0.1)
    call_until_due(careful, 0.1)
    assert risked.saved() < risked.cost()
    assert careful.saved() >= careful.cost()


def test_earlier_processes_are_not_asked_about_short_and_first_calls():
    plan = Schedule(modules=1, share=0.1)
    assert not plan.may_ask(1.0)
    plan.note(1.0, ())
    assert plan.may_ask(1.0)
    assert not plan.may_ask(schedule.SMALL_S / 2)
    large = Schedule(modules=1000, share=0.1)
    large.note(1.0, ())
    assert large.may_ask(1.0)
    assert not large.may_ask(1000 * schedule.ASK_S), "the question would take as long as the call"


def test_whoever_knows_that_the_script_is_long_need_not_wait():
    plan = schedule_of(dense(500), torch.float32, early=True)
    assert call_until_due(plan, 0.001) == schedule.CALLS
    assert call_until_due(schedule_of(dense(500), torch.float32, early=True), schedule.SMALL_S / 2) is None


def test_one_long_call_is_not_enough():
    assert call_until_due(Schedule(modules=1, share=1000.0), 1000.0) == schedule.CALLS


def test_tiny_calls_never_are():
    assert call_until_due(Schedule(modules=1, share=0.1), schedule.SMALL_S / 2) is None


def test_calls_that_stay_tiny_are_not_watched_for_ever():
    plan = Schedule(modules=1, share=0.1)

    def note(seconds, times):
        for _ in range(times):
            plan.note_length(seconds)

    note(schedule.SMALL_S / 2, schedule.SHORT_CALLS - 1)
    assert not plan.is_hopeless()
    note(20 * schedule.SMALL_S, 1)  # a longer one among them, which is worth as many as fit into it
    note(schedule.SMALL_S / 2, 20)
    assert not plan.is_hopeless()
    note(schedule.SMALL_S / 2, 1)
    assert plan.is_hopeless()
    plan.begin()
    assert not plan.is_hopeless()


def test_a_model_with_long_calls_among_short_ones_is_watched_on():
    plan = Schedule(modules=1, share=0.1)
    for _ in range(100):
        for _ in range(schedule.SHORT_CALLS // 2):
            plan.note_length(schedule.SMALL_S / 2)
        plan.note_length(schedule.SMALL_S * schedule.SHORT_CALLS)
    assert not plan.is_hopeless()


def test_each_further_capture_waits_longer_and_there_is_a_last_one():
    plan, waits = Schedule(modules=50, share=0.1), []
    for _ in range(schedule.MOST_CAPTURES):
        waits.append(call_until_due(plan, 0.05))
        plan.begin()
    assert waits == sorted(set(waits))
    assert call_until_due(plan, 0.05) is None


def test_sizes_that_change_are_captured_as_such():
    plan = Schedule(modules=1, share=0.1)
    call_until_due(plan, 1.0)
    assert not plan.is_varied()
    plan.note(1.0, ((1, 3),))
    assert plan.is_varied()
    fresh = Schedule(modules=1, share=0.1)
    fresh.begin()
    assert fresh.is_varied(), "the first capture did not hold for calls that came after it"


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_a_capture_that_gains_little_gives_way_and_the_script_does_not():
    found = {}

    def note(name):
        found[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    for gently in (True, False):
        background.start(lambda name=gently: note(name), found.clear, gently=gently)
        background.wait()
    note("script")
    assert found == {True: background.LEAST_PRIORITY, False: found["script"], "script": os.getpriority(os.PRIO_PROCESS, 0)}


def test_only_what_gains_much_is_in_a_hurry():
    assert schedule_of(convolutional(3), torch.float32, early=False).saves_much()
    assert not schedule_of(dense(3), torch.bfloat16, early=False).saves_much()


def test_what_refuses_twice_or_for_good_is_not_asked_again():
    plan = Schedule(modules=1, share=0.1)
    for why, over in (("one reason", False), ("another", False), ("one reason", True)):
        plan.refuse(why, once_more=False, for_good=False)
        assert plan.is_over() is over
    plan = Schedule(modules=1, share=0.1)
    plan.refuse("it takes long", once_more=False, for_good=True)
    assert plan.is_over()
    plan = Schedule(modules=1, share=0.1, captures=1)
    for _ in range(2):
        plan.refuse("show outcomes", once_more=True, for_good=False)
    assert plan.captures == -1 and not plan.is_over()
    for _ in range(schedule.MOST_PUT_OFF):
        plan.refuse("the script changed the default dtype meanwhile", once_more=True, for_good=False)
    assert plan.is_over()


def test_another_thread_may_begin_a_capture_at_any_time():
    """Which forgets the calls that were noted: what is asked just then has an answer."""
    begun = Schedule(20, 0.5, early=True)
    for _ in range(5):
        begun.note(0.1, ())
    begun.begin()
    assert begun.mean_s() == 0
    assert begun.cost() > 0
    assert begun.saved_a_call() >= 0
    assert not begun.is_due()
    begun.calls = schedule.CALLS  # noted, but not yet for how long
    assert not begun.is_due()
