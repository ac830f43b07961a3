# SPDX-License-Identifier: Apache-2.0
"""Searches without processes: a runner that computes outcomes and has a clock of its own."""

import itertools

from slipstream.launcher.tune.objective import parse_objective
from slipstream.launcher.tune.search import Search, Settings
from slipstream.launcher.tune.show.progress import Silent
from slipstream.launcher.tune.trial import DONE, FAILED, FIRST_TIMES, LIMIT, Configuration, Figure, Outcome

CRASH, HANG, SILENT = "crash", "hang", "silent"


def space(**axes):
    """Configurations of all combinations of `flag_name=(values…)`; instances as the flag says."""
    flags = [name.replace("_", "-") for name in axes]
    places = itertools.product(*(range(len(values)) for values in axes.values()))
    return [_point(flags, list(axes.values()), place) for place in places]


def _point(flags, values, place):
    settings = tuple((flag, str(choices[index])) for flag, choices, index in zip(flags, values, place, strict=True))
    return Configuration(settings, place, instances=int(dict(settings).get("ninstances", 1)))


def throughput(value, *, instances=1, times=()):
    shares = dict.fromkeys(range(instances), value / instances)
    return Figure("throughput", "sum", shares, dict.fromkeys(range(instances), times), "samples/s")


def latency(name, value, *, instances=1, unit="ms"):
    return Figure(name, "mean", dict.fromkeys(range(instances), value), unit=unit, higher=False)


class Simulated:
    """``behave(trial)`` gives a number (throughput), figures, or one of CRASH, HANG, SILENT.

    A whole run takes ``seconds``; with ``every``, the figure is printed again after so many seconds.
    """

    def __init__(self, behave, *, seconds=1.0, every=None, resident_mb=0.0):
        self.trials = []
        self.now = 0.0
        self._behave = behave
        self._seconds = seconds
        self._every = every
        self._resident = resident_mb

    def seconds(self):
        return self.now

    def run(self, trial):
        self.trials.append(trial)
        answer = self._behave(trial)
        takes = float("inf") if answer == HANG else self._seconds
        at_limit = takes > trial.limit
        takes = min(takes, trial.limit)
        self.now += takes
        count = trial.configuration.instances
        if answer == CRASH:
            return Outcome(FAILED, takes, count, reason="exit code 1: it crashed")
        figures = ()
        if isinstance(answer, int | float):
            times = tuple(self._every * step for step in range(1, FIRST_TIMES + 1)) if self._every else (takes,)
            shown = tuple(moment for moment in times if moment <= takes)
            figures = (throughput(answer, instances=count, times=shown),) if shown and (self._every or not at_limit) else ()
        elif isinstance(answer, tuple):
            figures = answer
        return Outcome(LIMIT if at_limit else DONE, takes, count, figures, resident_mb=self._resident)


def search(candidates, runner, objective="", *, budget=1000.0, **settings):
    """A whole search; its Search object, whose course holds everything."""
    asked = parse_objective(objective) if objective else parse_objective("throughput")
    made = Search(candidates, asked, Settings(budget=budget, **settings), runner, Silent())
    made.run()
    return made
