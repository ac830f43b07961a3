# SPDX-License-Identifier: Apache-2.0
"""How long runs of a script last and where they may be cut, learnt from its first run. Pure.

A script that prints its figure again and again can be cut early and still says something; first looks are then short.
One that prints it at its end runs whole every time, and a search saves by repeating only what is promising.
"""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.decision import Decision
from slipstream.launcher.tune.objective import Resolved
from slipstream.launcher.tune.trial import DONE, FIRST_TIMES, LIMIT, Configuration, Length, Outcome

SHARE_OF_FIRST = 4
"""The first run may take a quarter of the budget: with fewer than four runs nothing can be compared."""

SHARE_OF_ENDLESS = 64
"""Of a script that never ends by itself, each run gets this part of the budget: some for a first look at each
configuration, the others for repeats."""

SHORTEST_FIRST = 10.0
FACTOR, SLACK = 3.0, 10.0
"""A run that takes three times as long as the first, and ten seconds for starting, hangs or is no candidate."""

STEP = 3
"""Lengths of successive stages grow by this; so does the share of configurations that each stage drops."""

WHOLE = "whole"


@dataclass(frozen=True)
class Lengths:
    """``short`` ones in ascending order, perhaps none; ``whole`` is the one that decides."""

    whole: Length
    short: tuple[Length, ...]
    decision: Decision


def first_length(budget: float, timeout: float | None) -> Length:
    """Of the very first run, of which nothing is known."""
    return Length(WHOLE, timeout or max(SHORTEST_FIRST, budget / SHARE_OF_FIRST))


def lengths_after(outcome: Outcome, resolved: Resolved | None, first: Length, timeout: float | None) -> Lengths:
    """What the first run teaches."""
    settled = _settled(outcome, resolved)
    if outcome.ended == LIMIT and settled is not None:
        seconds = round(min(first.seconds, max(_enough(settled), first.seconds * SHARE_OF_FIRST / SHARE_OF_ENDLESS)), 1)
        reason = f"the first run did not end within {first.seconds:g} s but prints its figure again and again"
        return Lengths(_cut_at(seconds), (), Decision(f"every run is cut at {seconds:g} s", True, reason))
    if outcome.ended != DONE:
        return Lengths(first, (), Decision("short runs", False, "the first run failed, so nothing is known of its course"))
    whole = Length(WHOLE, timeout or min(first.seconds, FACTOR * outcome.seconds + SLACK))
    if settled is None:
        reason = f"the script prints its figure fewer than {FIRST_TIMES} times: every run is a whole one"
        return Lengths(whole, (), Decision("short runs", False, reason))
    seconds = round(max(_enough(settled), outcome.seconds / STEP**2), 1)
    short = []
    while seconds <= outcome.seconds / 2:
        short.append(_cut_at(round(seconds, 1)))
        seconds *= STEP
    if not short:
        reason = f"{FIRST_TIMES} figures take {settled:.1f} s of the {outcome.seconds:.1f} s of a run: cutting saves too little"
        return Lengths(whole, (), Decision("short runs", False, reason))
    names = ", ".join(f"{length.seconds:g} s" for length in short)
    reason = f"a whole run takes {outcome.seconds:.1f} s and prints its figure {FIRST_TIMES} times in {settled:.1f} s"
    return Lengths(whole, tuple(short), Decision(f"first looks are cut at {names}", True, reason))


def limit_of(length: Length, configuration: Configuration, *, pace: Configuration, ceiling: float) -> float:
    """Seconds for one run, where lengths are those of ``pace``.

    An instance on half the threads may take twice as long for the same work, and still be the better one, as there
    are more of them.
    """
    slower = max(1.0, pace.threads / configuration.threads)
    return max(length.seconds, min(length.seconds * slower, ceiling))


def _cut_at(seconds: float) -> Length:
    return Length(f"cut at {seconds:g} s", seconds, cut=True)


def _enough(settled: float) -> float:
    """Seconds in which a slower start still prints as many figures."""
    return 1.5 * settled + 1.0


def _settled(outcome: Outcome, resolved: Resolved | None) -> float | None:
    """When every instance had printed every goal often enough; None where that did not happen."""
    if resolved is None:
        return None
    wanted = {goal.name for goal in resolved.goals} | {limit.name for limit in resolved.limits}
    latest = 0.0
    for figure in (figure for figure in outcome.figures if figure.name in wanted):
        for index in range(outcome.instances):
            times = figure.times.get(index, ())
            if len(times) < FIRST_TIMES:
                return None
            latest = max(latest, times[FIRST_TIMES - 1])
    return latest
