# SPDX-License-Identifier: Apache-2.0
"""What a search has found: who won, who cannot be told apart from the winner, and the place of everyone else. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.decision import Decision
from slipstream.launcher.tune.comparison import CERTAINTY, Measurement, clearly_better, feasible, front, medians, ranking
from slipstream.launcher.tune.comparison import spread_percent as spread_of
from slipstream.launcher.tune.lengths import WHOLE
from slipstream.launcher.tune.objective import Resolved
from slipstream.launcher.tune.search import Course
from slipstream.launcher.tune.trial import Configuration

RACE = "race"


@dataclass(frozen=True)
class Standing:
    """One configuration in the end. ``values`` are medians in their own sign and unit; ``low`` and ``high`` of the first."""

    configuration: Configuration
    runs: int
    stage: str
    values: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    spread_percent: float = 0.0
    excess: tuple[float, ...] = ()
    note: str = ""
    failed: bool = False

    @property
    def keeps_limits(self) -> bool:
        return not any(self.excess)


@dataclass(frozen=True)
class Verdict:
    """``standings`` best first; failed ones last. ``winner`` is None where nothing succeeded or kept the limits."""

    winner: Standing | None
    first: Standing | None
    standings: tuple[Standing, ...]
    decisions: tuple[Decision, ...]
    resolved: Resolved | None


def judge(course: Course, first: Configuration) -> Verdict:
    """The verdict on everything known; ``first`` is the plain start."""
    groups = _groups(course)
    if not groups or course.resolved is None:
        failed = tuple(_failed(course, one) for one in course.failures)
        reason = course.stopped or "every configuration failed"
        return Verdict(None, None, failed, (Decision("winner", False, f"no run gave a figure: {reason}"),), course.resolved)
    stage, best = groups[0]
    winner = _winner(best, first)
    pareto = {list(best)[place] for place in front(list(best.values()))} if len(course.resolved.goals) > 1 else set()
    standings = []
    for name, members in groups:
        order = list(members)
        ranked = [order[place] for place in ranking(list(members.values()))]
        if name == stage and winner is not None:
            ranked = [winner, *(one for one in ranked if one != winner)]
        for one in ranked:
            note = _note(one, winner, best, name, stage) + (", on the front" if one in pareto and name == stage else "")
            standings.append(_standing(course, one, members[one], name, note))
    standings += [_failed(course, one) for one in course.failures]
    found = next((one for one in standings if one.configuration == winner), None)
    plain = next((one for one in standings if one.configuration == first), None)
    decision = _decision(course, found, standings[0], best, first, stage)
    return Verdict(found, plain, tuple(standings), (decision,), course.resolved)


def _groups(course: Course) -> list[tuple[str, dict[Configuration, list[Measurement]]]]:
    """Runs that may be compared with one another, the most telling first; each configuration is in one group only."""
    groups: list[tuple[str, dict[Configuration, list[Measurement]]]] = []
    if course.rounds:
        groups.append((RACE, {one: sample for one, sample in course.race.items() if sample}))
    looks = [(name, {one: list(sample) for one, sample in members.items()}) for name, members in course.looks.items()]
    # Later stages are longer. Whole runs say most, but at first there is only that of the plain start.
    groups += sorted(reversed(looks), key=lambda look: (len(look[1]) > 1, look[0] == WHOLE), reverse=True)
    taken: set[Configuration] = set(course.failures)
    distinct = []
    for name, members in groups:
        rest = {one: sample for one, sample in members.items() if one not in taken}
        taken.update(rest)
        if rest:
            distinct.append((name, rest))
    return distinct


def _winner(best: dict[Configuration, list[Measurement]], first: Configuration) -> Configuration | None:
    """The first by rank that keeps the limits; with several goals, among those that are nowhere worse than the plain start."""
    order = list(best)
    ranked = [order[place] for place in ranking(list(best.values())) if feasible(best[order[place]])]
    if first in best and feasible(best[first]):
        plain = medians(best[first])
        nowhere_worse = [
            one for one in ranked if all(ours >= theirs for ours, theirs in zip(medians(best[one]), plain, strict=True))
        ]
        ranked = nowhere_worse or ranked
    return ranked[0] if ranked else None


def _note(
    one: Configuration, winner: Configuration | None, best: dict[Configuration, list[Measurement]], name: str, stage: str
) -> str:
    if one == winner:
        return "winner"
    if name != stage:
        return f"out after runs of this length: {name}"
    if not feasible(best[one]):
        return "exceeds the limit"
    if winner is None or clearly_better(best[winner], best[one]):
        return "clearly worse"
    return "not told apart"


def _decision(
    course: Course,
    winner: Standing | None,
    nearest: Standing,
    best: dict[Configuration, list[Measurement]],
    first: Configuration,
    stage: str,
) -> Decision:
    if winner is None:
        return Decision("winner", False, f"no configuration keeps the limits; the nearest is: {nearest.configuration}")
    what = f"winner: {winner.configuration}"
    ours = best[winner.configuration]
    if stage != RACE:
        return Decision(what, True, f"best of what was run; {course.stopped}, so nothing was repeated and nothing is certain")
    rivals = [one for one in best if one != winner.configuration]
    close = [str(one) for one in rivals if not clearly_better(ours, best[one])]
    figures = {"runs": float(len(ours))}
    if first in best and first != winner.configuration:
        figures["ratio_to_plain_start"] = _ratio(medians(ours)[0], medians(best[first])[0])
    if not rivals:
        return Decision(what, True, "the only one that succeeded", figures)
    if not close:
        reason = f"better than every other finalist ({len(ours)} runs, chance of an accident at most {CERTAINTY:.0%} for each)"
        return Decision(what, True, reason, figures)
    return Decision(what, True, f"best median of {len(ours)} runs, but not told apart from: {'; '.join(close)}", figures)


def _ratio(ours: float, theirs: float) -> float:
    """How many times better, whichever way is better."""
    if not ours or not theirs:
        return 1.0
    return ours / theirs if ours > 0 else theirs / ours


def _standing(course: Course, one: Configuration, sample: Sequence[Measurement], stage: str, note: str) -> Standing:
    goals = course.resolved.goals if course.resolved else ()
    values = tuple(value if goal.higher else -value for goal, value in zip(goals, medians(sample), strict=True))
    column = [run.goals[0] if goals[0].higher else -run.goals[0] for run in sample]
    excess = tuple(statistics.median(column) for column in zip(*(run.excess for run in sample), strict=True))
    return Standing(
        one, len(sample), stage, values, min(column), max(column), spread_of(column), excess=excess, note=note
    )


def _failed(course: Course, one: Configuration) -> Standing:
    return Standing(one, 0, "", note=course.failures[one], failed=True)
