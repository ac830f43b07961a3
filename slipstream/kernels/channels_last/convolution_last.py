# SPDX-License-Identifier: Apache-2.0
"""Direct two-dimensional convolution, channels last on both sides: y = post_op(conv(x) + b + residual).

Any stride, padding, dilation and groups. Accuracy, against float64, in relative norm: float32 weights 1e-6; bfloat16 weights
4e-3 at levels avx512_bf16 and amx, where x is rounded to bfloat16 as well (and denormals count as zero); at level avx512_fp16
weights and images are scaled to float16, each image by itself, as `kernels.linear` has it (1.2e-3 and what rounding weights to
bfloat16 took before), at levels avx2 and avx512_vnni to integers of 16 bits (5e-4); at others x keeps float32. A NaN or an
infinity reaches the outputs that see it, and no other.

float32 weights in parts of bfloat16, on tiles, which multiply them as `kernels.linear` has it: six products of three parts not
above torch's own float32 convolution, three products of two parts 1e-5; denormals and sums near the largest float as there.
Elsewhere the parts are put together again and multiplied as float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.channels_last.depthwise import channels_innermost
from slipstream.kernels.convolution import PackedConvolution
from slipstream.kernels.linear import check_parts, pack_in_a_row, plain_product
from slipstream.kernels.operands import check_dtypes, check_image, refuse_gradients
from slipstream.kernels.post_op import code_of, finished

MOST_PLANES = 8
"""Up to so many channels the kernel reads images channels first (csrc/bind/convolution_last.cpp's kMostPlanes): a dot product's
depth is hard to fill with them, and a kernel row of pixels that lie side by side fills it."""

_DEPTH = 32
"""Multiple that a row of a kernel times its channels is filled up to in bfloat16: csrc/kernels/linear.h's kPackedDepth."""


def pack(
    weight: torch.Tensor,
    *,
    dtype: torch.dtype,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    end_padding: tuple[int, int] | None = None,
    parts: int = 1,
) -> PackedConvolution:
    """Copy ``weight`` [out, in / groups, kh, kw] (float32 or bfloat16) into the kernel's order, as ``dtype``.

    ``padding`` is on both sides, or with ``end_padding`` in front only: rows on top, columns on the left. float32 may be held
    in two or three ``parts`` of bfloat16, which tiles multiply. Raises UsageError for other shapes, dtypes and parts, and for
    groups that do not divide the output channels.
    """
    if weight.dim() != 4 or 0 in weight.shape[1:]:
        raise UsageError.of("weight", f"of shape {tuple(weight.shape)}", "not of shape [out, in, height, width]")
    check_dtypes(dtype=dtype, weight=weight.dtype)
    check_parts(parts, dtype)
    out_channels, of_group, height, width = (int(size) for size in weight.shape)
    if groups < 1 or out_channels % groups:
        raise UsageError.of("groups", groups, f"not a divisor of {out_channels} output channels")
    numbers = (height, width, *stride, *padding, *dilation, *(end_padding or ()))
    with torch.no_grad():
        if native.available():
            data = _in_panels(weight.detach(), dtype, groups, parts)
        else:
            data = weight.detach().to(dtype).contiguous().clone()
    channels = of_group * groups, out_channels
    return PackedConvolution(data, dtype, groups, numbers, *channels, native.available(), parts)


def _in_panels(weight: torch.Tensor, dtype: torch.dtype, groups: int, parts: int) -> torch.Tensor:
    """Each group as a linear's weight: a row of the kernel times the channels is a run of depth, filled up with zeros."""
    rows = weight.permute(0, 2, 3, 1).flatten(2)
    if dtype is torch.bfloat16 or parts > 1:
        rows = F.pad(rows, (0, -rows.shape[2] % _DEPTH))
    of_groups = rows.flatten(1).chunk(groups)
    return pack_in_a_row(of_groups, dtype=dtype, parts=parts)


def convolution_last(
    x: torch.Tensor,
    packed: PackedConvolution,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [N, out, oh, ow] = post_op(conv(x [N, in, h, w]) + bias [out] + residual [N, out, oh, ow]), channels last.

    x, bias and residual are float32 or bfloat16, each as it likes; where channels are not innermost in memory the residual and
    an x of more than 8 channels are converted first. y is ``out_dtype`` or x's dtype. Raises UsageError for an unknown post-op
    or dtype, for another number of channels than the weight's and for images smaller than the kernel, RuntimeError for other
    sizes that do not fit together and where a gradient would have to be recorded.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, out_dtype=dtype)
    check_image(x, packed.in_channels)
    _, padding, dilation, behind = _pairs(packed)
    for i in range(2):
        if x.shape[2 + i] + padding[i] + behind[i] <= (packed.numbers[i] - 1) * dilation[i]:
            raise UsageError.of("x", f"of shape {tuple(x.shape)}", "smaller than the kernel even when padded")
    refuse_gradients("convolution_last", x, bias, residual)
    if not packed.native:
        return plain_convolution_last(x, packed, bias, post_op=post_op, residual=residual, out_dtype=dtype)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    return torch.ops.slipstream.convolution_last.default(
        x if in_planes(x) else channels_innermost(x), packed.data, packed.out_channels, bias, packed.groups, packed.numbers,
        code, residual, dtype is torch.bfloat16,
    )  # fmt: skip


def in_planes(x: torch.Tensor) -> bool:
    """Few channels, of each of which rows of pixels lie side by side."""
    return x.shape[1] <= MOST_PLANES and x.stride(3) == 1


def plain_convolution_last(
    x: torch.Tensor,
    packed: PackedConvolution,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The twin: what `convolution_last` means, in plain torch."""
    stride, padding, dilation, behind = _pairs(packed)
    image = F.pad(x.to(packed.data.dtype), (padding[1], behind[1], padding[0], behind[0]))

    def product(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(image, weight, None, stride, 0, dilation, packed.groups)

    y = plain_product(image, packed.data, packed.parts, product) if packed.parts > 1 else product(image, packed.data)
    y = finished(y, bias, residual, post_op, x.dtype if out_dtype is None else out_dtype)
    return y.contiguous(memory_format=torch.channels_last)


def _pairs(packed: PackedConvolution) -> tuple[tuple[int, ...], ...]:
    """Stride, padding in front, dilation, padding behind."""
    _, _, *numbers = packed.numbers
    return tuple(numbers[0:2]), tuple(numbers[2:4]), tuple(numbers[4:6]), tuple(numbers[6:8] or numbers[2:4])
