# SPDX-License-Identifier: Apache-2.0
"""y = act(norm(conv(x)) + residual), channels last inside: each shape on the kernel that is best for it.

1 × 1 is a linear over pixels; one channel a group has a vector kernel, 3 × 3 of stride 1 minimal filtering where that pays. The
rest is torch's oneDNN with weights in the order that it wants for just this image size (without the size it picks formats that
cost up to five times as much), or ours, where that may win and does so in a race: along a line without padding a linear over
rows that overlap, else the direct kernel, on an image of this size.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from slipstream.decision import log
from slipstream.kernels import linear as linear_kernel
from slipstream.kernels import native, transpose
from slipstream.kernels.channels_last import convolution_last as direct_kernel
from slipstream.kernels.channels_last import depthwise as depthwise_kernel
from slipstream.kernels.channels_last import winograd as winograd_kernel
from slipstream.kernels.post_op import apply_post_op
from slipstream.optimize import guards
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.operator import Answer, Tensors, WeightOperator
from slipstream.optimize.pieces.followers import BY_POST_OP, fold_batch_norm

_ops = torch.ops.mkldnn

MARGIN = 1.03
"""How many times faster than oneDNN ours has to be."""

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


class Convolution(WeightOperator):
    """Takes x, residual, weight, bias, and with ``epsilon`` the batch norm's weight, bias, mean, variance."""

    kind = "convolution"
    first_weight = 2

    def __init__(
        self, product: torch.dtype, out: torch.dtype, geometry: Geometry, post_op: str, epsilon: float | None
    ) -> None:
        super().__init__(product, out)
        self.geometry = geometry
        self.post_op = post_op
        self.epsilon = epsilon

    def pack_kind(self, tensors: Tensors) -> Hashable:
        norm = None if self.epsilon is None else (self.epsilon, *(id(tensor) for tensor in tensors[2:]))
        return ("channels last", self.geometry, self.product, norm, tensors[1] is None, self.post_op, self.out)

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        weight, bias, *norm = tensors
        assert weight is not None
        if self.epsilon is not None:
            weight, bias = fold_batch_norm(weight, bias, tuple(norm), self.epsilon)
        way = way_for(weight, self.geometry, self.product)
        rival = rival_of(weight, self.geometry, self.product) if way is OneDnn else None
        if rival is not None:
            return faster_of_two(rival, weight.detach(), bias, self), weight.numel() * self.product.itemsize
        return way(weight.detach(), bias, self), weight.numel() * self.product.itemsize

    def __call__(self, x: Any, residual: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        return self.plain(x, residual, *tensors) if content is None else content(x, residual)  # type: ignore[no-any-return]

    def settle(self) -> Answer | None:
        return None if self.pack is None else (self.pack.content.__call__, (self.pack,))

    def plain(self, x: Any, residual: Any, weight: Any, bias: Any, *norm: Any) -> torch.Tensor:
        """The same from torch's functions, in float32, on weights that cannot be packed."""
        g = self.geometry
        shift = None if bias is None else bias.float()
        behind = g.end_padding or g.padding
        image = F.pad(x.float(), (g.padding[1], behind[1], g.padding[0], behind[0]))
        y = F.conv2d(image, weight.float(), shift, g.stride, 0, g.dilation, g.groups)
        if self.epsilon is not None:
            gamma, beta, mean, variance = norm
            y = F.batch_norm(y, mean, variance, gamma, beta, False, 0.0, self.epsilon)
        if residual is not None:
            y = y + residual
        return apply_post_op(y, self.post_op).to(self.out)


def _channels_innermost(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """For kernels that read either dtype: cast where the image has to be copied anyhow."""
    return x if x.stride(1) == 1 else transpose.to_channels_last(x, dtype)


class Pointwise:
    """1 × 1 over channels-last pixels: their rows times the weight."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Convolution) -> None:
        self.product = owner.product
        self.packed = linear_kernel.pack(weight.flatten(1), dtype=owner.product)
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

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Convolution) -> None:
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

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Convolution) -> None:
        padding, tile = owner.geometry.padding, tile_for(weight, owner.geometry, owner.product)
        packed = winograd_kernel.pack(weight, dtype=owner.product, padding=padding, tile=tile)
        shift = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.run = quick.convolution_3x3(packed, shift, owner.post_op, owner.out)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        return self.run(x, residual)


class OverlappingRows:
    """Along a line of pixels without padding: a window of taps is a run of memory, so that windows are the rows of a linear."""

    what = "linear over overlapping rows"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Convolution) -> None:
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

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Convolution) -> None:
        g = owner.geometry
        packed = direct_kernel.pack(
            weight, dtype=owner.product, stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.groups,
            end_padding=g.end_padding,
        )  # fmt: skip
        self.product = owner.product
        self.run = quick.convolution_last(packed, None if bias is None else bias.detach().clone(), owner.post_op, owner.out)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        return self.run(x if direct_kernel.in_planes(x) else _channels_innermost(x, self.product), residual)


class OneDnn:
    """torch's own convolution on weights in oneDNN's order; sums of residual and activation inside where it has them."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, owner: Convolution) -> None:
        g = owner.geometry
        self.zeros = _zeros_around(g)
        padding, size = list(g.padding), list(g.size)
        if self.zeros is not None:  # oneDNN knows one padding for both sides only
            left, right, top, bottom = self.zeros
            padding, size = [0, 0], [*g.size[:2], g.size[2] + top + bottom, g.size[3] + left + right]
        self.numbers = (padding, list(g.stride), list(g.dilation), g.groups)
        self.product = owner.product
        self.packed = _ops._reorder_convolution_weight(weight.to(owner.product), *self.numbers, size)
        self.bias = None if bias is None else bias.detach().to(owner.product, copy=True)
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


def is_depthwise(weight: torch.Tensor, geometry: Geometry) -> bool:
    """One channel in and out a group, and no more taps than the kernel takes."""
    taps = weight.shape[2] * weight.shape[3]
    return geometry.groups == weight.shape[0] and weight.shape[1] == 1 and taps <= depthwise_kernel.MOST_TAPS


def tile_for(weight: torch.Tensor, geometry: Geometry, product: torch.dtype) -> int | None:
    """The tile of minimal filtering, where that is the better way for images of the captured size."""
    plain = (geometry.stride, geometry.dilation, geometry.groups, geometry.end_padding) == ((1, 1), (1, 1), 1, None)
    if tuple(weight.shape[2:]) != (3, 3) or not plain:
        return None
    batch, channels, height, width = geometry.size
    size = (batch, channels, height, width)
    return winograd_kernel.choice(size, weight.shape[0], dtype=product, padding=geometry.padding).tile


def way_for(weight: torch.Tensor, geometry: Geometry, product: torch.dtype) -> Any:
    """The class that answers best for this weight [out, in / groups, kh, kw]."""
    if is_depthwise(weight, geometry):
        return Depthwise
    if tile_for(weight, geometry, product) is not None:
        return Winograd
    if weight.shape[2:] == (1, 1) and geometry.groups == 1 and geometry.padding == (0, 0) and geometry.end_padding is None:
        return Pointwise
    return OneDnn


def may_win(weight: torch.Tensor, geometry: Geometry, product: torch.dtype) -> bool:
    """Whether our direct kernel is worth a race with oneDNN for this weight [out, in / groups, kh, kw].

    On images of few channels it is, which it reads as they come. On tiles in bfloat16 it is too, where a group has outputs for
    half a panel. Elsewhere both are at the processor's limit, or oneDNN was never slower.
    """
    if not all(geometry.size) or not native.available():
        return False
    if native.active_level() == "amx" and product is torch.bfloat16:
        return weight.shape[0] // geometry.groups >= 16
    return geometry.groups == 1 and weight.shape[1] <= direct_kernel.MOST_PLANES


def rival_of(weight: torch.Tensor, geometry: Geometry, product: torch.dtype) -> type[OverlappingRows] | type[Direct] | None:
    """What of ours races against oneDNN for this weight [out, in / groups, kh, kw]."""
    if OverlappingRows.fits(weight, geometry) and all(geometry.size) and native.available():
        return OverlappingRows
    return Direct if may_win(weight, geometry, product) else None


def faster_of_two(
    rival: type[OverlappingRows] | type[Direct], weight: torch.Tensor, bias: torch.Tensor | None, owner: Convolution
) -> OverlappingRows | Direct | OneDnn:
    """The rival or oneDNN: whichever computes an image of the captured size sooner; found once a kind of layer.

    Along a line part of the image will do.
    """
    g = owner.geometry if rival is Direct else OverlappingRows.raced_geometry(weight, owner.geometry)
    name = "convolution_last" if rival is Direct else "overlapping_rows"
    question = (name, astuple(g), tuple(weight.shape), owner.product, owner.out, owner.post_op)
    verdict = guards.speed.known(question)
    if verdict is not None:
        if verdict.earlier:
            _say_who_won(rival, weight, g, verdict)
        return (rival if verdict.fast else OneDnn)(weight, bias, owner)
    part = Convolution(owner.product, owner.out, g, owner.post_op, None)
    ours, theirs = rival(weight, bias, part), OneDnn(weight, bias, part)
    own = torch.Generator().manual_seed(0)  # the script's sequence stays as it is
    x = torch.randn(g.size, generator=own)
    if weight.shape[1] > direct_kernel.MOST_PLANES:  # else the image that a script has: float32, channels first
        x = x.to(owner.product, memory_format=torch.channels_last)
    macs = weight.numel() * g.size[0] * g.size[2] * g.size[3] / (g.stride[0] * g.stride[1])
    verdict = guards.speed.settle(question, lambda: ours(x, None), lambda: theirs(x, None), macs, MARGIN)
    _say_who_won(rival, weight, g, verdict)
    return (rival if verdict.fast else OneDnn)(weight, bias, owner)


def _say_who_won(
    rival: type[OverlappingRows] | type[Direct], weight: torch.Tensor, geometry: Geometry, verdict: guards.Verdict
) -> None:
    size = " x ".join(map(str, geometry.size))
    what = f"{weight.shape[2]} x {weight.shape[3]} convolution to {weight.shape[0]} channels of {size}: {rival.what}"
    reason = f"raced against oneDNN on an image of this size{verdict.when()}"
    log.note(what, verdict.fast, reason, speedup_x=verdict.speedup_x)
