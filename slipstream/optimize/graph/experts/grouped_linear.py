# SPDX-License-Identifier: Apache-2.0
"""Rows that lie group by group, each group multiplied by a weight of its own: the experts of a mixture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from slipstream.kernels import linear as kernel
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
        return lambda x, nothing, ends, weight: self._by_group(x, ends, pack.content), (pack,)

    def __call__(self, x: Any, nothing: Any, ends: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        return self._by_group(x, ends, self._matrices(tensors) if content is None else content)

    def _by_group(self, x: torch.Tensor, ends: torch.Tensor, weights: Sequence[Any]) -> torch.Tensor:
        results, begin, width = [], 0, 0
        for end, weight in zip(ends.tolist(), weights, strict=True):
            width = weight.n if isinstance(weight, kernel.PackedLinear) else weight.shape[0]
            if begin < end:
                results.append(self._multiplied(x[begin:end], weight))
                begin = end
        if begin < x.shape[0]:
            results.append(x.new_zeros(x.shape[0] - begin, width, dtype=self.out))
        if not results:
            return x.new_zeros(0, width, dtype=self.out)
        return results[0] if len(results) == 1 else torch.cat(results)

    def _multiplied(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        if isinstance(weight, kernel.PackedLinear):
            return kernel.linear(x, weight, out_dtype=self.out)
        return kernel.plain_linear(x, weight, None, out_dtype=self.out)

    def _matrices(self, tensors: Tensors) -> list[torch.Tensor]:
        """The weight of each group as [N, K]."""
        (weight,) = tensors
        assert weight is not None
        return list((weight.detach().transpose(1, 2) if self.transposed else weight.detach()).unbind())
