# SPDX-License-Identifier: Apache-2.0
"""Rows that lie group by group, each group multiplied by a weight of its own: the experts of a mixture."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from slipstream.kernels import linear as kernel
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.linear import LinearOperator
from slipstream.optimize.graph.operators.operator import Answer, Tensors


class GroupedLinear(LinearOperator):
    """y[begin:end] = x[begin:end] · W_gᵀ for each group g; rows behind the last are zero.

    Takes x [R, K], None, ends [G] (behind which row a group ends, integers), weight [G, N, K], or ``transposed`` [G, K, N].
    Each group's matrix is packed by itself. ``batch``: rows of a group in the capture.
    """

    kind = "grouped linear"
    first_weight = 3

    def __init__(self, product: torch.dtype, out: torch.dtype, batch: int, *, transposed: bool) -> None:
        super().__init__(product, out, "none", batch)
        self.transposed = transposed

    def pack_kind(self, tensors: Tensors) -> Hashable:
        (weight,) = tensors
        assert weight is not None
        return ("grouped linear", self.transposed, tuple(weight.shape), self.held)

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        made = [kernel.pack(matrix, dtype=self.held.dtype, parts=self.held.parts) for matrix in self._matrices(tensors)]
        return made, sum(packed.data.numel() * packed.data.element_size() for packed in made)

    def settle(self, tensors: Tensors) -> Answer | None:
        pack = self.fitting(tensors)
        if pack is None:
            return None
        products = self._products(pack.content)
        return lambda x, nothing, ends, weight: self._by_group(x, ends, weight, products), (pack,)

    def __call__(self, x: Any, nothing: Any, ends: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        products = self._plain_products(tensors) if content is None else self._products(content)
        return self._by_group(x, ends, tensors[0], products)

    def _products(self, packs: list[kernel.PackedLinear]) -> list[quick.Quick]:
        return [quick.linear(packed, "none", self.out) for packed in packs]

    def _plain_products(self, tensors: Tensors) -> list[quick.Quick]:
        def of(matrix: torch.Tensor) -> quick.Quick:
            return lambda x, *_: kernel.plain_linear(x, matrix, None, out_dtype=self.out)

        return [of(matrix) for matrix in self._matrices(tensors)]

    def _by_group(self, x: torch.Tensor, ends: torch.Tensor, weight: torch.Tensor, products: list[quick.Quick]) -> torch.Tensor:
        results, begin = [], 0
        for end, product in zip(ends.tolist(), products, strict=True):
            if begin < end:
                results.append(product(x[begin:end], None, None, None))
                begin = end
        if begin < x.shape[0] or not results:
            results.append(x.new_zeros(x.shape[0] - begin, weight.shape[2 if self.transposed else 1], dtype=self.out))
        return results[0] if len(results) == 1 else torch.cat(results)

    def _matrices(self, tensors: Tensors) -> list[torch.Tensor]:
        """The weight of each group as [N, K]."""
        (weight,) = tensors
        assert weight is not None
        return list((weight.detach().transpose(1, 2) if self.transposed else weight.detach()).unbind())
