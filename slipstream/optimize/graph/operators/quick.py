# SPDX-License-Identifier: Apache-2.0
"""Native operators as functions of what changes from call to call, with the rest looked up and checked beforehand.

A call between two kernels runs with cold caches and one thread of all, so what it costs counts as often as there are threads.
Each gives None without the native extension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from slipstream.kernels.channels_last.winograd import PackedWinograd
from slipstream.kernels.linear import PackedLinear
from slipstream.kernels.operands import DTYPES
from slipstream.kernels.post_op import code_of

Maybe = torch.Tensor | None
Quick = Callable[..., torch.Tensor] | None


def linear(packed: PackedLinear, post_op: str, out: torch.dtype) -> Quick:
    """(x, residual, multiplier, bias) -> y, as `kernels.linear.linear`."""
    if not packed.native:
        return None
    run, data, n, k = torch.ops.slipstream.linear.default, packed.data, packed.n, packed.k
    code, low = code_of(post_op), out is torch.bfloat16

    def quick(x: torch.Tensor, residual: Maybe, multiplier: Maybe, bias: Maybe) -> torch.Tensor:
        return run(x, data, n, k, bias, code, multiplier, residual, low)  # type: ignore[no-any-return]

    return quick


def pointwise(
    packed: PackedLinear, bias: Maybe, stride: tuple[int, int], post_op: str, out: torch.dtype,
    otherwise: Callable[[torch.Tensor, Maybe], torch.Tensor],
) -> Quick:  # fmt: skip
    """(x, residual, …) -> y, images channels last; ``otherwise`` answers for others."""
    if not packed.native:
        return None
    run, data, n, k = torch.ops.slipstream.linear.default, packed.data, packed.n, packed.k
    code, low, (down, across) = code_of(post_op), out is torch.bfloat16, stride
    is_whole = stride == (1, 1)

    def quick(x: torch.Tensor, residual: Maybe, *_: Maybe) -> torch.Tensor:
        if x.stride(1) != 1 or x.dtype not in DTYPES:
            return otherwise(x, residual)
        image = x if is_whole else x[:, :, ::down, ::across]
        added = None if residual is None else residual.permute(0, 2, 3, 1)
        y: torch.Tensor = run(image.permute(0, 2, 3, 1), data, n, k, bias, code, None, added, low, True)
        return y.permute(0, 3, 1, 2)

    return quick


def convolution_3x3(packed: PackedWinograd, bias: Maybe, post_op: str, out: torch.dtype) -> Quick:
    """(x, residual, …) -> y, by minimal filtering."""
    if not packed.native:
        return None
    run, data, n, tile = torch.ops.slipstream.winograd.default, packed.data, packed.out_channels, packed.tile
    code, low, (down, across), last = code_of(post_op), out is torch.bfloat16, packed.padding, torch.channels_last

    def quick(x: torch.Tensor, residual: Maybe, *_: Maybe) -> torch.Tensor:
        image = x.contiguous(memory_format=last)
        added = None if residual is None else residual.contiguous(memory_format=last)
        return run(image, data, n, tile, down, across, bias, code, added, low)  # type: ignore[no-any-return]

    return quick
