# SPDX-License-Identifier: Apache-2.0
"""The kernels' benchmark in a few numbers: geometric means by range of rows, and by family. Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks import spread
from benchmarks.options import DTYPES

ROW_RANGES = ((1, 4), (5, 64), (65, 512), (513, 1 << 30))
RIVALS = ("onednn", "mkl")


def geometric_means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over all sizes, for each dtype, rival and range of rows: how many times faster ours is."""
    means = []
    for dtype, rival, (low, high) in itertools.product(DTYPES, RIVALS, ROW_RANGES):
        key = f"over_{rival}"
        ratios = [row[key] for row in rows if row["dtype"] == dtype and key in row and low <= row["rows"] <= high]
        if ratios:
            mean, worst = spread.geometric_mean(ratios), min(ratios)
            means.append({"dtype": dtype, "rival": rival, "from": low, "to": high, "mean": mean, "worst": worst})
    return means


def family_means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over a family's shapes, for each dtype and rival: how many times faster ours is, and at the worst shape."""
    means = []
    for family, dtype, rival in dict.fromkeys((row["family"], row["dtype"], row["rival"]) for row in rows):
        mine = [row for row in rows if (row["family"], row["dtype"], row["rival"]) == (family, dtype, rival)]
        ratios = [row["over"] for row in mine]
        mean, worst = spread.geometric_mean(ratios), min(ratios)
        means.append({"family": family, "dtype": dtype, "rival": rival, "shapes": len(mine), "mean": mean, "worst": worst})
    return means
