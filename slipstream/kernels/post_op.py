# SPDX-License-Identifier: Apache-2.0
"""Post-ops: what can be applied to a result before it is stored. Their names, codes and plain-torch meaning."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError

POST_OPS = (
    "none", "relu", "gelu_erf", "gelu_tanh", "silu", "tanh", "sigmoid", "relu6", "hardswish", "hardsigmoid",
    "quick_gelu",
)  # fmt: skip
"""In the order of csrc/kernels/linear.h's PostOp."""

_CODES = {name: code for code, name in enumerate(POST_OPS)}


def quick_gelu(y: torch.Tensor) -> torch.Tensor:
    """y · σ(1.702 y): the GELU of CLIP (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return y * torch.sigmoid(1.702 * y)


quick_gelu.__module__ = "slipstream"


def code_of(post_op: str) -> int:
    """The native code of a post-op. Raises UsageError for an unknown one."""
    code = _CODES.get(post_op)
    if code is None:
        raise UsageError.of("post_op", post_op, POST_OPS)
    return code


def finished(
    y: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, post_op: str, dtype: torch.dtype
) -> torch.Tensor:
    """post_op(y + bias + residual) as ``dtype``, y [N, C, H, W] being a convolution's sums: how its plain twins end."""
    y = y.float()
    if bias is not None:
        y = y + bias.float().reshape(-1, 1, 1)
    if residual is not None:
        y = y + residual.float()
    return apply_post_op(y, post_op).to(dtype)


def apply_post_op(y: torch.Tensor, post_op: str) -> torch.Tensor:
    """A post-op by name, in plain torch. Raises UsageError for an unknown one."""
    match post_op:
        case "none":
            return y
        case "relu":
            return F.relu(y)
        case "gelu_erf":
            return F.gelu(y)
        case "gelu_tanh":
            return F.gelu(y, approximate="tanh")
        case "silu":
            return F.silu(y)
        case "tanh":
            return torch.tanh(y)
        case "sigmoid":
            return torch.sigmoid(y)
        case "relu6":
            return F.relu6(y)
        case "hardswish":
            return F.hardswish(y)
        case "hardsigmoid":
            return F.hardsigmoid(y)
        case "quick_gelu":
            return quick_gelu(y)
    raise UsageError.of("post_op", post_op, POST_OPS)
