# SPDX-License-Identifier: Apache-2.0
"""Images between channels first and channels last, with conversion between float32 and bfloat16 in the same pass.

Exact but for the rounding to bfloat16 (to nearest even). Bound by memory: each element is read and written once.
"""

from __future__ import annotations

import math

import torch

from slipstream.kernels import native
from slipstream.kernels.operands import DTYPES

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_WORTH_IT = 16
"""Channels and pixels below which a block of 16 x 16 is mostly padding, and torch's own copy is faster."""


def to_channels_last(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x [N, C, (D,) H, W], float32 or bfloat16, as ``dtype`` with channels innermost; x itself where it is that already."""
    wanted = _CHANNELS_LAST[x.dim()]
    pixels = math.prod(x.shape[2:])
    if not _is_native(x, dtype, pixels) or not x.is_contiguous() or x.is_contiguous(memory_format=wanted):
        return plain_to_channels_last(x, dtype)
    flat = x.view(x.shape[0], x.shape[1], pixels)
    y = torch.ops.slipstream.transpose.default(flat, dtype is torch.bfloat16)
    return y.view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)


def to_channels_first(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The way back: x [N, C, (D,) H, W] of any strides as ``dtype``, contiguous."""
    pixels = math.prod(x.shape[2:])
    last = _CHANNELS_LAST[x.dim()]
    if not _is_native(x, dtype, pixels) or not x.is_contiguous(memory_format=last) or x.is_contiguous():
        return plain_to_channels_first(x, dtype)
    flat = x.movedim(1, -1).view(x.shape[0], pixels, x.shape[1])
    return torch.ops.slipstream.transpose.default(flat, dtype is torch.bfloat16).view(x.shape)


def plain_to_channels_last(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The twin of `to_channels_last`."""
    return x.to(dtype, memory_format=_CHANNELS_LAST[x.dim()])


def plain_to_channels_first(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The twin of `to_channels_first`."""
    return torch.empty(x.shape, dtype=dtype).copy_(x)


def _is_native(x: torch.Tensor, dtype: torch.dtype, pixels: int) -> bool:
    return (
        min(x.shape[1], pixels) >= _WORTH_IT
        and x.dtype in DTYPES
        and dtype in DTYPES
        and not (x.requires_grad and torch.is_grad_enabled())
        and native.available()
    )
