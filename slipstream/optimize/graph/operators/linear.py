# SPDX-License-Identifier: Apache-2.0
"""y = residual + multiplier · act(scale · (x Wᵀ + b)), on the packed weights that the linear pieces use as well."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from slipstream.kernels import linear as kernel
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.operator import Answer, Tensors, WeightOperator

Rows = tuple[int, int] | None
"""From one row of a weight to before another."""

RunOn = Callable[[kernel.PackedLinear], quick.Quick]
"""What gives, for a pack, (x, residual, multiplier, bias) -> y."""


class LinearOperator(WeightOperator):
    """Holds float32 weights as torch's float32 matmul precision has them. ``batch``: rows of x in the capture."""

    def __init__(self, product: torch.dtype, out: torch.dtype, post_op: str, batch: int) -> None:
        super().__init__(product, out)
        self.post_op = post_op
        self.batch = batch
        self.precision: str | None = None
        self.held = kernel.Held(product)

    def choose(self) -> None:
        """How to hold the weights for the precision that is asked for now."""
        if self.product == torch.float32:
            precision = kernel.asked_precision()
            if precision != self.precision:
                self.held, self.pack = kernel.best_held(precision, self.batch), None
                self.precision = precision

    def run_on(self, packed: kernel.PackedLinear) -> quick.Quick:
        return quick.linear(packed, self.post_op, self.out)


class Linear(LinearOperator):
    """Takes x, residual, multiplier, weight [N, K], bias [N], scale [N]; all but x and weight may be None.

    A scale becomes part of the pack, as the layer scales of ConvNeXt and BEiT. ``rows`` are those of weight and bias that it
    answers for, by default all: it reads a part of the whole weight's pack, or has a pack of its own where they begin or end
    within a panel. There is no scale then. ``transposed``: the weight is [K, N]. ``width``: K, where the weight has several
    axes for N or K, one behind the other.
    """

    kind = "linear"
    first_weight = 3

    def __init__(
        self, product: torch.dtype, out: torch.dtype, post_op: str, batch: int, rows: Rows = None, *,
        transposed: bool = False, width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(product, out, post_op, batch)
        self.rows = rows
        self.transposed = transposed
        self.width = width
        self._cut: tuple[Any, Any] = (None, None)

    def pack_kind(self, tensors: Tensors) -> Hashable:
        weight, bias, scale = tensors
        assert weight is not None
        if scale is not None:
            return ("scaled linear", self.transposed, self.width, tuple(weight.shape), self.held, id(bias), id(scale))
        if self._is_apart(weight):
            return ("linear of rows", self.rows, tuple(weight.shape), self.held)
        if self.width is not None:
            return ("folded linear", self.transposed, self.width, tuple(weight.shape), self.held)
        return shared_kind(weight, self.held, transposed=self.transposed)

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors[:1] if tensors[2] is None else tensors

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        weight, bias, scale = tensors
        assert weight is not None
        weight, shift = self._matrix(weight.detach()), None
        if scale is not None:
            weight = weight.detach().float() * scale.detach().float()[:, None]
            shift = None if bias is None else bias.detach().float() * scale.detach().float()
        if self.rows is not None and self._is_apart(weight):
            weight = weight[self.rows[0] : self.rows[1]]
        packed = kernel.pack(weight, dtype=self.held.dtype, parts=self.held.parts)
        return (packed, shift), packed.data.numel() * packed.data.element_size()

    def settle(self, tensors: Tensors) -> Answer | None:
        return self.settle_by(tensors, self.run_on)

    def settle_by(self, tensors: Tensors, run_on: RunOn) -> Answer | None:
        """`settle` with another `run_on`, whose x may be anything."""
        pack = self.fitting(tensors)
        if pack is None:
            return None
        packed, shift = pack.content
        run = run_on(self._part_of(packed))
        rows = self.rows

        def answer(x: Any, residual: Any, multiplier: Any, weight: Any, bias: Any, scale: Any) -> torch.Tensor:
            if rows is not None and bias is not None:
                bias = bias[rows[0] : rows[1]]
            return run(x, residual, multiplier, bias if scale is None else shift)

        return answer, (pack,)

    def __call__(self, x: Any, residual: Any, multiplier: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        weight, bias, scale = tensors
        weight = self._matrix(weight)
        if self.rows is not None:
            bias = None if bias is None else bias[self.rows[0] : self.rows[1]]
            weight = weight[self.rows[0] : self.rows[1]]
        if content is None:
            factor = multiplier if scale is None else scale.expand(*x.shape[:-1], -1)
            return kernel.plain_linear(
                x, weight, bias, post_op=self.post_op, residual=residual, multiplier=factor, out_dtype=self.out
            )
        shift = bias if scale is None else content[1]
        packed = self._part_of(content[0])
        return kernel.linear(
            x, packed, shift, post_op=self.post_op, residual=residual, multiplier=multiplier, out_dtype=self.out
        )

    def _matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as [N, K]."""
        if self.width is not None:
            weight = weight.reshape(self.width, -1) if self.transposed else weight.reshape(-1, self.width)
        return weight.t() if self.transposed else weight

    def _is_apart(self, weight: torch.Tensor) -> bool:
        """Whether its rows are no part of the pack of the whole weight [N, K]."""
        return self.rows is not None and not kernel.is_part(*self.rows, of=weight.shape[0])

    def _part_of(self, packed: kernel.PackedLinear) -> kernel.PackedLinear:
        """What it multiplies by, of what it has packed."""
        if self.rows is None or packed.n == self.rows[1] - self.rows[0]:
            return packed
        whole, part = self._cut
        if whole is not packed:
            part = kernel.part(packed, *self.rows)
            self._cut = packed, part
        return part


def shared_kind(weight: torch.Tensor, held: kernel.Held, *, transposed: bool = False) -> Hashable:
    """The kind of a pack of this weight alone: as LinearPiece's, or TransposedLinearPiece's, to share its packs."""
    return (("transposed linear" if transposed else "linear", tuple(weight.shape), *held, False), None)
