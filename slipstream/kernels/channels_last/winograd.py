# SPDX-License-Identifier: Apache-2.0
"""3 x 3 convolution of stride 1 by minimal filtering, channels last on both sides: y = post_op(conv(x) + b + residual).

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. Outputs are computed in tiles of 2 x 2 or
4 x 4, which takes 2.25 or 4 times fewer multiplications than the definition does.

Accuracy, against float64, in relative norm, at up to 512 channels: float32 in tiles of 2 x 2 7e-7, of 4 x 4 2e-6 (torch's own
float32 convolution: 3e-7); bfloat16 4e-3, where the image is transformed in float32 and rounded then (a direct product of
bfloat16: 2.4e-3); at level avx512_fp16 weights and images are scaled to float16, as `kernels.linear` has it (tiles of 2 x 2
1.5e-3, of 4 x 4 4.5e-3, up to twice that where a single channel or pixel stands out, half of it on smooth images); at those of
16-bit integers and at avx512_bf16, weights and transformed pixels are scaled to these (tiles of 2 x 2 8e-4, of 4 x 4 2.2e-3). A
NaN or an infinity reaches whole tiles, and no other image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from slipstream.decision import Decision
from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.operands import check_dtypes, check_image, refuse_gradients
from slipstream.kernels.post_op import code_of, finished

TILES = (2, 4)
"""Sides of a tile of outputs."""

WORTH_IT = 1.05
"""Estimated gain over a direct convolution below which it stays direct. (Where it is more, a graph asks a race.)"""

# Costs in float32 multiplications, from measurements on a processor with AVX-512: reading a transformed weight from memory, and
# the transforms of a tile for each channel on either side, by dtype and side of the tile.
_READ_A_WEIGHT = 8
_A_SCALED_PRODUCT = 0.55  # of bfloat16, to float16 or integers; a float32 product is 1
_WIDENED = ("avx512", "avx512_bf16_widened")
_TRANSFORM = {(torch.float32, 2): 240, (torch.float32, 4): 600, (torch.bfloat16, 2): 180, (torch.bfloat16, 4): 450}
_FIT = {2: 120, 4: 270}  # to integers, each transformed pixel by the largest of its point and tile


@dataclass(frozen=True, eq=False)
class PackedWinograd:
    """A weight [out, in, 3, 3], transformed for tiles of ``tile`` x ``tile``, in the kernel's order; serves every image size.

    ``data`` is opaque, (tile + 2)² / 9 times the weight's size; without the native extension it is the weight itself.
    """

    data: torch.Tensor
    tile: int
    padding: tuple[int, int]
    in_channels: int
    out_channels: int
    native: bool


def pack(
    weight: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    padding: tuple[int, int] = (1, 1),
    tile: int | None = None,
) -> PackedWinograd:
    """Transform ``weight`` [out, in, 3, 3] (float32 or bfloat16) in float64 and copy it into the kernel's order.

    ``dtype`` is what the packed copy holds and what is multiplied (or what it is scaled to, as for `kernels.linear.pack`),
    ``padding`` that of rows and columns, ``tile`` the side of a tile of outputs: 2, or, by default and where `tiles_of` has it,
    4. Raises UsageError for other shapes, dtypes and tiles.
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise UsageError.of("weight", f"of shape {tuple(weight.shape)}", "not of shape [out, in, 3, 3]")
    check_dtypes(dtype=dtype, weight=weight.dtype)
    allowed = tiles_of(dtype)
    tile = allowed[-1] if tile is None else tile
    if tile not in allowed:
        raise UsageError.of("tile", tile, allowed, "" if tile not in TILES else "pack it with dtype=torch.float32")
    if min(padding) < 0:
        raise UsageError.of("padding", padding, "below 0")
    out_channels, in_channels = int(weight.shape[0]), int(weight.shape[1])
    with torch.no_grad():
        if native.available():
            halves = dtype is torch.bfloat16
            scaled = halves and _scaled_dtype() is not torch.bfloat16
            data = torch.ops.slipstream.pack_winograd(weight.detach(), tile, halves, scaled)
            return PackedWinograd(data, tile, padding, in_channels, out_channels, True)
        data = weight.detach().to(dtype).contiguous().clone()
        return PackedWinograd(data, tile, padding, in_channels, out_channels, False)


def held_dtype(dtype: torch.dtype) -> torch.dtype:
    """What to pack in for images whose precision is ``dtype``: float32 where bfloat16 would be widened.

    Then products take no longer, and the digits do for tiles of 4 x 4.
    """
    return torch.float32 if native.active_level() in _WIDENED else dtype


