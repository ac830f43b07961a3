# SPDX-License-Identifier: Apache-2.0
"""Runs are cut early only where the first run shows that its figure comes often and early."""

from dataclasses import replace

from simulated import space, throughput

from slipstream.launcher.tune.lengths import first_length, lengths_after, limit_of
from slipstream.launcher.tune.objective import parse_objective, resolve
from slipstream.launcher.tune.trial import DONE, FAILED, LIMIT, Length, Outcome

FIRST = first_length(600.0, None)


def learnt(ended, seconds, times, *, timeout=None, instances=1):
    figures = (throughput(5.0, instances=instances, times=times),) if times else ()
    resolved = resolve(parse_objective("throughput"), figures) if figures else None
    return lengths_after(Outcome(ended, seconds, instances, figures), resolved, FIRST, timeout)


def test_the_first_run_may_take_a_quarter_of_the_budget():
    assert Length("whole", 150.0) == FIRST
    assert first_length(4.0, None).seconds == 10.0
    assert first_length(600.0, 3.0).seconds == 3.0


def test_one_figure_at_the_end_means_whole_runs():
    lengths = learnt(DONE, 30.0, (29.0,))
    assert lengths.short == ()
    assert lengths.whole == Length("whole", 100.0)
    assert "fewer than 5 times" in lengths.decision.reason


def test_many_figures_mean_short_runs_in_steps():
    lengths = learnt(DONE, 45.0, (1.0, 1.5, 2.0, 2.5, 3.0))
    assert [(length.name, length.cut) for length in lengths.short] == [("cut at 5.5 s", True), ("cut at 16.5 s", True)]
    assert lengths.decision.taken


def test_figures_that_come_late_do_not():
    lengths = learnt(DONE, 45.0, (10.0, 15.0, 20.0, 25.0, 30.0))
    assert lengths.short == () and "cutting saves too little" in lengths.decision.reason


def test_endless_scripts_are_cut():
    lengths = learnt(LIMIT, 150.0, (1.0, 2.0, 3.0, 4.0, 5.0))
    assert lengths.whole == Length("cut at 9.4 s", 9.4, cut=True)
    assert lengths.short == ()


def test_a_first_run_that_says_nothing_teaches_nothing():
    for ended in (LIMIT, FAILED):
        lengths = learnt(ended, 150.0, ())
        assert lengths.whole == FIRST and not lengths.decision.taken


def test_the_users_limit_holds():
    assert learnt(DONE, 1.0, (0.9,), timeout=60.0).whole.seconds == 60.0


def test_limits_grow_with_slower_instances_up_to_a_ceiling():
    wide, narrow = space(ninstances=(1, 8))
    wide, narrow = replace(wide, threads=8), replace(narrow, threads=1)
    length = Length("whole", 10.0)
    assert limit_of(length, wide, pace=wide, ceiling=50.0) == 10.0
    assert limit_of(length, narrow, pace=wide, ceiling=50.0) == 50.0
    assert limit_of(length, narrow, pace=wide, ceiling=500.0) == 80.0
    assert limit_of(length, wide, pace=narrow, ceiling=500.0) == 10.0
