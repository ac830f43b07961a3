# SPDX-License-Identifier: Apache-2.0
"""A whole LSTM, GRU or RNN module as one operator, on the packed weights that its piece uses as well."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from slipstream.kernels import recurrent as kernel
from slipstream.optimize.graph.operators.operator import Tensors, WeightOperator


@dataclass(frozen=True)
class Cells:
    """What the weights are those of; ``kind`` is one of `kernels.recurrent.KINDS`."""

    kind: str
    layers: int
    bidirectional: bool
    bias: bool
    projected: bool
    batch_first: bool


class Recurrent(WeightOperator):
    """Takes x [T, B, I] or [B, T, I], None, h0 and c0 or None for zeros, weights in torch's order.

    Gives the output alone, or with ``states`` (output, hidden state[, cell state]), as torch's function.
    """

    kind = "recurrent"
    first_weight = 4

    def __init__(self, product: torch.dtype, out: torch.dtype, cells: Cells, *, states: bool) -> None:
        super().__init__(product, out)
        self.cells = cells
        self.states = states

    def pack_kind(self, tensors: Tensors) -> Hashable:
        shapes = tuple(tuple(tensor.shape) for tensor in tensors if tensor is not None)
        cells = self.cells
        # as RecurrentPiece's, to share its packs
        return ((cells.kind, shapes, self.product, cells.bidirectional, cells.batch_first), None)

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        cells = self.cells
        packed = kernel.pack(
            cells.kind, [tensor for tensor in tensors if tensor is not None], layers=cells.layers,
            bidirectional=cells.bidirectional, bias=cells.bias, projected=cells.projected, dtype=self.product,
        )  # fmt: skip
        return packed, packed.bytes

    def __call__(self, x: Any, _: None, h0: Any, c0: Any, *tensors: Any) -> Any:
        content = self.content(tensors)
        across = self.cells.batch_first
        x = x.transpose(0, 1) if across else x
        if content is None:
            y, *states = self.plain(x, h0, c0, tensors)
        else:
            y, *states = kernel.recurrent(x, content, h0, c0, out_dtype=self.out)
        y = y.transpose(0, 1) if across else y
        return (y, *(state for state in states if state is not None)) if self.states else y

    def plain(self, x: Any, h0: Any, c0: Any, tensors: Any) -> Any:
        """By torch's own function, on weights that cannot be packed."""
        cells, weight = self.cells, tensors[0]
        count, batch = cells.layers * (2 if cells.bidirectional else 1), x.shape[1]
        units = weight.shape[0] // kernel.KINDS[cells.kind]
        width = tensors[1].shape[1]  # what comes back: hidden units, or their projections
        h0, c0 = (
            weight.new_zeros(count, batch, size) if state is None else state.to(weight.dtype)
            for state, size in ((h0, width), (c0, units))
        )
        function: Any = getattr(torch, cells.kind)
        numbers = cells.bias, cells.layers, 0.0, False, cells.bidirectional, False
        result = function(x.to(weight.dtype), (h0, c0) if cells.kind == "lstm" else h0, list(tensors), *numbers)
        return tuple(part.to(self.out) for part in result)
