# SPDX-License-Identifier: Apache-2.0
"""Memory formats of images: which one torch reads in a tensor's strides, and giving a result the one expected."""

from __future__ import annotations

import torch

from slipstream.kernels import transpose

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By rank, batch and channels included."""


def is_channels_last(x: torch.Tensor) -> bool:
    """What c10's ``suggest_memory_format`` says: channels innermost, and not merely because sizes are one."""
    wanted = CHANNELS_LAST[x.dim()]
    if not x.is_contiguous(memory_format=wanted):
        return False
    return not x.is_contiguous() or strides_say_channels_last(x.shape, x.stride())


def strides_say_channels_last(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """As in c10/core/MemoryFormat.h, gaps or none: strides rise from channels on. It decides where both formats hold."""
    least = 0
    if strides[1] == 0:
        return False
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[axis] == 0 or strides[axis] < least:
            return False
        if axis == 0 and least == strides[1]:
            return False
        least = strides[axis] * max(1, shape[axis])
    return True


def as_expected(y: torch.Tensor, dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    """``y`` in this dtype with exactly the strides of a new tensor of that format; a copy only where needed."""
    wanted = CHANNELS_LAST[y.dim()] if channels_last else torch.contiguous_format
    if y.dtype == dtype and y.is_contiguous(memory_format=wanted):
        if y.numel() == 0 or 1 not in y.shape:
            return y
        like = torch.empty_like(y, device="meta", memory_format=wanted)
        return y.as_strided(y.shape, like.stride())
    if not channels_last:
        return transpose.to_channels_first(y, dtype)
    return torch.empty(y.shape, dtype=dtype, memory_format=wanted).copy_(y)
