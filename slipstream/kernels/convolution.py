# SPDX-License-Identifier: Apache-2.0
"""Two-dimensional convolution with packed weights, channels first on both sides: y = post_op(conv(x) + b + residual).

Accuracy, against float64, in relative norm: float32 1e-6; bfloat16 4e-3 (image and weights are rounded to it, sums are
float32). With one input channel a group (depthwise), products are always float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.operands import check_dtypes, check_image, refuse_gradients
from slipstream.kernels.post_op import code_of, finished

MOST_TAPS = 121
"""Largest kernel, 11 x 11: csrc/kernels/convolution.h's kMostTaps."""


@dataclass(frozen=True, eq=False)
class PackedConvolution:
    """A weight [out, in / groups, kh, kw] in the kernel's order, and the numbers that belong to it; serves every image size.

    ``data`` is opaque; without the native extension it is the weight itself, in ``dtype``. With two or three ``parts``, which
    `channels_last.convolution_last` has, it holds a float32 weight as so many bfloat16.
    """

    data: torch.Tensor
    dtype: torch.dtype
    groups: int
    numbers: tuple[int, ...]
    in_channels: int
    out_channels: int
    native: bool
    parts: int = 1


def pack(
    weight: torch.Tensor,
    *,
    dtype: torch.dtype,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> PackedConvolution:
    """Copy ``weight`` [out, in / groups, kh, kw] (float32 or bfloat16) into the kernel's order, as ``dtype``.

    Raises UsageError for other ranks and dtypes, and for kernels of more than 121 taps.
    """
    if weight.dim() != 4:
        raise UsageError.of("weight", f"of shape {tuple(weight.shape)}", "not of shape [out, in, height, width]")
    check_dtypes(dtype=dtype, weight=weight.dtype)
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    if kernel[0] * kernel[1] > MOST_TAPS:
        allowed = f"more than {MOST_TAPS} taps"
        raise UsageError.of("weight", f"with a kernel of {kernel}", allowed, "use torch's own convolution")
    numbers = (*kernel, *stride, *padding, *dilation)
    channels = int(weight.shape[1]) * groups, int(weight.shape[0])
    with torch.no_grad():
        if native.available():
            data = torch.ops.slipstream.pack_convolution(weight.detach(), dtype is torch.bfloat16)
            return PackedConvolution(data, dtype, groups, numbers, *channels, True)
        data = weight.detach().to(dtype).contiguous().clone()
        return PackedConvolution(data, dtype, groups, numbers, *channels, False)


def convolution(
    x: torch.Tensor,
    packed: PackedConvolution,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [N, out, oh, ow] = post_op(conv(x [N, in, h, w]) + bias [out] + residual [N, out, oh, ow]), contiguous.

    x and residual are float32 or bfloat16, of any strides (they are read contiguous), bias is float32; y is ``out_dtype`` or
    x's dtype. Raises UsageError for an unknown post-op or dtype, RuntimeError for sizes that do not fit together and where
    a gradient would have to be recorded.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, out_dtype=dtype)
    check_image(x, packed.in_channels)
    refuse_gradients("convolution", x, bias, residual)
    if not packed.native:
        weight = packed.data
        return plain_convolution(x, weight, packed, bias, post_op=post_op, residual=residual, out_dtype=dtype)
    return torch.ops.slipstream.convolution.default(
        x, packed.data, bias, packed.groups, packed.numbers, code, residual, dtype is torch.bfloat16
    )


def plain_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: PackedConvolution,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The twin, in plain torch; ``weight`` is unpacked, in the dtype that would be packed."""
    _, _, *numbers = packed.numbers
    stride, padding, dilation = numbers[0:2], numbers[2:4], numbers[4:6]
    y = F.conv2d(x.to(weight.dtype), weight, None, stride, padding, dilation, packed.groups)
    return finished(y, bias, residual, post_op, x.dtype if out_dtype is None else out_dtype).contiguous()
