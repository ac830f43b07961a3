# SPDX-License-Identifier: Apache-2.0
"""Whether two outputs say the same: byte by byte, else line by line with numbers compared for themselves.

Whole numbers must be equal: they are labels, counts, tokens. Numbers with a point may differ by the tolerance
or by one in their last printed digit. Times and rates are measurements and are not compared.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
TIME_UNIT = re.compile(r"\s*(?:ns|us|µs|ms|s|sec|secs|seconds|minutes|[a-zA-Z]+/s(?:ec(?:ond)?)?)\b")
TIME_NAME = re.compile(
    r"(?:time|times|latency|elapsed|duration|throughput|runtime|per_second|seconds|took|_n?s|_ms|_us|p\d\d)['\"]?"
    r"(?:\s*\([^)]*\))?\s*(?:[:=]|is|\s)\s*[\[(]?[\d.,\seE+-]*$",
    re.IGNORECASE,
)
SMALLEST = 1e-3
"""Numbers nearer to zero count as large as this in a relative difference."""

NAMED_TIME = re.compile(rf"(?P<name>\w+_(?:s|ms|us))['\"]?\s*[:=]\s*(?P<value>{NUMBER.pattern})")
"""A time with its unit in its name: "median_s": 1.3."""

MOST_DIFF_LINES = 14
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""By what weights are multiplied in; see `optimize/guards.py`."""

Place = tuple[int, int]
"""An instance and a line of its output, from 0."""


@dataclass(frozen=True)
class Judgement:
    """``same``: within the tolerance. ``worst`` is the largest relative difference of a number that was compared."""

    identical: bool = True
    same: bool = True
    worst: float = 0.0
    measured: int = 0
    """Lines with times or rates that differ."""
    differing: tuple[Place, ...] = ()
    diff: tuple[str, ...] = ()
    """The first differing lines, as a unified diff."""

    def words(self, tolerance: float) -> str:
        """One sentence for a person."""
        if self.identical:
            return "byte-identical"
        lines = f"{self.measured} line{'s' if self.measured != 1 else ''}"
        if self.same and self.measured and not self.worst:
            return f"the same but for times and rates in {lines}"
        more = f"; times and rates in {lines} were not compared" if self.measured else ""
        if self.same:
            return f"the same within {tolerance:g} (largest relative difference {self.worst:.2g}){more}"
        count = len(self.differing)
        return f"DIFFERENT in {count} line{'s' if count != 1 else ''}{more}"


def judge(
    plain: Mapping[int, bytes], ours: Mapping[int, bytes], tolerance: float, noise: frozenset[Place] = frozenset()
) -> Judgement:
    """Compare the outputs of all instances; lines in ``noise`` are not looked at."""
    if dict(plain) == dict(ours):
        return Judgement()
    worst, measured = 0.0, 0
    differing: list[Place] = []
    for index in sorted({*plain, *ours}):
        pairs = zip_longest(_lines(plain.get(index, b"")), _lines(ours.get(index, b"")))
        for number, (mine, theirs) in enumerate(pairs):
            if mine == theirs or (index, number) in noise:
                continue
            line = _compare(mine, theirs, tolerance)
            if line is None:
                differing.append((index, number))
            else:
                worst = max(worst, line[0])
                measured += line[1]
    diff = _diff(plain, ours, differing[0], tolerance) if differing else ()
    return Judgement(False, not differing, worst, measured, tuple(differing), diff)


def named_times(output: bytes) -> dict[str, float]:
    """Times that were printed under a name with their unit in it; the last value of each."""
    return {match["name"]: float(match["value"]) for match in NAMED_TIME.finditer(output.decode(errors="replace"))}


def _lines(output: bytes) -> list[str]:
    return output.decode(errors="replace").splitlines()


def _compare(mine: str | None, theirs: str | None, tolerance: float) -> tuple[float, bool] | None:
    """(largest relative difference, whether a measurement differs) of two lines that say the same, or None."""
    if mine is None or theirs is None or _text(mine) != _text(theirs):
        return None
    worst, measured = 0.0, False
    for left, right in zip(NUMBER.finditer(mine), NUMBER.finditer(theirs), strict=True):
        if left[0] == right[0]:
            continue
        if _is_measured(mine, left) and _is_measured(theirs, right):
            measured = True
            continue
        if _is_whole(left[0]) and _is_whole(right[0]):
            return None
        a, b = float(left[0]), float(right[0])
        error = abs(a - b) / max(abs(a), abs(b), SMALLEST)
        last_digit = 1.001 * max(_last_digit(left[0]), _last_digit(right[0])) if tolerance else 0.0
        if error > tolerance and abs(a - b) > last_digit:
            return None
        worst = max(worst, error)
    return worst, measured


def _text(line: str) -> str:
    """Without its numbers, and without the spaces that align them."""
    return " ".join(NUMBER.sub(" # ", line).split())


def _is_measured(line: str, number: re.Match[str]) -> bool:
    return bool(TIME_UNIT.match(line, number.end()) or TIME_NAME.search(line[: number.start()]))


def _is_whole(text: str) -> bool:
    return not set(text) & set(".eE")


def _last_digit(text: str) -> float:
    """What one more in the last printed digit amounts to."""
    digits, _, exponent = text.lower().partition("e")
    return float(10.0 ** (int(exponent or 0) - len(digits.partition(".")[2])))


def _diff(plain: Mapping[int, bytes], ours: Mapping[int, bytes], first: Place, tolerance: float) -> tuple[str, ...]:
    """From one line before the first difference on; a line that says the same is shown as if it were the same."""
    index, number = first
    begin, end = max(0, number - 1), number + MOST_DIFF_LINES
    mine, theirs = (_lines(output.get(index, b""))[begin:end] for output in (plain, ours))
    for place, (left, right) in enumerate(zip(mine, theirs, strict=False)):
        if _compare(left, right, tolerance) is not None:
            theirs[place] = left
    where = f"instance {index}, from line {begin + 1}"
    found = difflib.unified_diff(mine, theirs, f"plain ({where})", "codeless", lineterm="", n=1)
    return tuple(found)[: MOST_DIFF_LINES + 3]
