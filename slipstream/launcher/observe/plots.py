# SPDX-License-Identifier: Apache-2.0
"""Plots of one figure for several instances, as inline SVG: bars by instance, lines over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLOURS = ("#2f6fb7", "#d9822b", "#3a9e6f", "#a14fb0", "#c0392b", "#7a8794", "#8a6d1f", "#1f8a8a")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 180, 48, 8, 10, 22
STEPS = 4
"""About so many parts of an axis."""

Course = Sequence[tuple[float, float]]


def bars(title: str, values: Mapping[str, float]) -> str:
    """One bar for each label, from zero."""
    marks = ticks(min(0.0, *values.values()), max(0.0, *values.values()))
    step = (WIDTH - LEFT - RIGHT) / len(values)
    width = min(step * 0.7, 64.0)
    text = _axis(marks)
    for place, (label, value) in enumerate(values.items()):
        middle = LEFT + (place + 0.5) * step
        top, foot = sorted((_height(value, marks), _height(0.0, marks)))
        text += (
            f'<rect x="{middle - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{foot - top:.1f}" rx="2" '
            f'fill="{_colour(place)}"><title>{_whose(label)}: {value:.6g}</title></rect>'
            f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>'
        )
        if width >= 40:
            text += f'<text x="{middle:.1f}" y="{top - 3:.1f}" text-anchor="middle">{short(value)}</text>'
    return _figure(title, text)


def lines(title: str, courses: Mapping[str, Course]) -> str:
    """One line for each label over a common axis of time, and which colour is whose."""
    values = [point[1] for course in courses.values() for point in course]
    seconds = [point[0] for course in courses.values() for point in course]
    marks = ticks(min(0.0, *values), max(0.0, *values))
    begin, length = min(seconds), (max(seconds) - min(seconds)) or 1.0
    text = _axis(marks)
    for place, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = LEFT + place * (WIDTH - LEFT - RIGHT)
        text += f'<text x="{x:.0f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{short(round(begin + place * length, 1))} s</text>'
    for place, (label, course) in enumerate(courses.items()):
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT - RIGHT) * (at - begin) / length:.1f},{_height(value, marks):.1f}" for at, value in course
        )
        text += (
            f'<polyline points="{points}" fill="none" stroke="{_colour(place)}" stroke-width="1.8" stroke-opacity=".85">'
            f"<title>{_whose(label)}</title></polyline>"
        )
    return _figure(title, text, labels=courses if len(courses) > 1 else ())


def ticks(low: float, high: float) -> list[float]:
    """Round values from at or below ``low`` to at or above ``high``, with a little room above."""
    length = (high - low) or 1.0
    rough = length / STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil((high + 0.06 * length) / step)
    return [number * step for number in range(first, last + 1)]


def short(value: float) -> str:
    """Four digits and k, M, G: what fits beside an axis."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (size > 1e3 and abs(value) >= size):
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def _figure(title: str, content: str, labels: Iterable[str] = ()) -> str:
    key = "".join(
        f'<span><i style="background:{_colour(place)}"></i>{_whose(label)}</span>' for place, label in enumerate(labels)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{content}</svg><div class=key>{key}</div></figure>'
    )


def _axis(marks: Sequence[float]) -> str:
    """A thin line at each mark with its value, a stronger one at zero."""
    return "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_height(value, marks):.1f}" y2="{_height(value, marks):.1f}" '
        f'stroke="currentColor" stroke-opacity="{".12" if value else ".45"}"/>'
        f'<text x="{LEFT - 6}" y="{_height(value, marks) + 4:.1f}" text-anchor="end">{short(value)}</text>'
        for value in marks
    )


def _height(value: float, marks: Sequence[float]) -> float:
    """The place of a value from the top."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (marks[-1] - value) / (marks[-1] - marks[0])


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _whose(label: str) -> str:
    return f"instance {escape(label)}"
