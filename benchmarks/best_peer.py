# SPDX-License-Identifier: Apache-2.0
"""The zoo in a few numbers: for each model and dtype, ours against the best of the others. Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import spread
from benchmarks.options import DTYPES

MOST_ERROR = {"float32": 1e-3, "bfloat16": 0.3}
"""A contestant further from eager float32 than this has not answered the question, and its time does not count."""


@dataclass(frozen=True)
class AgainstBest:
    """``times``: the best peer's time over ours, round by round."""

    model: str
    dtype: str
    peer: str
    times: spread.Ratio


def against_best(rows: Sequence[dict[str, Any]]) -> list[AgainstBest]:
    """A line a dtype and model in which ours and a peer of the same dtype both answered."""
    found = []
    for dtype, model in itertools.product(DTYPES, dict.fromkeys(row["model"] for row in rows)):
        able = {
            row["contestant"].removesuffix(f"-{dtype}"): row["rounds_ms"]
            for row in rows
            if row["model"] == model and row["contestant"].endswith(dtype) and "failure" not in row
            and row["error"] <= MOST_ERROR[dtype]
        }
        ours = able.pop("ours", None)
        if ours is None or not able:
            continue
        times = {peer: spread.ratio_by_round(rounds, ours) for peer, rounds in able.items()}
        peer = min(times, key=lambda name: times[name].value)
        found.append(AgainstBest(model, dtype, peer, times[peer]))
    return found


def geometric_means(lines: Sequence[AgainstBest]) -> dict[str, float]:
    """Over all models, by dtype."""
    by_dtype = {dtype: [line.times.value for line in lines if line.dtype == dtype] for dtype in DTYPES}
    return {dtype: spread.geometric_mean(values) for dtype, values in by_dtype.items() if values}
