# SPDX-License-Identifier: Apache-2.0
"""Whole searches with a simulated runner: the best is found, failures never win, budgets and limits hold."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import CRASH, HANG, SILENT, Simulated, latency, search, space, throughput

from slipstream.launcher.tune.trial import LIMIT
from slipstream.launcher.tune.verdict import judge

SMALL = space(ninstances=(1, 2, 4), memory_allocator=("default", "tcmalloc"))
LARGE = space(ninstances=(1, 2, 4, 8), memory_allocator=("default", "tcmalloc", "jemalloc"), omp_runtime=("default", "intel"))


def product(trial):
    """Each choice has a factor of its own."""
    settings = dict(trial.configuration.settings)
    factors = {"2": 1.3, "4": 1.1, "8": 0.7, "tcmalloc": 1.2, "jemalloc": 1.15, "intel": 0.95}
    value = 100.0
    for text in settings.values():
        value *= factors.get(text, 1.0)
    return value


def winner_of(made):
    verdict = judge(made.course, made._first)
    return verdict.winner.configuration if verdict.winner else None


def best_by_trying_all(candidates, behave):
    values = {one: behave(SimpleNamespace(configuration=one)) for one in candidates}
    return max((one for one in values if isinstance(values[one], int | float)), key=values.__getitem__)


@pytest.mark.parametrize("candidates", [SMALL, LARGE])
def test_the_best_of_all_is_found(candidates):
    made = search(candidates, Simulated(product))
    assert winner_of(made) == best_by_trying_all(candidates, product)


def test_the_best_of_a_table_without_structure_is_found_when_all_can_be_tried():
    values = {one: 1 + number * 37 % 24 for number, one in enumerate(LARGE)}
    made = search(LARGE, Simulated(lambda trial: values[trial.configuration]))
    assert winner_of(made) == max(values, key=values.__getitem__)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 5, 8, CRASH, HANG, SILENT]), min_size=6, max_size=6), st.integers(0, 3))
def test_failures_never_win_and_never_stop_a_search(answers, flaky):
    """``flaky``: one configuration crashes in a later run than its first."""
    table = dict(zip(SMALL, answers, strict=True))

    def behave(trial):
        if flaky and trial.configuration is SMALL[flaky] and trial.repeat > 0:
            return CRASH
        return table[trial.configuration]

    made = search(SMALL, Simulated(behave), timeout=5.0)
    good = {one: value for one, value in table.items() if isinstance(value, int)}
    if flaky:
        good.pop(SMALL[flaky], None)
    best = winner_of(made)
    assert (table[best] == max(good.values())) if good else best is None
    assert {one for one in table if table[one] in {CRASH, HANG, SILENT}} <= set(made.course.failures)
    assert all(made.course.failures.values())


@pytest.mark.parametrize("hanging", [1, 2])
def test_hangs_at_the_start_leave_time_for_the_others(hanging):
    made = search(SMALL, Simulated(lambda trial: HANG if trial.configuration in SMALL[:hanging] else product(trial)))
    assert winner_of(made) == best_by_trying_all(SMALL, product)
    assert set(made.course.failures) == set(SMALL[:hanging])


def test_reasons_of_failures():
    answers = dict(zip(SMALL, [5, CRASH, HANG, SILENT, 1, 2], strict=True))
    made = search(SMALL, Simulated(lambda trial: answers[trial.configuration]), timeout=7.0)
    reasons = [made.course.failures[one] for one in SMALL[1:4]]
    assert reasons[0] == "exit code 1: it crashed"
    assert reasons[1] == "not at its end after 7.0 s (--trial-timeout)"
    assert "printed no figure" in reasons[2]


def test_a_plain_start_that_fails_is_out_and_the_search_goes_on():
    made = search(SMALL, Simulated(lambda trial: CRASH if trial.configuration is SMALL[0] else product(trial)))
    assert winner_of(made) == best_by_trying_all(SMALL, product)
    assert judge(made.course, SMALL[0]).first.failed


@pytest.mark.parametrize("budget", [5.0, 12.0, 33.0, 100.0])
@pytest.mark.parametrize("hangs", [0.0, 0.3])
def test_the_budget_holds_within_one_run(budget, hangs):
    generator = random.Random(1)
    runner = Simulated(lambda trial: HANG if generator.random() < hangs else product(trial), seconds=2.0)
    search(LARGE, runner, budget=budget)
    assert runner.now <= budget + max(trial.limit for trial in runner.trials)


def test_a_small_budget_sees_single_changes_first_and_combines_them():
    """24 configurations, time for about 15 looks: the best one differs from the first in two axes."""
    runner = Simulated(product, seconds=1.0)
    made = search(LARGE, runner, budget=30.0)
    assert 0 < len(made.course.looks["whole"]) < len(LARGE)
    assert winner_of(made) == best_by_trying_all(LARGE, product)
    assert any("not tried" in decision.what for decision in made.course.decisions)


def test_trials_is_the_number_of_configurations():
    made = search(LARGE, Simulated(product), trials=5)
    assert len(made.course.looks["whole"]) == 5


def test_short_runs_where_the_script_prints_again_and_again():
    runner = Simulated(product, seconds=90.0, every=1.0)
    made = search(LARGE, runner, budget=100_000.0)
    names = [trial.length.name for trial in runner.trials]
    assert names[0] == "whole"
    assert names.count("cut at 10 s") == len(LARGE)
    assert names[-1] == "whole"
    assert winner_of(made) == best_by_trying_all(LARGE, product)
    spent = sum(min(90.0, trial.limit) for trial in runner.trials if trial.length.cut)
    assert spent < 90.0 * len(LARGE) / 2


def test_short_and_whole_runs_are_never_compared():
    """Cut runs are twice as fast here; whole ones decide, and the verdict holds whole ones only."""
    runner = Simulated(lambda trial: product(trial) * (2 if trial.length.cut else 1), seconds=90.0, every=1.0)
    made = search(LARGE, runner, budget=100_000.0)
    best = judge(made.course, LARGE[0]).winner
    assert best.values[0] == pytest.approx(product(SimpleNamespace(configuration=best.configuration)))


def test_a_slow_start_is_not_punished_by_the_cut():
    """The best one prints nothing within a short run; a whole run shows what it can."""
    best = LARGE[7]

    def behave(trial):
        if trial.configuration is best:
            return SILENT if trial.length.name == "cut at 10 s" else 1000
        return product(trial)

    runner = Simulated(behave, seconds=90.0, every=1.0)
    made = search(LARGE, runner, budget=100_000.0)
    assert winner_of(made) is best


def test_a_script_that_never_ends_is_cut_every_time():
    runner = Simulated(product, seconds=1e9, every=1.0)
    made = search(SMALL, runner, budget=1000.0)
    assert winner_of(made) == best_by_trying_all(SMALL, product)
    assert {trial.length.cut for trial in runner.trials[1:]} == {True}
    assert not made.course.failures
    assert runner.now <= 1000.0


def test_instances_that_memory_does_not_hold_are_not_tried():
    runner = Simulated(product, resident_mb=300.0)
    made = search(LARGE, runner, memory_mb=1000.0)
    assert max(trial.configuration.instances for trial in runner.trials) == 2
    assert any("at most 3 at a time" in decision.reason for decision in made.course.decisions)


def test_slower_instances_get_more_time():
    """One thread instead of four: the same work may take four times as long."""
    wide, narrow = replace(SMALL[0], threads=4), replace(SMALL[4], threads=1)
    runner = Simulated(product, seconds=20.0)
    search([wide, narrow], runner, budget=10_000.0)
    limits = {trial.configuration: trial.limit for trial in runner.trials if trial.repeat}
    assert limits[wide] == 70.0
    assert limits[narrow] == 280.0


def test_noise_is_not_called_a_difference():
    generator = random.Random(3)
    made = search(SMALL, Simulated(lambda trial: 100 + generator.random()), repeats=3)
    decision = judge(made.course, SMALL[0]).decisions[0]
    assert "not told apart" in decision.reason


def test_a_clear_difference_is_found_through_noise():
    generator = random.Random(3)
    made = search(SMALL, Simulated(lambda trial: product(trial) * generator.uniform(0.97, 1.03)))
    verdict = judge(made.course, SMALL[0])
    assert verdict.winner.configuration == best_by_trying_all(SMALL, product)
    assert "better than every other finalist" in verdict.decisions[0].reason
    assert verdict.decisions[0].figures["ratio_to_plain_start"] == pytest.approx(1.56, rel=0.05)


def test_throughput_under_a_limit():
    tails = {"1": 5.0, "2": 15.0, "4": 40.0}

    def behave(trial):
        count = dict(trial.configuration.settings)["ninstances"]
        several = trial.configuration.instances
        return (throughput(100.0 * int(count), instances=several), latency("p99", tails[count], instances=several))

    made = search(SMALL, Simulated(behave), "p99<20")
    assert dict(winner_of(made).settings)["ninstances"] == "2"
    none = search(SMALL, Simulated(behave), "p99<2")
    assert winner_of(none) is None
    assert "the nearest is" in judge(none.course, SMALL[0]).decisions[0].reason


def test_several_goals_give_a_front_and_a_winner_that_is_nowhere_worse_than_the_first():
    points = [(10.0, 10.0), (30.0, 30.0), (20.0, 8.0), (15.0, 15.0), (12.0, 9.0), (5.0, 1.0)]
    table = dict(zip(SMALL, points, strict=True))

    def behave(trial):
        rate, delay = table[trial.configuration]
        several = trial.configuration.instances
        return (throughput(rate, instances=several), latency("latency", delay, instances=several))

    verdict = judge(search(SMALL, Simulated(behave), "throughput,latency").course, SMALL[0])
    assert verdict.winner.configuration is SMALL[2]
    on_front = {one.configuration for one in verdict.standings if "front" in one.note}
    assert on_front == {SMALL[1], SMALL[2], SMALL[5]}


def test_a_target_ends_exploring_but_is_confirmed():
    def behave(trial):
        value = product(trial)
        return (replace(throughput(value, instances=trial.configuration.instances), target=110.0),)

    runner = Simulated(behave)
    made = search(LARGE, runner)
    assert len(made.course.looks["whole"]) < len(LARGE)
    assert len(made.course.race[winner_of(made)]) >= 3


def test_without_a_target_maximising_does_not_stop_early():
    runner = Simulated(product)
    search(LARGE, runner)
    assert {trial.configuration for trial in runner.trials} == set(LARGE)


def test_a_race_takes_turns():
    """Run one after the other, a drift of the machine would hit the configurations unequally."""
    runner = Simulated(lambda trial: 100.0)
    search(SMALL[:2], runner)
    race = [trial.configuration for trial in runner.trials][2:]
    assert race[:4] == [SMALL[0], SMALL[1], SMALL[1], SMALL[0]]


def test_the_same_outcomes_take_the_same_way():
    first, second = Simulated(product), Simulated(product)
    for runner in (first, second):
        search(LARGE, runner, budget=40.0)
    assert first.trials == second.trials
    assert all(trial.length.name != LIMIT for trial in first.trials)
