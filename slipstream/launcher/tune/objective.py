# SPDX-License-Identifier: Apache-2.0
"""What is to be made better: `throughput`, `latency`, `p99<20`, any printed figure (`min:loss`), or the script's markers.

An `Objective` is what was asked; `resolve` ties it to the figures that the script really prints; `measure` reads a run.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slipstream.errors import UsageError
from slipstream.launcher.tune.comparison import Measurement
from slipstream.launcher.tune.marker import PREFIX
from slipstream.launcher.tune.trial import Figure, Outcome

MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "sec": 1e3, "seconds": 1e3}
TERM = re.compile(r"(?P<name>(?:min:|max:)?@?[\w./ -]+?)\s*(?:(?P<sign><=?|>=?)\s*(?P<bound>[-+.\deE]+)\s*(?P<unit>[a-zµ]+)?)?")
ALLOWED = "not of the form throughput, latency, NAME, min:NAME, or with a limit: p99<20, 'latency,throughput>100'"


STEPS = ("it/", "iter", "step", "batch")
"""Rates of these say less than rates of samples or tokens, where a script prints both."""


class NoFigure(Exception):
    """A run in which the objective cannot be read; the text is the reason."""


@dataclass(frozen=True)
class Limit:
    """A figure that must stay below (``upper``) or above ``bound``; times are in milliseconds."""

    name: str
    bound: float
    upper: bool = True

    def __str__(self) -> str:
        return f"{self.name}{'<' if self.upper else '>'}{self.bound:g}"


@dataclass(frozen=True)
class Objective:
    """As asked. No goals: what the script's markers say, or else its throughput."""

    goals: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()

    def __str__(self) -> str:
        return ", ".join([*(self.goals or ("throughput",)), *map(str, self.limits)])


@dataclass(frozen=True)
class Goal:
    """A figure of the script and which way it is better. ``how``: over instances, where not as the figure says."""

    name: str
    higher: bool
    target: float | None = None
    unit: str = ""
    how: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Resolved:
    """The objective in terms of the figures that the script prints."""

    goals: tuple[Goal, ...]
    limits: tuple[Limit, ...] = ()


def parse_objective(text: str) -> Objective:
    """`throughput`, `latency`, `p99<20` (throughput under that limit), `latency,throughput>100`; UsageError otherwise."""
    goals: list[str] = []
    limits: list[Limit] = []
    for part in text.split(","):
        match = TERM.fullmatch(part.strip())
        if match is None:
            raise UsageError.of("--objective", text, ALLOWED)
        name = match["name"].strip().lower().replace(" ", "_")
        if match["sign"] is None:
            goals.append(name)
            continue
        if ":" in name:
            raise UsageError.of("--objective", text, "a limit has its direction already")
        try:
            bound = float(match["bound"])
        except ValueError:
            raise UsageError.of("--objective", text, ALLOWED) from None
        unit = match["unit"] or ""
        if unit and unit not in MILLISECONDS:
            raise UsageError.of("--objective", text, f"unit {unit} is not one of " + ", ".join(MILLISECONDS))
        limits.append(Limit(name, bound * MILLISECONDS.get(unit, 1.0), upper=match["sign"].startswith("<")))
    return Objective(tuple(goals or ["throughput"]), tuple(limits))


def resolve(objective: Objective, figures: Sequence[Figure]) -> Resolved:
    """Which figures are meant. Raises NoFigure where one of them was not printed."""
    marked = [figure for figure in figures if figure.name.startswith(PREFIX)]
    if not objective.goals and marked:
        goals = tuple(_goal("", figure) for figure in marked)
    else:
        asked = [name.rpartition(":")[::2] for name in objective.goals or ("throughput",)]
        goals = tuple(_goal(way, _find(name, figures)) for way, name in asked)
    limits = tuple(Limit(_find(limit.name, figures).name, limit.bound, limit.upper) for limit in objective.limits)
    return Resolved(goals, limits)


