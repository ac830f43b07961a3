# SPDX-License-Identifier: Apache-2.0
"""CPU time and memory of whole process groups out of /proc, and their course over the run."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
LONGEST_SERIES = 500


@dataclass(frozen=True)
class Usage:
    """Of one group at one moment: seconds of CPU time, bytes resident, the leader's state letter."""

    cpu_seconds: float = 0.0
    resident: int = 0
    state: str = ""


@dataclass
class Course:
    """How one instance went on: moments in seconds, CPU use in percent of one CPU, resident megabytes."""

    seconds: list[float] = field(default_factory=list)
    cpu_percent: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)

    def add(self, at: float, percent: float, resident: float) -> None:
        for series, value in ((self.seconds, at), (self.cpu_percent, percent), (self.resident_mb, resident)):
            series.append(round(value, 2))
            if len(series) > LONGEST_SERIES:
                del series[1::2]


class Sampler:
    """Call ``sample`` now and then; ``courses`` by process group."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before: dict[int, tuple[float, float]] = {}
        self.courses: dict[int, Course] = {}
        self.states: dict[int, str] = {}

    def sample(self, groups: Collection[int]) -> None:
        now = time.monotonic()
        for group, usage in usage_of_groups(groups).items():
            then, seconds = self._before.get(group, (self._start, 0.0))
            # A member that ended takes its time along, so the sum may go down.
            percent = max(0.0, 100 * (usage.cpu_seconds - seconds) / max(now - then, 1e-3))
            self._before[group] = (now, usage.cpu_seconds)
            self.states[group] = usage.state
            self.courses.setdefault(group, Course()).add(now - self._start, percent, usage.resident / 1e6)


def usage_of_groups(groups: Collection[int]) -> dict[int, Usage]:
    """One pass over /proc; groups with no process left are missing."""
    found: dict[int, Usage] = {}
    for name in os.listdir("/proc"):
        fields = _stat_fields(name) if name.isdigit() else ()
        if not fields or int(fields[2]) not in groups:
            continue
        group = int(fields[2])
        before = found.get(group, Usage())
        leader = int(name) == group
        found[group] = Usage(
            before.cpu_seconds + (int(fields[11]) + int(fields[12])) / TICKS,
            before.resident + int(fields[21]) * PAGE,
            fields[0] if leader else before.state,
        )
    return found


def _stat_fields(pid: str) -> Sequence[str]:
    """The fields after the command's name, which is in brackets and may hold anything: state is the first."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return ()
