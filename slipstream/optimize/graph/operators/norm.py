# SPDX-License-Identifier: Apache-2.0
"""Layer norm of rows: input and output each float32 or bfloat16, sums in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from slipstream.optimize.graph.operators.operator import Operator


class LayerNorm(Operator):
    """Takes x [..., C], weight [C], bias [C]; weight and bias may be None."""

    kind = "layer_norm"

    def __init__(self, out: torch.dtype, eps: float) -> None:
        super().__init__(torch.float32, out)
        self.eps = eps

    def __call__(self, x: Any, weight: Any, bias: Any) -> torch.Tensor:
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self.eps).to(self.out)
