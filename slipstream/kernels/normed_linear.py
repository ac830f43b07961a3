# SPDX-License-Identifier: Apache-2.0
"""A linear of normalized rows, as one operator: y = residual + multiplier * post_op(norm(x) · Wᵀ + bias).

The thread that multiplies a row normalizes it before, so that it is read back from its caches; where threads share rows, all
rows are normalized first. The arithmetic is that of `norm` and `linear` in turn, bit by bit, and so are the error bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from slipstream.errors import UsageError
from slipstream.kernels import norm as norm_kernel
from slipstream.kernels.linear import PackedLinear, linear
from slipstream.kernels.operands import check_dtypes, refuse_gradients
from slipstream.kernels.post_op import code_of


class Normalization(NamedTuple):
    """A layer norm, or uncentred an RMS norm, whose rows are ``dtype``, float32 or bfloat16."""

    eps: float
    centred: bool
    dtype: torch.dtype


def normed_linear(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    normalization: Normalization,
    packed: PackedLinear,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    multiplier: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [..., n] = residual + multiplier * post_op(norm(x [..., k]) · Wᵀ + bias [n]).

    norm_weight and norm_bias [k]; everything is float32 or bfloat16, each as it likes; multiplier and residual have y's shape;
    y is ``out_dtype`` or x's dtype, and dense. Raises UsageError for an unknown post-op or dtype, and for a bias of an RMS
    norm; RuntimeError where a gradient would have to be recorded.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, rows=normalization.dtype, out_dtype=dtype)
    if norm_bias is not None and not normalization.centred:
        raise UsageError.of("norm_bias", f"of shape {tuple(norm_bias.shape)}", "an RMS norm has none")
    refuse_gradients("normed_linear", x, norm_weight, norm_bias, bias, multiplier, residual)
    if not packed.native:
        rows = normalized(x, norm_weight, norm_bias, normalization)
        return linear(rows, packed, bias, post_op=post_op, multiplier=multiplier, residual=residual, out_dtype=dtype)
    return torch.ops.slipstream.normed_linear.default(
        x, norm_weight, norm_bias, normalization.eps, normalization.centred, normalization.dtype is torch.bfloat16,
        packed.data, packed.n, packed.k, bias, code, multiplier, residual, dtype is torch.bfloat16,
    )  # fmt: skip


def normalized(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, normalization: Normalization
) -> torch.Tensor:
    """The rows that are multiplied: `norm.layer_norm` or `norm.rms_norm`."""
    eps, centred, dtype = normalization
    if centred:
        return norm_kernel.layer_norm(x, weight, bias, eps, out_dtype=dtype)
    return norm_kernel.rms_norm(x, weight, eps, out_dtype=dtype)
