# SPDX-License-Identifier: Apache-2.0
"""The values of a search: a configuration, one run of it, what came of the run; and the one interface to effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

DONE, LIMIT, FAILED = "done", "limit", "failed"
"""How a run ended: by itself with exit code 0; stopped at its time limit; any other way."""

FIRST_TIMES = 5
"""So many moments of a figure are kept for each instance: enough to see that it comes again and again."""

ON, OFF = "on", "off"


@dataclass(frozen=True)
class Configuration:
    """A point of the space: flags of ipexrun with their values, and its place on each axis.

    A switch is `on` or `off`; an empty value leaves the flag away. ``instances`` and ``threads`` (of the smallest
    instance) are what the planner makes of it.
    """

    settings: tuple[tuple[str, str], ...]
    place: tuple[int, ...] = ()
    instances: int = 1
    threads: int = 1
    label: str = field(default="", compare=False)
    """What tells it from the others; empty: all of its flags."""

    def words(self) -> list[str]:
        """The flags as they are typed."""
        words: list[str] = []
        for flag, value in self.settings:
            if value == ON:
                words.append(f"--{flag}")
            elif value not in {OFF, ""}:
                words += [f"--{flag}", value]
        return words

    def __str__(self) -> str:
        return self.label or " ".join(self.words()) or "(no flags)"


@dataclass(frozen=True)
class Length:
    """How long runs may take. ``cut``: stopping at the limit is as planned, and what was printed till then counts.

    Runs of different lengths are never compared: a longer one has warmed up better.
    """

    name: str
    seconds: float
    cut: bool = False


@dataclass(frozen=True)
class Trial:
    """One run of the script: ``repeat`` counts the runs of one configuration at one length; ``limit`` is in seconds."""

    configuration: Configuration
    length: Length
    repeat: int
    limit: float


@dataclass(frozen=True)
class Figure:
    """A figure that the script printed: the last value of each instance, and when its first values came.

    ``how`` is sum, mean or max over the instances; ``higher`` says which way is better; ``target`` is from a marker.
    """

    name: str
    how: str
    values: Mapping[int, float]
    times: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    unit: str = ""
    higher: bool = True
    target: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of one run. ``instances`` were started; ``resident_mb`` is the largest that one of them grew."""

    ended: str
    seconds: float
    instances: int = 1
    figures: tuple[Figure, ...] = ()
    reason: str = ""
    resident_mb: float = 0.0


class Runner(Protocol):
    """The effects of a search: whole searches are tested with another one."""

    def run(self, trial: Trial) -> Outcome:
        """Run the script once. Whatever happens to the run is an outcome, never an exception."""

    def seconds(self) -> float:
        """Since the search began."""