def measure(resolved: Resolved, outcome: Outcome) -> Measurement:
    """The run by the objective, signed so that greater is better. Raises NoFigure with the reason."""
    goals = []
    for goal in resolved.goals:
        value = over_instances(_of_all(goal.name, outcome), how=goal.how)
        goals.append(value if goal.higher else -value)
    excess = tuple(_excess(limit, _of_all(limit.name, outcome)) for limit in resolved.limits)
    return Measurement(tuple(goals), excess)


def meets_targets(resolved: Resolved, measurement: Measurement) -> bool:
    """Whether every goal has a target and reaches it."""
    pairs = list(zip(resolved.goals, measurement.goals, strict=True))
    return not any(measurement.excess) and all(
        goal.target is not None and value >= (goal.target if goal.higher else -goal.target) for goal, value in pairs
    )


def over_instances(figure: Figure, *, how: str = "") -> float:
    """One value for all instances; times in milliseconds."""
    values = [value * MILLISECONDS.get(figure.unit, 1.0) for value in figure.values.values()]
    how = how or figure.how
    return max(values) if how == "max" else math.fsum(values) if how == "sum" else statistics.fmean(values)


def _goal(way: str, figure: Figure) -> Goal:
    """``way`` is min, max or empty: what the figure's kind says. Something to be kept low is no rate to be summed."""
    higher = figure.higher if not way else way == "max"
    unit = "ms" if figure.unit in MILLISECONDS else figure.unit
    return Goal(figure.name, higher, figure.target, unit, "mean" if way == "min" and figure.how == "sum" else "")


def _excess(limit: Limit, figure: Figure) -> float:
    """Relative to the bound; a time is that of the worst instance, since each of them serves somebody."""
    if limit.upper:
        beyond = over_instances(figure, how="max" if figure.how == "mean" else "") - limit.bound
    else:
        beyond = limit.bound - over_instances(figure)
    return max(0.0, beyond) / (abs(limit.bound) or 1.0)


def _of_all(name: str, outcome: Outcome) -> Figure:
    figure = next((figure for figure in outcome.figures if figure.name == name), None)
    if figure is None:
        raise NoFigure(_not_printed(name, outcome.figures))
    missing = sorted(set(range(outcome.instances)) - set(figure.values))
    if missing:
        raise NoFigure(f"instance {missing[0]} printed no {name}")
    wrong = [value for value in figure.values.values() if not math.isfinite(value)]
    if wrong:
        raise NoFigure(f"{name} is {wrong[0]}")
    return figure


def _not_printed(name: str, figures: Sequence[Figure]) -> str:
    printed = ", ".join(sorted(figure.name for figure in figures))
    if name.startswith(PREFIX):
        return f"it printed no marker {name.removeprefix(PREFIX)} this time, only {printed or 'no figure at all'}"
    if not printed:
        return f"it printed no figure, so no {name}; print('{name}: 12.3'), or give a pattern: --metric REGEX"
    return f"it printed no {name}, only {printed}; name one of them (--objective), or give a pattern: --metric REGEX"


def _find(name: str, figures: Sequence[Figure]) -> Figure:
    """The figure that is meant by a name; where several fit, the same one in every run."""
    rows: tuple[tuple[bool, Callable[[Figure], bool]], ...] = (
        (True, lambda figure: figure.name.lower() == name),
        (name == "throughput", lambda figure: figure.name.endswith("samples_per_second")),
        (name == "throughput", lambda figure: figure.name.endswith("_per_second")),
        (name == "throughput", lambda figure: _is_rate(figure) and not figure.name.startswith(STEPS)),
        (name == "throughput", _is_rate),
        (name == "latency", lambda figure: re.match(r"(mean|average|avg)[_ -]latency", figure.name) is not None),
        (name == "latency", lambda figure: re.match(r"(median|p50)[_ -]latency|latency[_ -]p50", figure.name) is not None),
        (True, lambda figure: name in re.split(r"[_ @/-]", figure.name.lower())),
    )
    for applies, fits in rows:
        found = sorted((figure for figure in figures if applies and fits(figure)), key=lambda figure: figure.name)
        if found:
            return found[0]
    raise NoFigure(_not_printed(name, figures))


def _is_rate(figure: Figure) -> bool:
    return figure.how == "sum" and re.search(r"/s(ec(ond)?)?$", figure.name) is not None
