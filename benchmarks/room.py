# SPDX-License-Identifier: Apache-2.0
"""How near the contestants of the zoo are to the machine's ceiling: what is left for anybody to gain. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import best_peer

CEILINGS = {
    "float32": ("fma_float32_tflops",),
    "bfloat16": ("amx_bfloat16_fed_tflops", "dot_bfloat16_tflops", "fma_float16_tflops", "fma_float32_tflops"),
}
"""By dtype, the ways in which its products can be computed (bfloat16 is exact in float32, and scaled in float16 but
for its sums): the fastest is their ceiling."""


@dataclass(frozen=True)
class Room:
    """``peer``: the best peer's time over what the products alone take at the ceiling; ``ours``: the same of ours.

    Below 1 where fewer products do (minimal filtering of 3 x 3 convolutions).
    """

    model: str
    dtype: str
    gflop: float
    peer: float
    ours: float


def rooms(report: dict[str, Any]) -> list[Room]:
    """A line for each model and dtype in which ours and a peer answered, where products were counted and ceilings measured."""
    figures = report["ceilings"][-1] if report["ceilings"] else {}
    by_name = {(row["model"], row["contestant"]): row for row in report["rows"]}
    found = []
    for line in best_peer.against_best(report["rows"]):
        ours, peer = (by_name[line.model, f"{who}-{line.dtype}"] for who in ("ours", line.peer))
        ceiling = _ceiling(figures, CEILINGS[line.dtype])
        if ceiling is None or not ours.get("flop"):
            continue
        least_ms = ours["flop"] / ceiling / 1e9
        found.append(Room(line.model, line.dtype, ours["flop"] / 1e9, peer["ms"] / least_ms, ours["ms"] / least_ms))
    return found


def _ceiling(figures: dict[str, Any], keys: Sequence[str]) -> float | None:
    return max((figures[key] for key in keys if figures.get(key)), default=None)
