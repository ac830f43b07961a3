# SPDX-License-Identifier: Apache-2.0
"""Figures that the instances print, found by pattern, and one figure for all of them.

Rates are summed, times are averaged. The spread between instances is shown: one slow instance is a binding gone wrong.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

NUMBER = r"(?P<value>[-+]?\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?)"
THINGS = "samples?|images?|imgs?|frames|tokens?|tok|sentences|examples|items|it|iter|steps?|batch(?:es)?|req(?:uests)?|queries"
RATE_UNIT = rf"(?P<unit>(?:{THINGS})/s(?:ec(?:ond)?)?)"
TIME_UNIT = r"(?P<unit>(?:ns|us|µs|ms|s|sec|seconds)\b)"
IS = r"['\"]?\s*(?::|=|is)\s*"
DEFAULT_PATTERNS = (
    rf"(?P<name>\w+_per_second){IS}['\"]?{NUMBER}",  # eval_samples_per_second of the HF Trainer
    rf"(?i:(?P<name>throughput))(?:\s*\([^)]*\))?{IS}{NUMBER}\s*(?P<unit>[a-zA-Z]+/s(?:ec(?:ond)?)?)?",
    rf"(?i:(?P<name>(?:(?:p\d+|mean|median|average|avg)[ _-])?latency(?:[ _-]p\d+)?)){IS}{NUMBER}\s*{TIME_UNIT}?",
    rf"(?<![\w.]){NUMBER}\s*{RATE_UNIT}",
)
TIMES = re.compile(r"latency|time|seconds$|_ms$|p\d\d", re.IGNORECASE)
LONGEST_SERIES = 500
LONGEST_TEXT = 500
"""Only the end of a longer line is looked at: on a megabyte of letters the patterns would take minutes."""


@dataclass
class Figure:
    """One named figure: the last value of each instance, and its course as (seconds, value)."""

    name: str
    unit: str = ""
    last: dict[int, float] = field(default_factory=dict)
    series: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, index: int, value: float, at: float) -> None:
        self.last[index] = value
        course = self.series.setdefault(index, [])
        course.append((round(at, 3), value))
        if len(course) > LONGEST_SERIES:  # keep every second point: the shape stays
            del course[1::2]

    @property
    def summed(self) -> bool:
        is_time = self.unit in {"ns", "us", "µs", "ms", "s", "sec", "seconds"} or TIMES.search(self.name)
        return bool("per_second" in self.name or not is_time)

    def as_dict(self) -> dict[str, object]:
        values = list(self.last.values())
        mean = sum(values) / len(values)
        spread = 100 * (max(values) - min(values)) / abs(mean) if mean else 0.0
        return {
            "name": self.name,
            "unit": self.unit,
            "how": "sum" if self.summed else "mean",
            "total": sum(values) if self.summed else mean,
            "spread_percent": spread,
            "instances": {index: self.last[index] for index in sorted(self.last)},
            "series": {index: self.series[index] for index in sorted(self.series)},
        }


class Metrics:
    """A listener for lines; later values of an instance replace earlier ones."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._texts = (*patterns, *DEFAULT_PATTERNS)
        self._patterns: list[re.Pattern[str]] = []  # compiled at the first line: many runs have none to look at
        self._figures: dict[str, Figure] = {}
        self._start = time.monotonic()
        self.last_line: dict[int, str] = {}

    def listen(self, index: int, text: str) -> None:
        if not self._patterns:
            self._patterns = [re.compile(pattern) for pattern in self._texts]
        found = list(self._found_in(text[-LONGEST_TEXT:]))
        for name, unit, value in found:
            figure = self._figures.setdefault(name, Figure(name, unit))
            figure.add(index, value, time.monotonic() - self._start)
        if found:
            self.last_line[index] = text.strip()

    def as_dicts(self) -> list[dict[str, object]]:
        return [figure.as_dict() for figure in self._figures.values()]

    def _found_in(self, text: str) -> Iterable[tuple[str, str, float]]:
        """(name, unit, value) of every figure in a line; the same piece of text counts once."""
        taken: list[tuple[int, int]] = []
        for pattern in self._patterns:
            for match in pattern.finditer(text):
                start, end = match.span("value")
                if any(start < other_end and end > other_start for other_start, other_end in taken):
                    continue
                groups = match.groupdict()
                try:
                    value = float(groups["value"].replace("_", ""))
                except ValueError:  # a pattern of the user's whose value is no number
                    continue
                if not math.isfinite(value):  # JSON has no word for it
                    continue
                taken.append((start, end))
                unit = groups.get("unit") or ""
                yield (groups.get("name") or unit or "value").lower().replace(" ", "_"), unit, value
