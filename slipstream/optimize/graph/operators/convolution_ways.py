# SPDX-License-Identifier: Apache-2.0
"""What can answer for a convolution with channels last inside: a class each, made of a weight, called with x and a residual."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from slipstream.kernels import linear as linear_kernel
from slipstream.kernels import transpose
from slipstream.kernels.channels_last import convolution_last as direct_kernel
from slipstream.kernels.channels_last import depthwise as depthwise_kernel
from slipstream.kernels.channels_last import winograd as winograd_kernel
from slipstream.kernels.post_op import apply_post_op
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.pieces.followers import BY_POST_OP
from slipstream.optimize.pieces.linear import onednn_product

_ops = torch.ops.mkldnn

RACED_MACS = 2e8
"""Multiply-adds, some 4 ms of float32 on a core, that are enough for a race: the rest of a batch, or of a large image, takes
both sides as long again. Whole, the races of a text detector's 25 layers on a page of 736 x 960 took 20 s."""

RACED_PIXELS = 512
"""And outputs, for which tiles pay or not as they do for more."""

RACED_OUTPUTS = 2048
"""Enough of a line for a race: both sides take as long for the second half of a line as for the first."""


@dataclass(frozen=True)
class Geometry:
    """The numbers of a two-dimensional convolution, and the image size [N, C, H, W] that it was captured with.

    ``end_padding`` is the padding behind the image, below and on the right, where it is another than in front.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, ...]
    end_padding: tuple[int, int] | None = None


def raced_part(weight: torch.Tensor, geometry: Geometry) -> Geometry:
    """As many images, or rows and columns of one, as a race of convolutions with this weight needs."""
    batch, channels, height, width = geometry.size
    a_pixel = geometry.stride[0] * geometry.stride[1]
    pixels = max(RACED_MACS / max(1, weight.numel()), RACED_PIXELS) * a_pixel  # of the image that is convolved
    batch = min(batch, math.ceil(pixels / (height * width)))
    sides = []
    for i, (side, other) in enumerate(((height, width), (width, 1))):
        seen = (weight.shape[2 + i] - 1) * geometry.dilation[i] + 1
        step = winograd_kernel.TILES[-1] * geometry.stride[i]  # of a small part more tiles would jut out than of the whole
        least = math.ceil(max(pixels / other, seen) / step) * step
        sides.append(min(side, least))
        pixels /= sides[-1]
    return replace(geometry, size=(batch, channels, sides[0], sides[1]))


class Layer(Protocol):
    """What they answer for. ``parts``: how many of bfloat16 those hold a float32 weight in that do."""

    geometry: Geometry
    product: torch.dtype
    out: torch.dtype
    post_op: str
    parts: int


def _channels_innermost(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """For kernels that read either dtype: cast where the image has to be copied anyhow."""
    return x if x.stride(1) == 1 else transpose.to_channels_last(x, dtype)


class Pointwise:
    """1 × 1 over channels-last pixels: their rows times the weight."""

    what = "linear over pixels"
    in_parts = False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Layer) -> None:
        self.product = owner.product
        parts = owner.parts if self.in_parts else 1
        scaled = linear_kernel.repays_scaling(weight.shape[0])
        self.packed = linear_kernel.pack(weight.flatten(1), dtype=owner.product, parts=parts, scaled=scaled)
        self.bias = None if bias is None else bias.detach().clone()
        self.stride = owner.geometry.stride
        self.post_op, self.out = owner.post_op, owner.out
        self.run = quick.linear(self.packed, self.post_op, self.out, residual_first=True)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        image = _channels_innermost(x, self.product)
        if self.stride != (1, 1):
            image = image[:, :, :: self.stride[0], :: self.stride[1]]
        added = None if residual is None else residual.permute(0, 2, 3, 1)
        return self.run(image.permute(0, 2, 3, 1), added, None, self.bias).permute(0, 3, 1, 2)


class Depthwise:
    """One channel a group."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Layer) -> None:
        g = owner.geometry
        self.packed = depthwise_kernel.pack(
            weight, stride=g.stride, padding=g.padding, dilation=g.dilation, end_padding=g.end_padding
        )
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.product, self.post_op, self.out = owner.product, owner.post_op, owner.out
        self.run = quick.depthwise(self.packed, self.bias, self.post_op, self.out)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        return self.run(_channels_innermost(x, self.product), residual)


class Winograd:
    """3 × 3 of stride 1 with fewer multiplications than it has by definition."""

    what = "minimal filtering"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Layer) -> None:
        padding, tile = owner.geometry.padding, tile_for(weight, owner.geometry, owner.product)
        packed = winograd_kernel.pack(weight, dtype=winograd_kernel.held_dtype(owner.product), padding=padding, tile=tile)
        shift = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.run = quick.convolution_3x3(packed, shift, owner.post_op, owner.out)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        return self.run(x, residual)


