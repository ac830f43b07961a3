# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution, channels last on both sides: y = post_op(conv(x) + b + residual), natively or by its twin.

One input and one output channel a group; more outputs a group are refused (torch's own convolution serves them). Sums are
float32 whatever the dtypes. Against float64, in relative norm: 1e-6, and a bfloat16 result's rounding; 4e-3 where x is bfloat16
and the weight is not: kernels of 5 and 7 columns round it at levels avx512_bf16 and amx (and take denormals as zero).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.operands import check_dtypes, check_image, refuse_gradients
from slipstream.kernels.post_op import code_of, finished
from slipstream.kernels.transpose import to_channels_last

MOST_TAPS = 121
"""Largest kernel, 11 x 11: csrc/bind/depthwise.cpp's kMostTaps."""


@dataclass(frozen=True, eq=False)
class PackedDepthwise:
    """A weight [channels, 1, kh, kw] in the kernel's order, and the numbers that belong to it; serves every image size.

    ``data`` is opaque; without the native extension it is the weight itself, in float32.
    """

    data: torch.Tensor
    numbers: tuple[int, ...]
    channels: int
    native: bool


def pack(
    weight: torch.Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    end_padding: tuple[int, int] | None = None,
) -> PackedDepthwise:
    """Copy ``weight`` [channels, 1, kh, kw] (float32 or bfloat16) into the kernel's order, as float32.

    ``padding`` is on both sides, or with ``end_padding`` in front only: rows on top, columns on the left.

    Raises UsageError for other shapes and dtypes, and for kernels of more than 121 taps. A weight of several output channels a
    group has the same shape: compare its first dimension with the layer's groups before packing it.
    """
    if weight.dim() != 4 or weight.shape[1] != 1:
        shape = "not of shape [channels, 1, height, width]"
        raise UsageError.of("weight", f"of shape {tuple(weight.shape)}", shape, "kernels.convolution has groups")
    check_dtypes(weight=weight.dtype)
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    if kernel[0] * kernel[1] > MOST_TAPS:
        allowed = f"more than {MOST_TAPS} taps"
        raise UsageError.of("weight", f"with a kernel of {kernel}", allowed, "use torch's own convolution")
    numbers = (*kernel, *stride, *padding, *dilation, *(end_padding or ()))
    channels = int(weight.shape[0])
    with torch.no_grad():
        if native.available():
            return PackedDepthwise(torch.ops.slipstream.pack_depthwise(weight.detach()), numbers, channels, True)
        return PackedDepthwise(weight.detach().float().contiguous().clone(), numbers, channels, False)


def depthwise(
    x: torch.Tensor,
    packed: PackedDepthwise,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [N, C, oh, ow] = post_op(conv(x [N, C, h, w]) + bias [C] + residual [N, C, oh, ow]), channels last.

    x and residual are float32 or bfloat16, each as it likes; where their channels are not innermost in memory they are
    converted first. bias is float32; y is ``out_dtype`` or x's dtype. Raises UsageError for an unknown post-op or dtype and
    for another number of channels than the weight's, RuntimeError for sizes that do not fit together and where a gradient
    would have to be recorded.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, out_dtype=dtype)
    check_image(x, packed.channels)
    refuse_gradients("depthwise", x, bias, residual)
    if not packed.native:
        return plain_depthwise(x, packed.data, packed, bias, post_op=post_op, residual=residual, out_dtype=dtype)
    if residual is not None:
        check_dtypes(residual=residual.dtype)
        residual = channels_innermost(residual)
    return torch.ops.slipstream.depthwise.default(
        channels_innermost(x), packed.data, bias, packed.numbers, code, residual, dtype is torch.bfloat16
    )


def channels_innermost(x: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W] itself where its channels are neighbours in memory, else a copy in which they are."""
    if x.dim() != 4 or x.stride(1) == 1 or x.shape[1] == 1:
        return x
    return to_channels_last(x, x.dtype) if x.is_contiguous() else x.contiguous(memory_format=torch.channels_last)


def plain_depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: PackedDepthwise,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The twin, in plain torch; ``weight`` is unpacked, in float32."""
    _, _, *numbers = packed.numbers
    stride, padding, dilation, behind = numbers[0:2], numbers[2:4], numbers[4:6], numbers[6:8] or numbers[2:4]
    padded = F.pad(x.float(), (padding[1], behind[1], padding[0], behind[0]))
    y = F.conv2d(padded, weight, None, stride, 0, dilation, packed.channels)
    y = finished(y, bias, residual, post_op, x.dtype if out_dtype is None else out_dtype)
    return y.contiguous(memory_format=torch.channels_last)
