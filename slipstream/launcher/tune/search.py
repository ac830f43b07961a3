# SPDX-License-Identifier: Apache-2.0
"""The search: a first look at many configurations, the better third again and again, then a race of the finalists.

Pure but for `trial.Runner`: what is run next depends on outcomes and on the runner's clock alone, so that a search with
the same outcomes takes the same way; that is what resuming is built on.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from slipstream.decision import Decision
from slipstream.launcher.tune.comparison import Measurement, clearly_better, ranking
from slipstream.launcher.tune.lengths import STEP, Lengths, first_length, lengths_after, limit_of
from slipstream.launcher.tune.objective import NoFigure, Objective, Resolved, measure, meets_targets, resolve
from slipstream.launcher.tune.space import by_prediction
from slipstream.launcher.tune.trial import FAILED, LIMIT, Configuration, Length, Outcome, Runner, Trial

FINALISTS = 4
MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class Settings:
    """``predict``: try promising combinations first, else in the order of the space. ``memory_mb``: what is free."""

    budget: float
    repeats: int = 3
    trials: int | None = None
    timeout: float | None = None
    predict: bool = True
    memory_mb: float | None = None


class Watch(Protocol):
    """Somebody who looks on."""

    def stage(self, text: str) -> None: ...

    def starting(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, measurement: Measurement | None, reason: str) -> None: ...


@dataclass
class Course:
    """All that is known of the configurations so far. ``race`` holds the finalists' runs that decide."""

    candidates: list[Configuration]
    looks: dict[str, dict[Configuration, list[Measurement]]] = field(default_factory=lambda: defaultdict(dict))
    race: dict[Configuration, list[Measurement]] = field(default_factory=dict)
    rounds: int = 0
    failures: dict[Configuration, str] = field(default_factory=dict)
    resolved: Resolved | None = None
    decisions: list[Decision] = field(default_factory=list)
    stopped: str = ""
    runs: int = 0


