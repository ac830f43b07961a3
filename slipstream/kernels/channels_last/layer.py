# SPDX-License-Identifier: Apache-2.0
"""A two-dimensional convolution with channels last on both sides, by the kernel that is made for it: y = post_op(conv(x) + b).

One channel a group is `depthwise`; a single pixel, neither padded nor strided, a `linear` over pixels; all else is
`convolution_last`. Accuracy is theirs. Minimal filtering is not among them: it pays by image size, and its packs are larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slipstream.kernels import linear as linear_kernel
from slipstream.kernels.channels_last import convolution_last as direct_kernel
from slipstream.kernels.channels_last import depthwise as depthwise_kernel
from slipstream.kernels.convolution import PackedConvolution
from slipstream.kernels.transpose import to_channels_last

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A weight in the order of the kernel that takes it; serves every image size. ``dtype`` is what is multiplied."""

    packed: depthwise_kernel.PackedDepthwise | linear_kernel.PackedLinear | PackedConvolution
    dtype: torch.dtype


def pack(
    weight: torch.Tensor,
    *,
    dtype: torch.dtype,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> PackedLayer:
    """Copy ``weight`` [out, in / groups, kh, kw] (float32 or bfloat16) for its kernel, as ``dtype``.

    Raises UsageError for other shapes and dtypes, and for groups that do not divide the output channels.
    """
    single = weight.dim() == 4 and weight.shape[1] == 1 and groups == weight.shape[0]
    if single and weight.shape[2] * weight.shape[3] <= depthwise_kernel.MOST_TAPS:
        return PackedLayer(depthwise_kernel.pack(weight, stride=stride, padding=padding, dilation=dilation), dtype)
    if (weight.shape[2:], stride, padding, groups) == ((1, 1), (1, 1), (0, 0), 1):
        scaled = linear_kernel.repays_scaling(weight.shape[0])
        return PackedLayer(linear_kernel.pack(weight.flatten(1), dtype=dtype, scaled=scaled), dtype)
    packed = direct_kernel.pack(weight, dtype=dtype, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return PackedLayer(packed, dtype)


def layer(
    x: torch.Tensor,
    packed: PackedLayer,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [N, out, oh, ow] = post_op(conv(x [N, in, h, w]) + bias [out]), channels last.

    x is float32 or bfloat16, bias float32; where x's channels are not innermost in memory it is converted first, to the dtype
    that is multiplied. y is ``out_dtype`` or x's dtype. Raises UsageError and RuntimeError as the kernel does.
    """
    dtype = x.dtype if out_dtype is None else out_dtype
    planes = isinstance(packed.packed, PackedConvolution) and direct_kernel.in_planes(x)
    image = x if planes or (x.dim() == 4 and x.stride(1) == 1) else to_channels_last(x, packed.dtype)
    if isinstance(packed.packed, PackedConvolution):
        return direct_kernel.convolution_last(image, packed.packed, bias, post_op=post_op, out_dtype=dtype)
    if isinstance(packed.packed, depthwise_kernel.PackedDepthwise):
        return depthwise_kernel.depthwise(image, packed.packed, bias, post_op=post_op, out_dtype=dtype)
    y = linear_kernel.linear(image.permute(0, 2, 3, 1), packed.packed, bias, post_op=post_op, out_dtype=dtype)
    return y.permute(0, 3, 1, 2)
