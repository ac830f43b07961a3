# SPDX-License-Identifier: Apache-2.0
"""Layer norm and RMS norm over the last dimension, of a tensor or of a sum of two; group norm with a post-op behind it.
Natively or by their plain-torch twins.

All arithmetic is in float32, the mean first and then the squares of the distances from it; error at most 1e-6 of the largest
result in float32. A bfloat16 sum is rounded where it is returned; what is normalized is the sum before that. Group norm's
statistics are of blocks, joined in float64 (Chan, Golub and LeVeque, 1979): the same bound whatever the size of a group, for a
mean of m standard deviations m · 2e-7 more; GELU into bfloat16 adds 1.3e-4 absolute.

The channels of an image are its last dimension after ``x.permute(0, 2, 3, 1)``, where it is stored channels last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.operands import DTYPES, check_dtypes, refuse_gradients
from slipstream.kernels.post_op import apply_post_op, code_of


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, *,
    residual: torch.Tensor | None = None, out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias, s = x + residual, over the last dimension; y is contiguous.

    x and residual [..., C], weight and bias [C], each float32 or bfloat16; y [..., C] in ``out_dtype`` or x's dtype.
    Raises UsageError for another dtype or shape, RuntimeError where a gradient would have to be recorded.
    Source: Ba et al., arXiv 1607.06450.
    """
    return _norm("layer_norm", x, residual, weight, bias, eps, True, False, out_dtype)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, *,
    residual: torch.Tensor | None = None, one_more: bool = False, out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """y = s / sqrt(mean(s²) + eps) * weight, s = x + residual, over the last dimension; with ``one_more`` * (1 + weight).

    Shapes, dtypes and errors as `layer_norm`. Source: Zhang and Sennrich, arXiv 1910.07467; 1 + weight is Gemma's convention.
    """
    return _norm("rms_norm", x, residual, weight, None, eps, False, one_more, out_dtype)


