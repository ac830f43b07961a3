# SPDX-License-Identifier: Apache-2.0
"""What a process's pieces did, out of its report: decisions joined with their accounts, equal layers in one group.

Plain values in, plain values out; the page is `pieces_page.py`, the text `tables.py`.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PieceRow:
    """One piece: the module's path (or the function's name), the act, and what came of it."""

    name: str
    act: str
    taken: bool
    reason: str
    figures: Mapping[str, float]
    layer: str = ""
    tier: str = "leaf"
    calls: int = 0
    seconds: float | None = None
    packed_mb: float = 0.0
    weights_mb: float = 0.0

    @property
    def kind(self) -> str:
        """Of the time by kind: the operator, whatever is fused behind it."""
        return self.name if self.tier == "function" else self.act.partition(" + ")[0]


@dataclass(frozen=True)
class Group:
    """Pieces whose paths differ in numbers only, with one act and one outcome."""

    name: str
    rows: tuple[PieceRow, ...]

    @property
    def first(self) -> PieceRow:
        return self.rows[0]

    @property
    def calls(self) -> int:
        return sum(row.calls for row in self.rows)

    @property
    def seconds(self) -> float | None:
        return _sum_or_none(row.seconds for row in self.rows)

    @property
    def packed_mb(self) -> float:
        return sum(row.packed_mb for row in self.rows)

    def figure(self, name: str) -> list[float]:
        """A figure of each member that has it."""
        return [row.figures[name] for row in self.rows if name in row.figures]

    @property
    def speedup(self) -> float | None:
        """The median over its members."""
        found = self.figure("speedup_x")
        return statistics.median(found) if found else None

    @property
    def error(self) -> float | None:
        """The worst of its members."""
        return max(self.figure("error_relative"), default=None)


def rows(process: Mapping[str, Any]) -> list[PieceRow]:
    """The pieces of one process, in the order in which they were decided."""
    accounts = process.get("accounts", {})
    found = []
    for decision in process["decisions"]:
        account = accounts.get(decision["what"])
        if account is not None:
            name, _, act = decision["what"].partition(": ")
            figures = decision.get("figures", {})
            found.append(PieceRow(name, act, decision["taken"], decision["reason"], figures, **account))
    return found


def other_decisions(process: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The decisions that are not about a piece."""
    accounts = process.get("accounts", {})
    return [decision for decision in process["decisions"] if decision["what"] not in accounts]


def groups(pieces: Iterable[PieceRow]) -> list[Group]:
    """Equal layers together; those that were optimized first, and among them where most time goes."""
    found: dict[tuple[object, ...], list[PieceRow]] = {}
    for row in pieces:
        found.setdefault((pattern(row.name), row.act, row.taken, row.reason), []).append(row)
    made = [Group(_common_name(members), tuple(members)) for members in found.values()]
    return sorted(made, key=lambda group: (not group.first.taken, -(group.seconds or 0.0)))


def pattern(name: str) -> str:
    """A path with a star for each number: encoder.*.query."""
    return re.sub(r"(?<=[.#])\d+(?=\.|$)", "*", name)


def _common_name(members: Sequence[PieceRow]) -> str:
    return members[0].name if len(members) == 1 else pattern(members[0].name)


def seconds_by_kind(pieces: Iterable[PieceRow]) -> dict[str, float]:
    """Time in each kind of piece, most first."""
    found: dict[str, float] = {}
    for row in pieces:
        if row.seconds:
            found[row.kind] = found.get(row.kind, 0.0) + row.seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def by_tier(pieces: Iterable[PieceRow]) -> dict[str, int]:
    """How many pieces each tier answers for."""
    found: dict[str, int] = {}
    for row in pieces:
        if row.taken:
            found[row.tier] = found.get(row.tier, 0) + 1
    return found


def parameters_mb(process: Mapping[str, Any]) -> float:
    """Of all models that were met."""
    return float(sum(model["parameters_mb"] for model in process.get("models", {}).values()))


def layers_without_piece(process: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """By model, the classes of layers that no piece was made for, and how many of each."""
    known = {account["layer"] for account in process.get("accounts", {}).values()}
    found = {}
    for label, model in process.get("models", {}).items():
        rest = {layer: count for layer, count in model["layers"].items() if layer not in known}
        if rest and sum(model["layers"].values()) > sum(rest.values()):
            found[label] = rest
    return found


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them; a dash where nothing was measured."""
    if seconds is None:
        return "–"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"


def megabytes(size: float) -> str:
    """A dash for nothing, two digits for little."""
    return "–" if not size else f"{size:.0f} MB" if size >= 10 else f"{size:.2g} MB"


def _sum_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