def tiles_of(dtype: torch.dtype) -> tuple[int, ...]:
    """Sides of tiles for which the digits do that ``dtype`` is multiplied with: bfloat16's for 2 only, unless it is scaled."""
    return TILES if dtype is torch.float32 or _scaled_dtype() is not torch.bfloat16 else TILES[:1]


def _scaled_dtype() -> torch.dtype:
    return native.scaled_dtype("winograd")


@dataclass(frozen=True)
class Choice:
    """The side of a tile that pays, or None where a direct convolution does, and why."""

    tile: int | None
    decision: Decision


def choice(
    x_shape: tuple[int, int, int, int],
    out_channels: int,
    *,
    dtype: torch.dtype = torch.float32,
    padding: tuple[int, int] = (1, 1),
) -> Choice:
    """Which tile to pack for, for images of ``x_shape`` [batch, in, height, width], by counting multiplications.

    Tiles of 4 x 4 pay where maps are large. Edges waste part of them, and their weights, four times the size, have to be read
    from memory: where tiles are few, 2 x 2 is better. Few channels do not repay the transforms. bfloat16 is estimated for the
    levels that scale it, and as the float32 that `held_dtype` makes of it; with tiles it stays direct.
    """
    dtype = held_dtype(dtype)
    batch, ins, height, width = x_shape
    what = f"3 x 3 convolution {ins} -> {out_channels}, {height} x {width}, batch {batch}: minimal filtering"
    halves, level = dtype is torch.bfloat16, native.active_level()
    if level == "none" or (halves and _scaled_dtype() is torch.bfloat16):
        return Choice(None, Decision(what, False, native.reason() if level == "none" else f"no gain known at level {level}"))
    size = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    a_product = _A_SCALED_PRODUCT if halves else 1.0
    direct = 9 * ins * out_channels * (batch * size[0] * size[1] + _READ_A_WEIGHT) * a_product
    fits = halves and _scaled_dtype() is torch.int16
    gains = {}
    for tile in tiles_of(dtype):
        tiles = batch * -(-size[0] // tile) * -(-size[1] // tile)
        products = (tile + 2) ** 2 * ins * -(-out_channels // 32) * 32 * (tiles + _READ_A_WEIGHT) * a_product
        transform = _TRANSFORM[dtype, tile] + (_FIT[tile] if fits else 0)
        gains[tile] = direct / max(1.0, products + tiles * transform * (ins + out_channels))
    best = max(gains, key=gains.__getitem__)
    taken = gains[best] >= WORTH_IT
    reason = f"tiles of {best} x {best} would take {gains[best]:.2f} times fewer multiplications, transforms counted"
    return Choice(best if taken else None, Decision(what, taken, reason, {"estimated_speedup_x": gains[best]}))


def convolution_3x3(
    x: torch.Tensor,
    packed: PackedWinograd,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [N, out, oh, ow] = post_op(conv(x [N, in, h, w]) + bias [out] + residual [N, out, oh, ow]), channels last.

    x and residual are float32 or bfloat16, in any memory format (another than channels_last costs a copy), bias is float32; y
    is ``out_dtype`` or x's dtype. Raises UsageError for an unknown post-op or dtype and for sizes that do not fit together,
    RuntimeError where a gradient would have to be recorded.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, out_dtype=dtype)
    check_image(x, packed.in_channels)
    if any(x.shape[2 + i] + 2 * packed.padding[i] < 3 for i in range(2)):
        raise UsageError.of("x", f"of shape {tuple(x.shape)}", "smaller than the kernel even when padded")
    refuse_gradients("convolution_3x3", x, bias, residual)
    if not packed.native:
        return plain_convolution_3x3(x, packed, bias, post_op=post_op, residual=residual, out_dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    return torch.ops.slipstream.winograd.default(
        x, packed.data, packed.out_channels, packed.tile, *packed.padding, bias, code, residual, dtype is torch.bfloat16
    )


def plain_convolution_3x3(
    x: torch.Tensor,
    packed: PackedWinograd,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The twin: what `convolution_3x3` means, in plain torch."""
    y = F.conv2d(x.to(packed.data.dtype), packed.data, None, 1, packed.padding)
    y = finished(y, bias, residual, post_op, x.dtype if out_dtype is None else out_dtype)
    return y.contiguous(memory_format=torch.channels_last)
