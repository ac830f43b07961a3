# SPDX-License-Identifier: Apache-2.0
"""Layer norm and RMS norm of rows, or of a sum of two; group norm: each tensor float32 or bfloat16, sums in float32."""

from __future__ import annotations

import functools
from typing import Any

import torch

from slipstream.kernels import norm as kernel
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.operator import Operator


class _RowNorm(Operator):
    centred: bool

    def __init__(self, out: torch.dtype, eps: float) -> None:
        super().__init__(torch.float32, out)
        self.eps = eps

    @functools.cached_property
    def run(self) -> quick.Quick:
        """At the first call: until then ``out`` may change."""
        return quick.layer_norm(self.eps, self.out, centred=self.centred)


class LayerNorm(_RowNorm):
    """Takes x [..., C], residual (or None), weight [C], bias [C]; weight and bias may be None."""

    kind = "layer_norm"
    centred = True

    def __call__(self, x: Any, residual: Any, weight: Any, bias: Any) -> torch.Tensor:
        return self.run(x, residual, weight, bias)


class RmsNorm(_RowNorm):
    """Takes x [..., C], residual (or None), weight [C] or None."""

    kind = "rms_norm"
    centred = False

    def __call__(self, x: Any, residual: Any, weight: Any) -> torch.Tensor:
        return self.run(x, residual, weight, None)


class GroupNorm(Operator):
    """Takes x [N, C, …], channels first or last in memory, weight [C], bias [C]; weight and bias may be None."""

    kind = "group_norm"

    def __init__(self, out: torch.dtype, groups: int, eps: float, post_op: str) -> None:
        super().__init__(torch.float32, out)
        self.groups = groups
        self.eps = eps
        self.post_op = post_op

    def __call__(self, x: Any, weight: Any, bias: Any) -> torch.Tensor:
        return kernel.group_norm(x, self.groups, weight, bias, self.eps, post_op=self.post_op, out_dtype=self.out)
