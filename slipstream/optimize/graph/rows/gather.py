# SPDX-License-Identifier: Apache-2.0
"""A tensor's rows in another order, of which some may come twice or not at all."""

from __future__ import annotations

from typing import Any

import torch

from slipstream.optimize.graph.operators.operator import Operator


class RowGather(Operator):
    """Takes x [..., C]; gives [len(index), C], whose row r is row ``index[r]`` of x. ``index`` is int32, on the CPU."""

    kind = "row_gather"
    follows = True

    def __init__(self, index: torch.Tensor, out: torch.dtype) -> None:
        super().__init__(out, out)
        self.index = index

    def __call__(self, x: Any) -> torch.Tensor:
        return x.reshape(-1, x.shape[-1]).index_select(0, self.index)  # type: ignore[no-any-return]
