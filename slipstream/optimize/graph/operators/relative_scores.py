# SPDX-License-Identifier: Apache-2.0
"""What disentangled attention adds to its scores: queries and keys against tables of relative positions."""

from __future__ import annotations

from typing import Any

import torch

from slipstream.kernels import relative_scores as kernel
from slipstream.optimize.graph.operators.operator import Operator


class RelativeScores(Operator):
    """Takes query, key [B, H, L, D] and for each of them a table [H, P, D] and the positions [L, S], or None twice.

    Gives [B, H, L, S].
    """

    kind = "relative_scores"
    gives_float32 = True

    def __init__(self, product: torch.dtype, query_scale: float, key_scale: float) -> None:
        super().__init__(product, torch.float32)
        self.query_scale = query_scale
        self.key_scale = key_scale

    def __call__(self, query: Any, key: Any, *tables: Any) -> torch.Tensor:
        return kernel.relative_scores(
            query, key, *tables, query_scale=self.query_scale, key_scale=self.key_scale, dtype=self.product
        )


def positions_of(index: torch.Tensor, turned: bool) -> torch.Tensor:
    """[queries, keys] int32 of [..., queries, keys] whose other axes are 1 long, or of [..., keys, queries]."""
    index = index.reshape(index.shape[-2:])
    return (index.T if turned else index).to(torch.int32).contiguous()


positions_of.__module__ = "slipstream"