def layer_norm_of_sum(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, *,
    sum_dtype: torch.dtype | None = None, out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(x + residual, its `layer_norm`), as blocks that normalize first need both; the sum in ``sum_dtype`` or x's dtype."""
    return _norm_of_sum("layer_norm_of_sum", x, residual, weight, bias, eps, True, False, sum_dtype, out_dtype)


def rms_norm_of_sum(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float, *,
    one_more: bool = False, sum_dtype: torch.dtype | None = None, out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(x + residual, its `rms_norm`)."""
    return _norm_of_sum("rms_norm_of_sum", x, residual, weight, None, eps, False, one_more, sum_dtype, out_dtype)


def group_norm(
    x: torch.Tensor, groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, *,
    post_op: str = "none", out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """y = post_op((x - mean) / sqrt(var + eps) * weight + bias), mean and var over a sample's C / groups channels, all pixels.

    x [N, C, …], weight and bias [C], each float32 or bfloat16; y of x's shape in ``out_dtype`` or x's dtype, contiguous, but
    with channels innermost where they are so in x. Neither layout is copied, nor are samples that lie apart. With as many
    groups as channels it is instance norm. Raises UsageError for another dtype, shape or post-op and for groups that do not
    divide C, RuntimeError where a gradient would have to be recorded. Source: Wu and He, arXiv 1803.08494.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    refuse_gradients("group_norm", x, weight, bias)
    _check_groups(x, groups, weight, bias, dtype)
    if not native.available():
        return plain_group_norm(x, groups, weight, bias, eps, post_op=post_op, out_dtype=dtype)
    return torch.ops.slipstream.group_norm.default(x, groups, weight, bias, eps, code, dtype is torch.bfloat16)


def plain_group_norm(
    x: torch.Tensor, groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, *,
    post_op: str = "none", out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """The twin of `group_norm`; contiguous."""
    if not x.numel():
        return torch.empty(x.shape, dtype=x.dtype if out_dtype is None else out_dtype)
    parts = x.float().reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(parts, -1, correction=0, keepdim=True)
    y = ((parts - mean) / (variance + eps).sqrt()).view(x.shape)
    sizes = -1, *[1] * (x.dim() - 2)
    y = y if weight is None else y * weight.float().view(sizes)
    y = y if bias is None else y + bias.float().view(sizes)
    return apply_post_op(y, post_op).to(x.dtype if out_dtype is None else out_dtype)


def plain_layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, *,
    residual: torch.Tensor | None = None, out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """The twin of `layer_norm`."""
    return _plain(x, residual, weight, bias, eps, True, False, out_dtype)[1]


def plain_rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, *,
    residual: torch.Tensor | None = None, one_more: bool = False, out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """The twin of `rms_norm`."""
    return _plain(x, residual, weight, None, eps, False, one_more, out_dtype)[1]


def _norm(
    name: str, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None,
    eps: float, centred: bool, one_more: bool, out_dtype: torch.dtype | None,
) -> torch.Tensor:  # fmt: skip
    dtype = x.dtype if out_dtype is None else out_dtype
    if torch.is_grad_enabled():
        refuse_gradients(name, x, residual, weight, bias)
    if dtype not in DTYPES or not native.available():
        _check(x, residual, weight, bias, out_dtype=dtype)
        return _plain(x, residual, weight, bias, eps, centred, one_more, dtype)[1]
    try:
        bfloat16_out = dtype is torch.bfloat16
        return torch.ops.slipstream.norm.default(x, residual, weight, bias, eps, centred, one_more, bfloat16_out)
    except RuntimeError:
        _check(x, residual, weight, bias)  # asked late: it takes as long as a small norm
        raise


def _norm_of_sum(
    name: str, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
    eps: float, centred: bool, one_more: bool, sum_dtype: torch.dtype | None, out_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    dtype = x.dtype if out_dtype is None else out_dtype
    kept = x.dtype if sum_dtype is None else sum_dtype
    if torch.is_grad_enabled():
        refuse_gradients(name, x, residual, weight, bias)
    if dtype not in DTYPES or kept not in DTYPES or not native.available():
        _check(x, residual, weight, bias, out_dtype=dtype, sum_dtype=kept)
        total, y = _plain(x, residual, weight, bias, eps, centred, one_more, dtype)
        return total.to(kept), y
    try:
        return torch.ops.slipstream.norm_of_sum.default(
            x, residual, weight, bias, eps, centred, one_more, kept is torch.bfloat16, dtype is torch.bfloat16
        )
    except RuntimeError:
        _check(x, residual, weight, bias)
        raise


def _check(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None,
    **dtypes: torch.dtype,
) -> None:  # fmt: skip
    """Raise UsageError for what no norm can be made of."""
    operands = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    check_dtypes(**{key: tensor.dtype for key, tensor in operands.items() if tensor is not None}, **dtypes)
    if x.dim() == 0:
        raise UsageError.of("x", "without dimensions", "there is no row to normalize", "give it one with .reshape(1)")
    for key, shape in {"residual": x.shape, "weight": x.shape[-1:], "bias": x.shape[-1:]}.items():
        tensor = operands[key]
        if tensor is not None and tensor.shape != shape:
            raise UsageError.of(key, tuple(tensor.shape), f"with x {tuple(x.shape)} it has to have the shape {tuple(shape)}")


def _check_groups(
    x: torch.Tensor, groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, out_dtype: torch.dtype
) -> None:
    """Raise UsageError for what no group norm can be made of."""
    check_dtypes(x=x.dtype, out_dtype=out_dtype)
    if x.dim() < 2:
        raise UsageError.of("x", f"of shape {tuple(x.shape)}", "not of shape [batch, channels, …]")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise UsageError.of("groups", groups, f"not a divisor of the {channels} channels of x {tuple(x.shape)}")
    for key, tensor in {"weight": weight, "bias": bias}.items():
        if tensor is not None:
            check_dtypes(**{key: tensor.dtype})
            if tensor.shape != (channels,):
                raise UsageError.of(key, tuple(tensor.shape), f"with x {tuple(x.shape)} it has to have the shape {(channels,)}")


def _plain(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None,
    eps: float, centred: bool, one_more: bool, out_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The sum in float32, and its norm."""
    total = x.float() if residual is None else x.float() + residual.float()
    weight = None if weight is None else weight.float() + 1 if one_more else weight.float()
    if centred:
        y = F.layer_norm(total, x.shape[-1:], weight, None if bias is None else bias.float(), eps)
    else:
        y = F.rms_norm(total, x.shape[-1:], weight, eps)
    return total, y.to(x.dtype if out_dtype is None else out_dtype)