class OverlappingRows:
    """Along a line of pixels without padding: a window of taps is a run of memory, so that windows are the rows of a linear."""

    what = "linear over overlapping rows"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Layer) -> None:
        self.taps, self.stride = weight.shape[3], owner.geometry.stride[1]
        packed = linear_kernel.pack(weight[:, :, 0].transpose(1, 2).flatten(1), dtype=owner.product)
        self.bias = None if bias is None else bias.detach().clone()
        self.product = owner.product
        self.run = quick.linear(packed, owner.post_op, owner.out, residual_first=True)

    @staticmethod
    def fits(weight: torch.Tensor, geometry: Geometry) -> bool:
        g = geometry
        unpadded = (g.padding, g.end_padding, g.groups) == ((0, 0), None, 1) and g.dilation[1] == 1
        return unpadded and weight.shape[2] == g.size[2] == 1 and weight.shape[1] > direct_kernel.MOST_PLANES

    @staticmethod
    def raced_geometry(weight: torch.Tensor, geometry: Geometry) -> Geometry:
        _, channels, height, length = geometry.size
        enough = (RACED_OUTPUTS - 1) * geometry.stride[1] + weight.shape[3]
        return replace(geometry, size=(1, channels, height, min(length, enough)))

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        image = transpose.to_channels_last(x, x.dtype if x.stride(1) == 1 else self.product)
        batch, channels, _height, length = image.shape
        size = batch, (length - self.taps) // self.stride + 1, self.taps * channels
        rows = image.as_strided(size, (length * channels, self.stride * channels, 1))
        added = None if residual is None else residual.squeeze(2).transpose(1, 2)
        return self.run(rows, added, None, self.bias).transpose(1, 2).unsqueeze(2)


class Direct:
    """Any kernel and stride, on images of few channels as they come."""

    what = "direct kernel"
    in_parts = False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Layer) -> None:
        g = owner.geometry
        packed = direct_kernel.pack(
            weight, dtype=owner.product, stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.groups,
            end_padding=g.end_padding, parts=owner.parts if self.in_parts else 1,
        )  # fmt: skip
        self.product = owner.product
        self.run = quick.convolution_last(packed, None if bias is None else bias.detach().clone(), owner.post_op, owner.out)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        return self.run(x if direct_kernel.in_planes(x) else _channels_innermost(x, self.product), residual)


class SplitPointwise(Pointwise):
    """The same of float32, from parts of bfloat16."""

    in_parts = True


class SplitDirect(Direct):
    """The same of float32, from parts of bfloat16."""

    in_parts = True


class OneDnn:
    """torch's own convolution on weights in oneDNN's order; sums of residual and activation inside where it has them."""

    what = "oneDNN"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Layer) -> None:
        g = owner.geometry
        self.zeros = _zeros_around(g)
        padding, size = list(g.padding), list(g.size)
        if self.zeros is not None:  # oneDNN knows one padding for both sides only
            left, right, top, bottom = self.zeros
            padding, size = [0, 0], [*g.size[:2], g.size[2] + top + bottom, g.size[3] + left + right]
        self.numbers = (padding, list(g.stride), list(g.dilation), g.groups)
        self.product = onednn_product(owner.product)
        self.packed = _ops._reorder_convolution_weight(weight.to(self.product), *self.numbers, size)
        self.bias = None if bias is None else bias.detach().to(self.product, copy=True)
        form = BY_POST_OP[owner.post_op]
        self.run, self.run_with_sum = _ops._convolution_pointwise.default, _ops._convolution_pointwise.binary
        self.tail = (form.attribute, list(form.scalars), form.algorithm)
        self.fused = form.attribute if form.attribute == "relu" else None
        self.post_op, self.out = owner.post_op, owner.out

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        image = _channels_last(x, self.product)
        if self.zeros is not None:
            image = F.pad(image, self.zeros)
        if residual is None:
            y = self.run(image, self.packed, self.bias, *self.numbers, *self.tail)
        else:
            added = _channels_last(residual, residual.dtype).to(image.dtype)
            y = self.run_with_sum(image, added, self.packed, self.bias, *self.numbers, "add", 1.0, self.fused, [], None)
            y = y if self.fused is not None else apply_post_op(y, self.post_op)
        return y if y.dtype == self.out else y.to(self.out)


def _channels_last(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if x.dtype is dtype and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return transpose.to_channels_last(x, dtype)


def _zeros_around(geometry: Geometry) -> tuple[int, int, int, int] | None:
    """What F.pad takes, where the padding behind is another than in front."""
    before, behind = geometry.padding, geometry.end_padding
    return None if behind is None else (before[1], behind[1], before[0], behind[0])


def tile_for(weight: torch.Tensor, geometry: Geometry, product: torch.dtype) -> int | None:
    """The tile of minimal filtering, where that is the better way for images of the captured size."""
    choice = _filtering_for(weight, geometry, product)
    return None if choice is None else choice.tile


def gain_of_filtering(weight: torch.Tensor, geometry: Geometry, product: torch.dtype) -> float:
    """How many times faster it should be than the direct kernel, which multiplies just as it does."""
    choice = _filtering_for(weight, geometry, product)
    return 0.0 if choice is None or choice.tile is None else choice.decision.figures["estimated_speedup_x"]


def _filtering_for(weight: torch.Tensor, geometry: Geometry, product: torch.dtype) -> winograd_kernel.Choice | None:
    plain = (geometry.stride, geometry.dilation, geometry.groups, geometry.end_padding) == ((1, 1), (1, 1), 1, None)
    if tuple(weight.shape[2:]) != (3, 3) or not plain:
        return None
    batch, channels, height, width = geometry.size
    size = (batch, channels, height, width)
    return winograd_kernel.choice(size, weight.shape[0], dtype=product, padding=geometry.padding)
