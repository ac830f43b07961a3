# SPDX-License-Identifier: Apache-2.0
"""y = residual + multiplier · act(x Wᵀ + b), on the packed weights that the linear pieces use as well."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from slipstream.kernels import linear as kernel
from slipstream.optimize.graph.operators.operator import Tensors, WeightOperator


class Linear(WeightOperator):
    """Takes x, residual, multiplier, weight [N, K], bias [N]; each of residual, multiplier, bias may be None."""

    kind = "linear"

    def __init__(self, product: torch.dtype, out: torch.dtype, post_op: str) -> None:
        super().__init__(product, out)
        self.post_op = post_op

    def pack_kind(self, tensors: Tensors) -> Hashable:
        weight = tensors[0]
        assert weight is not None
        return (("linear", tuple(weight.shape), self.product, False), None)  # as LinearPiece's, to share its packs

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors[:1]

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        weight = tensors[0]
        assert weight is not None
        packed = kernel.pack(weight, dtype=self.product)
        return (packed, None), packed.data.numel() * packed.data.element_size()

    def __call__(self, x: Any, residual: Any, multiplier: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        weight, bias = tensors
        if content is None:
            return kernel.plain_linear(
                x, weight, bias, post_op=self.post_op, residual=residual, multiplier=multiplier, out_dtype=self.out
            )
        return kernel.linear(
            x, content[0], bias, post_op=self.post_op, residual=residual, multiplier=multiplier, out_dtype=self.out
        )
