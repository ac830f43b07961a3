# SPDX-License-Identifier: Apache-2.0
"""Convolutions in one and three dimensions, and transposed ones: y = act(norm(conv(x))), channels last inside.

In one dimension it is a two-dimensional one on an image of height 1, with all of its kernels; the others are torch's oneDNN on
weights in the order that it wants for just this size.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from slipstream.kernels import transpose
from slipstream.kernels.post_op import apply_post_op
from slipstream.optimize.graph.operators.convolution import Convolution
from slipstream.optimize.graph.operators.operator import Answer, Tensors, WeightOperator
from slipstream.optimize.pieces.followers import BY_POST_OP, fold_batch_norm

_ops = torch.ops.mkldnn


class Convolution1d(Convolution):
    """Takes x [N, C, L], residual, weight [O, C / groups, k], and the rest as `Convolution`; the geometry has a height of 1."""

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        weight, *rest = tensors
        assert weight is not None
        return super().make((weight.detach().unsqueeze(2), *rest))

    def settle(self, tensors: Tensors) -> Answer | None:
        found = super().settle(tensors)
        if found is None:
            return None
        answer, held = found
        return lambda x, added, *_: answer(x.unsqueeze(2), None if added is None else added.unsqueeze(2)).squeeze(2), held

    def __call__(self, x: Any, residual: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        image, added = x.unsqueeze(2), None if residual is None else residual.unsqueeze(2)
        if content is None:
            weight, *rest = tensors
            return self.plain(image, added, weight.unsqueeze(2), *rest).squeeze(2)
        result: torch.Tensor = content(image, added).squeeze(2)
        return result


@dataclass(frozen=True)
class Numbers:
    """As torch's functions take them, one for each dimension; ``size`` is that of the input in the capture."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    size: tuple[int, ...]
    output_padding: tuple[int, ...] | None = None
    """None: not transposed."""


class ConvolutionNd(WeightOperator):
    """Takes x [N, C, …], None, weight, bias, and with ``epsilon`` the batch norm's weight, bias, mean, variance."""

    kind = "convolution"
    first_weight = 2

    def __init__(
        self, product: torch.dtype, out: torch.dtype, numbers: Numbers, post_op: str, epsilon: float | None
    ) -> None:
        super().__init__(product, out)
        self.numbers = numbers
        self.post_op = post_op
        self.epsilon = epsilon

    def pack_kind(self, tensors: Tensors) -> Hashable:
        norm = None if self.epsilon is None else (self.epsilon, *(id(tensor) for tensor in tensors[2:]))
        return ("channels last", self.numbers, self.product, norm, tensors[1] is None)

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        weight, bias, *norm = tensors
        assert weight is not None
        transposed, groups = self.numbers.output_padding is not None, self.numbers.groups
        if self.epsilon is not None:
            rows = _turned(weight, groups) if transposed else weight
            rows, bias = fold_batch_norm(rows, bias, tuple(norm), self.epsilon)
            weight = _turned(rows, groups) if transposed else rows
        weight = weight.detach().to(self.product)
        if weight.dim() == 3:
            weight = weight.unsqueeze(2)
        settings, size = self._settings()
        reorder = _ops._reorder_convolution_transpose_weight if transposed else _ops._reorder_convolution_weight
        packed = reorder(weight, *settings, size)
        shift = None if bias is None else bias.detach().to(self.product, copy=True)
        return (packed, shift), weight.numel() * self.product.itemsize

    def _settings(self) -> tuple[tuple[Any, ...], list[int]]:
        """What oneDNN's operators take, and the image's size; one dimension becomes two."""
        n = self.numbers
        flat = len(n.stride) == 1

        def two(values: tuple[int, ...], first: int) -> list[int]:
            return [first, *values] if flat else list(values)

        size = [*n.size[:2], 1, n.size[2]] if flat else list(n.size)
        padding, stride, dilation = two(n.padding, 0), two(n.stride, 1), two(n.dilation, 1)
        if n.output_padding is None:
            return (padding, stride, dilation, n.groups), size
        return (padding, two(n.output_padding, 0), stride, dilation, n.groups), size

    def __call__(self, x: Any, residual: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        if content is None:
            return self.plain(x, *tensors)
        packed, shift = content
        flat = x.dim() == 3
        image = transpose.to_channels_last(x.unsqueeze(2) if flat else x, self.product)
        form = BY_POST_OP[self.post_op]
        tail = (form.attribute, list(form.scalars), form.algorithm)
        run = _ops._convolution_pointwise if self.numbers.output_padding is None else _ops._convolution_transpose_pointwise
        y = run(image, packed, shift, *self._settings()[0], *tail)
        y = y.squeeze(2) if flat else y
        return y if y.dtype == self.out else y.to(self.out)

    def plain(self, x: Any, weight: Any, bias: Any, *norm: Any) -> torch.Tensor:
        """The same from torch's functions, in float32, on weights that cannot be packed."""
        n, shift = self.numbers, None if bias is None else bias.float()
        rank = len(n.stride)
        with torch.autocast("cpu", enabled=False):
            if n.output_padding is None:
                y = getattr(F, f"conv{rank}d")(x.float(), weight.float(), shift, n.stride, n.padding, n.dilation, n.groups)
            else:
                transposed = getattr(F, f"conv_transpose{rank}d")
                settings = n.stride, n.padding, n.output_padding, n.groups, n.dilation
                y = transposed(x.float(), weight.float(), shift, *settings)
            if self.epsilon is not None:
                gamma, beta, mean, variance = norm
                y = F.batch_norm(y, mean, variance, gamma, beta, False, 0.0, self.epsilon)
            return apply_post_op(y, self.post_op).to(self.out)


def _turned(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """A transposed weight [in, out / groups, …] as [out, in / groups, …], and back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
