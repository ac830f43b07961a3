# SPDX-License-Identifier: Apache-2.0
"""Elementwise activations: post-ops by themselves, natively or by their plain-torch twin.

Error at most 4e-7 absolute in float32 (GELU: Abramowitz-Stegun 7.1.26; tanh: continued fraction; exp: Cody-Waite reduction).
"""

from __future__ import annotations

import torch

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.linear import _CODES, POST_OPS, apply_post_op

_DTYPES = (torch.float32, torch.bfloat16)


def activation(x: torch.Tensor, post_op: str, *, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """y = post_op(x), of x's shape and, where x is dense, of x's strides; x float32 or bfloat16, y ``out_dtype`` or x's dtype.

    Raises UsageError for an unknown post-op or dtype, RuntimeError where a gradient would have to be recorded.
    """
    if post_op not in _CODES:
        raise UsageError.of("post_op", post_op, POST_OPS)
    dtype = x.dtype if out_dtype is None else out_dtype
    if dtype not in _DTYPES or x.dtype not in _DTYPES:
        raise UsageError.of("x.dtype, out_dtype", f"{x.dtype}, {dtype}", _DTYPES)
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("slipstream.kernels.activation: x requires a gradient, and this kernel records none")
    if not native.available():
        return plain_activation(x, post_op, out_dtype=dtype)
    return torch.ops.slipstream.activation.default(x, _CODES[post_op], dtype is torch.bfloat16)


def plain_activation(x: torch.Tensor, post_op: str, *, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """The twin, in plain torch."""
    return apply_post_op(x.float(), post_op).to(x.dtype if out_dtype is None else out_dtype)
