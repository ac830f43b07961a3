# SPDX-License-Identifier: Apache-2.0
"""Pooling, channels last on both sides: the maximum or the mean of windows, the mean of whole images; natively or by its twins.

A maximum is exact and keeps NaN, as torch's does. A mean is summed in float32, row by row of its window: against float64, in
relative norm, 1e-6 and a bfloat16 result's rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.channels_last.depthwise import channels_innermost
from slipstream.kernels.operands import check_dtypes, refuse_gradients

Pair = tuple[int, int]


def max_pool(
    x: torch.Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> torch.Tensor:  # fmt: skip
    """y [N, C, oh, ow], the maximum over windows of x [N, C, h, w]; all as in torch.nn.functional.max_pool2d.

    x is float32 or bfloat16; where its channels are not innermost in memory it is converted first. y has x's dtype and is
    channels last. Raises UsageError for other ranks and dtypes and for padding of more than half the kernel, RuntimeError
    where x is smaller than the kernel and where a gradient would have to be recorded.
    """
    _check("max_pool", x, kernel, padding)
    if not native.available():
        return plain_max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    numbers = (*kernel, *(stride or kernel), *padding, *dilation)
    return torch.ops.slipstream.pooling.default(channels_innermost(x), True, numbers, ceil_mode, False, 0)


def average_pool(
    x: torch.Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """y [N, C, oh, ow], the mean over windows of x [N, C, h, w]; all as in torch.nn.functional.avg_pool2d.

    Memory, dtypes and errors are those of `max_pool`.
    """
    _check("average_pool", x, kernel, padding)
    if divisor_override is not None and divisor_override == 0:
        raise UsageError.of("divisor_override", divisor_override, "not a number to divide by", "None is the window's size")
    if not native.available():
        return plain_average_pool(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    numbers = (*kernel, *(stride or kernel), *padding, 1, 1)
    x = channels_innermost(x)
    return torch.ops.slipstream.pooling.default(x, False, numbers, ceil_mode, count_include_pad, divisor_override or 0)


def global_average(x: torch.Tensor) -> torch.Tensor:
    """y [N, C, 1, 1], the mean of each channel of x [N, C, h, w], h and w from 1; otherwise as `average_pool`."""
    if x.dim() != 4 or 0 in x.shape[2:]:
        raise UsageError.of("x", f"of shape {tuple(x.shape)}", "not of shape [batch, channels, height, width] with pixels")
    return average_pool(x, (int(x.shape[2]), int(x.shape[3])))


def plain_max_pool(
    x: torch.Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The twin of `max_pool`."""
    y = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    return y.contiguous(memory_format=torch.channels_last)


def plain_average_pool(
    x: torch.Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """The twin of `average_pool`."""
    y = F.avg_pool2d(x.float(), kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _check(name: str, x: torch.Tensor, kernel: Pair, padding: Pair) -> None:
    if x.dim() != 4:
        raise UsageError.of("x", f"of shape {tuple(x.shape)}", "not of shape [batch, channels, height, width]")
    check_dtypes(x=x.dtype)
    if any(2 * p > k or p < 0 for p, k in zip(padding, kernel, strict=True)):
        raise UsageError.of("padding", padding, f"not between 0 and half of the kernel {kernel}")
    refuse_gradients(name, x)
