# SPDX-License-Identifier: Apache-2.0
"""A depthwise convolution with a 1 x 1 convolution before it, behind it, or both, in one pass over the image, channels last.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018. The results are those of the three one by one,
natively to the bit; the twin is just that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from slipstream.errors import UsageError
from slipstream.kernels.channels_last.depthwise import PackedDepthwise, depthwise
from slipstream.kernels.linear import PackedLinear, linear
from slipstream.kernels.operands import check_dtypes, check_image, refuse_gradients
from slipstream.kernels.post_op import code_of
from slipstream.kernels.transpose import to_channels_last


class Pointwise(NamedTuple):
    """A 1 x 1 convolution: a packed weight [out, in], a bias [out], the post-op, the result's dtype."""

    packed: PackedLinear
    bias: torch.Tensor | None = None
    post_op: str = "none"
    out: torch.dtype = torch.float32


class Middle(NamedTuple):
    """A depthwise convolution: its packed weight, a float32 bias [C], the post-op, the result's dtype."""

    packed: PackedDepthwise
    bias: torch.Tensor | None = None
    post_op: str = "none"
    out: torch.dtype = torch.float32


def inverted_residual(
    x: torch.Tensor,
    expand: Pointwise | None,
    middle: Middle,
    project: Pointwise | None,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """y [N, O, oh, ow] = project(middle(expand(x [N, I, h, w]))), channels last; the residual comes before the last post-op.

    Bit for bit what `linear` and `depthwise` give one after the other; what lies between them is never a tensor. Without
    ``project`` y is the depthwise convolution's result, and there is no residual. x and residual are float32 or bfloat16, and
    are converted where they are not in memory format channels_last. Raises UsageError for unknown post-ops and dtypes, for
    channels that do not fit together, weights in parts, and a residual without ``project``; RuntimeError for sizes that do not
    fit, and where a gradient would have to be recorded.
    """
    stages: list[Pointwise | Middle] = [stage for stage in (expand, middle, project) if stage is not None]
    for one in stages:
        check_dtypes(out=one.out)
        code_of(one.post_op)
    check_dtypes(x=x.dtype)
    check_image(x, middle.packed.channels if expand is None else expand.packed.k)
    if expand is not None:
        _check_pointwise("expand", expand.packed, expand.packed.n, middle.packed.channels)
    if project is not None:
        _check_pointwise("project", project.packed, project.packed.k, middle.packed.channels)
    if residual is not None and project is None:
        raise UsageError.of("residual", "given without project", "must be None then")
    refuse_gradients("inverted_residual", x, residual, *(one.bias for one in stages))
    if not all(one.packed.native for one in stages):
        return plain_inverted_residual(x, expand, middle, project, residual=residual)
    if residual is not None:
        check_dtypes(residual=residual.dtype)
        residual = dense(residual)
    return torch.ops.slipstream.inverted_residual.default(dense(x), *constants(expand, middle, project), residual)


def constants(expand: Pointwise | None, middle: Middle, project: Pointwise | None) -> tuple[object, ...]:
    """What the native operator takes between image and residual: the same at every call."""
    first, last = _words(expand), _words(project)
    return (
        *first, middle.packed.data, middle.bias, middle.packed.channels, list(middle.packed.numbers), code_of(middle.post_op),
        middle.out is torch.bfloat16, *last[:2], 0 if project is None else project.packed.n, *last[2:],
    )  # fmt: skip


def _check_pointwise(what: str, packed: PackedLinear, hidden: int, channels: int) -> None:
    if hidden != channels:
        raise UsageError.of(what, f"of {hidden} hidden channels", f"the depthwise weight has {channels}")
    if packed.parts != 1:
        raise UsageError.of(what, f"packed in {packed.parts} parts", "pack it in one")


def dense(x: torch.Tensor) -> torch.Tensor:
    """The image in memory format channels_last."""
    return to_channels_last(x, x.dtype).contiguous(memory_format=torch.channels_last)


def _words(stage: Pointwise | None) -> tuple[torch.Tensor | None, torch.Tensor | None, int, bool]:
    """What the operator takes of a 1 x 1 convolution: weight, bias, post-op, whether the result is bfloat16."""
    if stage is None:
        return None, None, 0, False
    bias = None if stage.bias is None else stage.bias.contiguous()
    return stage.packed.data, bias, code_of(stage.post_op), stage.out is torch.bfloat16


def plain_inverted_residual(
    x: torch.Tensor,
    expand: Pointwise | None,
    middle: Middle,
    project: Pointwise | None,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The twin: `linear` and `depthwise` in turn, natively where their weights are packed so."""
    if expand is not None:
        x = plain_pointwise(x, expand, None)
    y = depthwise(x, middle.packed, middle.bias, post_op=middle.post_op, out_dtype=middle.out)
    return y if project is None else plain_pointwise(y, project, residual)


def plain_pointwise(x: torch.Tensor, stage: Pointwise, residual: torch.Tensor | None) -> torch.Tensor:
    """A stage by itself, y [N, O, h, w] of x [N, I, h, w]: `linear` over pixels."""
    beside = None if residual is None else residual.permute(0, 2, 3, 1)
    pixels = x.permute(0, 2, 3, 1)
    y = linear(
        pixels, stage.packed, stage.bias, post_op=stage.post_op, residual=beside, residual_first=True, out_dtype=stage.out
    )
    return y.permute(0, 3, 1, 2)
