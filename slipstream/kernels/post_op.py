# SPDX-License-Identifier: Apache-2.0
"""Post-ops: what can be applied to a result before it is stored. Their names, codes and plain-torch meaning."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError

POST_OPS = (
    "none", "relu", "gelu_erf", "gelu_tanh", "silu", "tanh", "sigmoid", "relu6", "hardswish", "hardsigmoid",
)  # fmt: skip
"""In the order of csrc/kernels/linear.h's PostOp."""

_CODES = {name: code for code, name in enumerate(POST_OPS)}


def code_of(post_op: str) -> int:
    """The native code of a post-op. Raises UsageError for an unknown one."""
    code = _CODES.get(post_op)
    if code is None:
        raise UsageError.of("post_op", post_op, POST_OPS)
    return code


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
    raise UsageError.of("post_op", post_op, POST_OPS)
