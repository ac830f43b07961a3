# SPDX-License-Identifier: Apache-2.0
"""y = act(norm(conv(x)) + residual), channels last inside: each shape on the kernel that is best for it.

1 × 1 is a linear over pixels; one channel a group has a vector kernel, 3 × 3 of stride 1 minimal filtering where that pays. The
rest is torch's oneDNN with weights in the order that it wants for just this image size (without the size it picks formats that
cost up to five times as much), or ours, where that may win and does so in a race: along a line without padding a linear over
rows that overlap, else the direct kernel, on a part of such an image. On tiles all that serves float32 races against the same
products from parts of bfloat16.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import astuple
from typing import Any

import torch
import torch.nn.functional as F

from slipstream.decision import log
from slipstream.kernels import linear as linear_kernel
from slipstream.kernels import native
from slipstream.kernels.channels_last import convolution_last as direct_kernel
from slipstream.kernels.channels_last import depthwise as depthwise_kernel
from slipstream.kernels.linear import asked_precision
from slipstream.kernels.post_op import apply_post_op
from slipstream.optimize import guards
from slipstream.optimize.graph.operators.convolution_ways import (
    Depthwise,
    Direct,
    Geometry,
    OneDnn,
    OverlappingRows,
    Pointwise,
    SplitDirect,
    SplitPointwise,
    Winograd,
    gain_of_filtering,
    raced_part,
    tile_for,
)
from slipstream.optimize.graph.operators.operator import Answer, Tensors, WeightOperator
from slipstream.optimize.pieces.followers import fold_batch_norm

MARGIN = 1.03
"""How many times faster than the other the rival has to be."""

NO_RIVAL = 1.5
"""Estimated gain of minimal filtering over our direct kernel from which on they do not race. (Measured where it is more: 1.8 to
3.3; a race of the two takes as long as all others of a layer.)"""

HALF_A_PANEL = 16
"""Outputs of a group from which on tiles may pay."""


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
        self.precision: str | None = None
        self.splits = True
        self.parts = 1

    def choose(self) -> None:
        """In how many parts float32 weights may be held, for the precision that torch is asked for now."""
        if self.product == torch.float32 and self.splits:
            precision = asked_precision("conv")
            if precision != self.precision:
                parts = parts_for(precision, self.geometry)
                self.parts, self.pack = parts, self.pack if parts == self.parts else None
                self.precision = precision

    def stay_whole(self) -> None:
        """Hold float32 weights as float32: for kernels that read no parts."""
        self.splits, self.parts, self.pack = False, 1, None

    def pack_kind(self, tensors: Tensors) -> Hashable:
        norm = None if self.epsilon is None else (self.epsilon, *(id(tensor) for tensor in tensors[2:]))
        return ("channels last", self.geometry, self.product, self.parts, norm, tensors[1] is None, self.post_op, self.out)

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        weight, bias, *norm = tensors
        assert weight is not None
        if self.epsilon is not None:
            weight, bias = fold_batch_norm(weight, bias, tuple(norm), self.epsilon)
        weight = weight.detach()
        way = way_for(weight, self.geometry, self.product)
        if way is Winograd and all(self.geometry.size):
            way = faster_of_two(Winograd, OneDnn, weight, bias, self)
        rival = rival_of(weight, self.geometry, way, self.product)
        if rival is not None:
            way = faster_of_two(rival, way, weight, bias, self)
        split = split_of(weight, self.geometry, way, self.parts)
        if split is not None:
            way = faster_of_two(split, way, weight, bias, self)
        size = 2 * self.parts if way is split else self.product.itemsize
        return way(weight, bias, self), weight.numel() * size

    def __call__(self, x: Any, residual: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        return self.plain(x, residual, *tensors) if content is None else content(x, residual)  # type: ignore[no-any-return]

    def settle(self, tensors: Tensors) -> Answer | None:
        pack = self.fitting(tensors)
        return None if pack is None else (pack.content.__call__, (pack,))

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


def is_depthwise(weight: torch.Tensor, geometry: Geometry) -> bool:
    """One channel in and out a group, and no more taps than the kernel takes."""
    taps = weight.shape[2] * weight.shape[3]
    return geometry.groups == weight.shape[0] and weight.shape[1] == 1 and taps <= depthwise_kernel.MOST_TAPS


def way_for(weight: torch.Tensor, geometry: Geometry, product: torch.dtype) -> Any:
    """The class that answers best for this weight [out, in / groups, kh, kw]."""
    if is_depthwise(weight, geometry):
        return Depthwise
    if tile_for(weight, geometry, product) is not None:
        return Winograd
    if weight.shape[2:] == (1, 1) and geometry.groups == 1 and geometry.padding == (0, 0) and geometry.end_padding is None:
        return Pointwise
    return OneDnn


def may_win(weight: torch.Tensor, geometry: Geometry) -> bool:
    """Whether our direct kernel is worth a race for this weight [out, in / groups, kh, kw].

    On images of few channels it is, which it reads as they come, and where a group has outputs for half a panel. Which of ours
    and oneDNN's is faster there depends on the processor: of the 3 x 3 of stride 2, say, in one image.
    """
    if not all(geometry.size) or not native.available():
        return False
    few = geometry.groups == 1 and weight.shape[1] <= direct_kernel.MOST_PLANES
    return few or weight.shape[0] // geometry.groups >= HALF_A_PANEL


def rival_of(
    weight: torch.Tensor, geometry: Geometry, way: Any, product: torch.dtype
) -> type[OverlappingRows] | type[Direct] | None:
    """What of ours races against ``way``, oneDNN or minimal filtering, for this weight [out, in / groups, kh, kw]."""
    if way not in (OneDnn, Winograd) or (way is Winograd and gain_of_filtering(weight, geometry, product) > NO_RIVAL):
        return None
    if OverlappingRows.fits(weight, geometry) and all(geometry.size) and native.available():
        return OverlappingRows
    return Direct if may_win(weight, geometry) else None


def parts_for(precision: str, geometry: Geometry) -> int:
    """Parts of bfloat16 for float32 products at this precision: more than one on tiles that the captured image fills."""
    if native.active_level() != "amx" or not all(geometry.size):
        return 1
    pixels = geometry.size[0] * geometry.size[2] * geometry.size[3] // (geometry.stride[0] * geometry.stride[1])
    return linear_kernel.best_held(precision, pixels).parts


def split_of(weight: torch.Tensor, geometry: Geometry, way: Any, parts: int) -> type[SplitPointwise] | type[SplitDirect] | None:
    """What multiplies in so many parts and races against ``way`` for this weight [out, in / groups, kh, kw]."""
    if parts == 1 or way is Depthwise:
        return None
    if way is Pointwise:
        return SplitPointwise
    return SplitDirect if weight.shape[0] // geometry.groups >= HALF_A_PANEL else None


_RACES = {OverlappingRows: "overlapping_rows", Winograd: "winograd"}


def faster_of_two(rival: Any, other: Any, weight: torch.Tensor, bias: torch.Tensor | None, owner: Convolution) -> Any:
    """Of two of these classes the one that computes images of the captured size sooner; found once a kind of layer.

    Part of the batch, of a large image or of a line will do.
    """
    part = OverlappingRows.raced_geometry if rival is OverlappingRows else raced_part
    g = part(weight, owner.geometry)
    name: Hashable = _RACES.get(rival, "convolution_last")
    if other is Winograd:
        name = name, other.what
    if rival in (SplitPointwise, SplitDirect):
        name = rival.what, owner.parts, other.what
    question = (name, astuple(g), tuple(weight.shape), owner.product, owner.out, owner.post_op)
    verdict = guards.speed.known(question)
    if verdict is None or verdict.earlier:
        verdict = verdict or _race(question, rival, other, weight, bias, g, owner)
        _say_who_won(rival, other, weight, g, owner.parts, verdict)
    return rival if verdict.fast else other


def _race(
    question: Hashable, rival: Any, other: Any, weight: torch.Tensor, bias: torch.Tensor | None, g: Geometry,
    owner: Convolution,
) -> guards.Verdict:  # fmt: skip
    part = Convolution(owner.product, owner.out, g, owner.post_op, None)
    part.parts = owner.parts
    ours, theirs = rival(weight, bias, part), other(weight, bias, part)
    own = torch.Generator().manual_seed(0)  # the script's sequence stays as it is
    x = torch.randn(g.size, generator=own)
    if weight.shape[1] > direct_kernel.MOST_PLANES:  # else the image that a script has: float32, channels first
        x = x.to(owner.product, memory_format=torch.channels_last)
    macs = weight.numel() * g.size[0] * g.size[2] * g.size[3] / (g.stride[0] * g.stride[1])
    return guards.speed.settle(question, lambda: ours(x, None), lambda: theirs(x, None), macs, MARGIN)


def _say_who_won(
    rival: Any, other: Any, weight: torch.Tensor, geometry: Geometry, parts: int, verdict: guards.Verdict
) -> None:
    size = " x ".join(map(str, geometry.size))
    how = f"{rival.what} in {parts} parts of bfloat16" if rival in (SplitPointwise, SplitDirect) else rival.what
    what = f"{weight.shape[2]} x {weight.shape[3]} convolution to {weight.shape[0]} channels of {size}: {how}"
    reason = f"raced against {other.what} on an image of this size{verdict.when()}"
    log.note(what, verdict.fast, reason, speedup_x=verdict.speedup_x)
