# SPDX-License-Identifier: Apache-2.0
"""The old `@hypertune` marker: `print("@hypertune {'name': …}")`, and the value on the line after it.

Keys: name; higher_is_better (default False); target_val; and, new, aggregate (sum, mean or max over the instances).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from slipstream.launcher.tune.trial import Figure

MARKER = "@hypertune"
PREFIX = "@"
"""Names of marked figures start so: a printed figure of the same name is another one."""

KEYS = {"name", "higher_is_better", "target_val", "aggregate"}
SHARES = re.compile(r"acc|f1|score|auc|precision|recall|percent|ratio|rate_of|util|perplexity|bleu|rouge", re.IGNORECASE)
"""Figures that are better when higher and yet not summed over instances."""

INFINITE = re.compile(r"float\(\s*(['\"])([-+]?)inf(?:inity)?\1\s*\)|(?<![\w'\"])([-+]?)(?:math\.|np\.)?inf\b")


class MarkerError(Exception):
    """A marker that cannot be read; the text says why."""


@dataclass
class Markers:
    """A listener for lines of standard output: an instance's index and its text."""

    _waiting: dict[int, Mapping[str, object]] = field(default_factory=dict)
    _found: dict[str, tuple[Mapping[str, object], dict[int, float]]] = field(default_factory=dict)

    def listen(self, index: int, text: str) -> None:
        line = text.strip()
        if line.startswith(MARKER):
            self._waiting[index] = read_marker(line)
        elif index in self._waiting:
            about = self._waiting.pop(index)
            try:
                value = float(line.replace("_", ""))
            except ValueError:
                raise MarkerError(f"the line after {MARKER} {about['name']} is no number: {line[:60]!r}") from None
            self._found.setdefault(str(about["name"]), (about, {}))[1][index] = value

    def figures(self) -> tuple[Figure, ...]:
        return tuple(_figure(name, about, values) for name, (about, values) in self._found.items())


def read_marker(line: str) -> Mapping[str, object]:
    """The dictionary of a marker's line, checked."""
    text = line[len(MARKER) :].strip()
    try:
        about = ast.literal_eval(INFINITE.sub(lambda match: f"{match[2] or match[3] or ''}1e999", text))
    except (ValueError, SyntaxError):
        raise MarkerError(f"{MARKER} {text}: not a dictionary of plain values") from None
    if not isinstance(about, dict) or not isinstance(about.get("name"), str) or not about["name"]:
        raise MarkerError(f"{MARKER} {text}: it needs {{'name': '…'}}")
    unknown = sorted(map(str, set(about) - KEYS))
    if unknown:
        raise MarkerError(f"{MARKER} {text}: {unknown[0]} is not one of {', '.join(sorted(KEYS))}")
    if not isinstance(about.get("higher_is_better", False), bool):
        raise MarkerError(f"{MARKER} {text}: higher_is_better is True or False")
    if not isinstance(about.get("target_val", 0), int | float):
        raise MarkerError(f"{MARKER} {text}: target_val is a number")
    if about.get("aggregate", "sum") not in {"sum", "mean", "max"}:
        raise MarkerError(f"{MARKER} {text}: aggregate is sum, mean or max")
    return about


def marked_figures(lines: Iterable[tuple[int, str]]) -> tuple[Figure, ...]:
    """The figures of all markers in (instance, text) lines; later values of an instance replace earlier ones."""
    markers = Markers()
    for index, text in lines:
        markers.listen(index, text)
    return markers.figures()


def _figure(name: str, about: Mapping[str, object], values: Mapping[int, float]) -> Figure:
    higher = bool(about.get("higher_is_better", False))
    how = str(about.get("aggregate") or ("sum" if higher and not SHARES.search(name) else "mean"))
    # The predecessor took an absent target for -infinity, which the first trial of a maximization always beats.
    target = about.get("target_val")
    known = isinstance(target, int | float) and math.isfinite(target)
    return Figure(f"{PREFIX}{name}", how, values, higher=higher, target=float(target) if known else None)  # type: ignore[arg-type]
