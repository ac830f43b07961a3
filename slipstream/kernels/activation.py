# SPDX-License-Identifier: Apache-2.0
"""Elementwise activations: post-ops by themselves, natively or by their plain-torch twin.

Error at most 4e-7 absolute in float32 (GELU: Abramowitz-Stegun 7.1.26; tanh: continued fraction; exp: Cody-Waite reduction).
Into bfloat16 GELU is within 1.4e-4 (a polynomial, zero below -4) and SiLU within 7e-5 of itself, as behind linears.
"""

from __future__ import annotations

import torch

from slipstream.kernels import native
from slipstream.kernels.operands import check_dtypes, refuse_gradients
from slipstream.kernels.post_op import apply_post_op, code_of


def activation(x: torch.Tensor, post_op: str, *, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """y = post_op(x), of x's shape and, where x is dense, of x's strides; x float32 or bfloat16, y ``out_dtype`` or x's dtype.

    Raises UsageError for an unknown post-op or dtype, RuntimeError where a gradient would have to be recorded.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, out_dtype=dtype)
    refuse_gradients("activation", x)
    if not native.available():
        return plain_activation(x, post_op, out_dtype=dtype)
    return torch.ops.slipstream.activation.default(x, code, dtype is torch.bfloat16)


def plain_activation(x: torch.Tensor, post_op: str, *, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """The twin, in plain torch."""
    return apply_post_op(x.float(), post_op).to(x.dtype if out_dtype is None else out_dtype)