class Search:
    """One search; ``candidates[0]`` is the plain start that all are compared with."""

    def __init__(
        self, candidates: Sequence[Configuration], objective: Objective, settings: Settings, runner: Runner, watch: Watch
    ) -> None:
        self.course = Course(list(candidates))
        self._objective = objective
        self._settings = settings
        self._runner = runner
        self._watch = watch
        self._first = candidates[0]
        self._whole = first_length(settings.budget, settings.timeout)
        self._ceiling = self._whole.seconds
        self._pace = self._first  # whose run the lengths are learnt from
        self._durations: dict[str, list[float]] = defaultdict(list)
        self._counts: dict[tuple[Configuration, str], int] = defaultdict(int)
        self._reached = False

    def run(self) -> Course:
        """The whole search. An interruption leaves in ``course`` what is known so far."""
        lengths = self._learn()
        stages = [*lengths.short, self._whole]
        population = self._look(stages[0])
        self._race(self._halve(population, stages))
        return self.course

    def _learn(self) -> Lengths:
        """The first run that succeeds: how long runs last, which figures there are, how much memory an instance takes.

        As a rule that is the plain start; where it fails, others are asked, each with a quarter of what time is left.
        """
        self._watch.stage("first run")
        waiting = self.course.candidates
        for one in by_prediction(waiting, {}) if self._settings.predict else list(waiting):
            self._whole = first_length(self._settings.budget - self._runner.seconds(), self._settings.timeout)
            self._ceiling, self._pace = self._whole.seconds, one
            outcome = self._run(one, self._whole)[1]
            lengths = lengths_after(outcome, self._resolved_of(outcome), self._whole, self._settings.timeout)
            if lengths.whole.cut:  # it hit its limit, which is how all runs of this script end
                self.course.failures.pop(one, None)
            if one not in self.course.failures or self._runner.seconds() > self._settings.budget / 2:
                break
        self._whole = lengths.whole
        self.course.decisions.append(lengths.decision)
        if outcome.resident_mb and self._settings.memory_mb:
            self._leave_too_large_away(outcome.resident_mb, self._settings.memory_mb)
        return lengths

    def _leave_too_large_away(self, resident: float, free: float) -> None:
        most = max(1, int(MEMORY_SHARE * free / resident))
        large = [one for one in self.course.candidates if one.instances > most and not self._counts[one, self._whole.name]]
        if large:
            self.course.candidates = [one for one in self.course.candidates if one not in large]
            reason = f"an instance takes {resident:.0f} MB and {free:.0f} MB are free: at most {most} at a time"
            self.course.decisions.append(
                Decision(f"not tried: {len(large)} configurations of more than {most} instances", False, reason)
            )

    def _look(self, length: Length) -> list[Configuration]:
        """One run of each, the promising ones first, as far as budget and --trials go."""
        self._watch.stage("first look")
        # First runs were of this length, or they failed.
        seen = [one for one in self.course.candidates if one in self.course.failures or one in self.course.looks[length.name]]
        queue = [one for one in self.course.candidates if one not in seen]
        while queue and not self._reached:
            if self._settings.trials is not None and len(seen) >= self._settings.trials:
                self.course.stopped = f"--trials {self._settings.trials} is reached"
                break
            if len(seen) > 1 and not self._may_start(length, reserve=self._cost_of_the_rest(len(seen), length)):
                self.course.stopped = "the rest of the budget is for comparing what was found"
                break
            if self._settings.predict:
                queue = by_prediction(queue, self._promises(seen, length))
            one = queue.pop(0)
            _, outcome = self._run(one, length)
            if length.cut and outcome.ended == LIMIT and one in self.course.failures and length != self._whole:
                self._run_whole_instead(one, length)
            seen.append(one)
        if queue:
            what = f"not tried: {len(queue)} of {len(self.course.candidates)} configurations"
            why = self.course.stopped or "every objective has reached its target"
            self.course.decisions.append(Decision(what, False, why))
        return self._ranked(seen, length.name)

    def _run_whole_instead(self, one: Configuration, length: Length) -> None:
        """It printed nothing before the cut: perhaps it only starts slowly, so it gets a whole run before it is out."""
        del self.course.failures[one]
        measurement, _ = self._run(one, self._whole)
        if measurement is not None:
            self.course.looks[length.name][one] = [measurement]

    def _halve(self, population: list[Configuration], stages: Sequence[Length]) -> list[Configuration]:
        """Keep the best third and run those again, longer where runs were short, until few are left."""
        for stage in range(1, 64):
            population = population[: max(FINALISTS, math.ceil(len(population) / STEP))]
            if len(population) <= FINALISTS:
                break
            length = stages[min(stage, len(stages) - 1)]
            self._watch.stage(f"the best {len(population)}, {length.name}")
            for one in population:
                if not self._may_start(length, reserve=self._cost_of_the_race()):
                    return population[:FINALISTS]
                self._run(one, length)
            population = self._ranked(population, length.name)
        return population

    def _race(self, finalists: list[Configuration]) -> None:
        """Whole runs in turn, so that a drift of the machine hits all alike; whoever is clearly worse drops out.

        Only these runs decide: those that made somebody a finalist were lucky ones among many.
        """
        contenders = list(finalists)
        if self._first not in contenders and self._first not in self.course.failures:
            contenders.append(self._first)
        race = self.course.race
        race.update({one: [] for one in contenders})
        self._watch.stage(f"race of {len(contenders)}")
        for turn in range(2 * self._settings.repeats):
            shift = turn % max(1, len(contenders))
            for one in contenders[shift:] + contenders[:shift]:
                if not self._may_start(self._whole):
                    self.course.stopped = "the budget is over"
                    return
                measurement, _ = self._run(one, self._whole)
                if measurement is not None:
                    race[one].append(measurement)
            self.course.rounds += 1
            contenders = [one for one in contenders if one not in self.course.failures]
            if turn + 1 >= self._settings.repeats:
                contenders = self._without_clearly_worse(contenders)
                if len(contenders) <= 1:
                    return

    def _without_clearly_worse(self, contenders: list[Configuration]) -> list[Configuration]:
        samples = [self.course.race[one] for one in contenders]
        return [
            one
            for one, sample in zip(contenders, samples, strict=True)
            if not any(clearly_better(other, sample) for other in samples)
        ]

    def _run(self, one: Configuration, length: Length) -> tuple[Measurement | None, Outcome]:
        """One run, and what it says; a run that says nothing takes its configuration out of the search."""
        repeat = self._counts[one, length.name]
        self._counts[one, length.name] += 1
        trial = Trial(one, length, repeat, limit_of(length, one, pace=self._pace, ceiling=self._ceiling))
        self._watch.starting(trial)
        outcome = self._runner.run(trial)
        self.course.runs += 1
        try:
            measurement = self._judge(trial, outcome)
        except NoFigure as error:
            self.course.failures[one] = str(error)
            self._watch.ended(trial, None, str(error))
            return None, outcome
        self._durations[length.name].append(outcome.seconds)
        self.course.looks[length.name].setdefault(one, []).append(measurement)
        if self.course.resolved is not None and meets_targets(self.course.resolved, measurement):
            self._reached = True
        self._watch.ended(trial, measurement, "")
        return measurement, outcome

    def _judge(self, trial: Trial, outcome: Outcome) -> Measurement:
        if outcome.ended == FAILED:
            raise NoFigure(outcome.reason)
        if outcome.ended == LIMIT and not trial.length.cut:
            raise NoFigure(f"not at its end after {trial.limit:.1f} s (--trial-timeout)")
        if self.course.resolved is None:
            self.course.resolved = resolve(self._objective, outcome.figures)
        return measure(self.course.resolved, outcome)

    def _resolved_of(self, outcome: Outcome) -> Resolved | None:
        """Also of a run that was stopped at its limit."""
        try:
            return resolve(self._objective, outcome.figures)
        except NoFigure:
            return None

    def _ranked(self, members: Sequence[Configuration], length: str) -> list[Configuration]:
        alive = [one for one in members if one not in self.course.failures]
        return [alive[place] for place in ranking([self.course.looks[length].get(one, []) for one in alive])]

    def _promises(self, seen: Sequence[Configuration], length: Length) -> dict[tuple[int, ...], float]:
        """By rank, the failed ones last: ranks do not care how wildly a bad configuration is off."""
        ranked = self._ranked(seen, length.name)
        return {one.place: -float(ranked.index(one) if one in ranked else len(seen)) for one in seen}

    def _may_start(self, length: Length, *, reserve: float = 0.0) -> bool:
        return self._runner.seconds() + self._typical(length) + reserve <= self._settings.budget

    def _typical(self, length: Length) -> float:
        """Of runs that succeeded: one that hung says nothing about the next one's time."""
        known = self._durations[length.name]
        return statistics.median(known) if known else length.seconds

    def _cost_of_the_rest(self, seen: int, length: Length) -> float:
        """Stages after the first look: 1/3 + 1/9 + … of its runs, then the race; at most half of the budget."""
        return min(0.5 * self._settings.budget, 0.5 * seen * self._typical(length) + self._cost_of_the_race(seen))

    def _cost_of_the_race(self, seen: int = FINALISTS) -> float:
        runs = (min(seen, FINALISTS) + 1) * self._settings.repeats
        return min(0.5 * self._settings.budget, runs * self._typical(self._whole))
