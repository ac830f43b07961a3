# SPDX-License-Identifier: Apache-2.0
"""Linear with packed weights: y = residual + multiplier * post_op(x Wᵀ + b), natively or by its plain-torch twin.

Residual networks want the residual within the post-op; `residual_first` puts it there.

Accuracy, against float64, in relative norm: float32 weights as torch's own float32 matmul (1e-6 at K = 4096); bfloat16 weights
at levels avx512_bf16 and amx round x to bfloat16 as well and sum in float32 (4e-3); at lower levels x keeps float32.
Where bfloat16 is multiplied, denormals count as zero. Post-ops add at most 4e-7 absolute (GELU: Abramowitz-Stegun 7.1.26).
Rows are independent: a NaN or infinity in one row of x reaches no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.operands import check_dtypes, refuse_gradients
from slipstream.kernels.post_op import POST_OPS, apply_post_op, code_of

__all__ = ["POST_OPS", "PackedLinear", "apply_post_op", "join", "linear", "pack", "part", "plain_linear"]

PANEL = 32
"""Columns of y whose weights lie together: csrc/kernels/linear.h."""

@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A weight [n, k] in the kernels' own order (csrc/kernels/linear.h); made once, serves every batch size and level.

    ``data`` is opaque and 1-D; without the native extension it is the weight itself, [n, k], in ``dtype``.
    """

    data: torch.Tensor
    n: int
    k: int
    dtype: torch.dtype
    native: bool


def pack(weight: torch.Tensor, *, dtype: torch.dtype) -> PackedLinear:
    """Copy ``weight`` [n, k] (float32 or bfloat16, any strides) into the order that `linear` reads.

    ``dtype`` is what the packed copy holds, float32 or bfloat16. Raises UsageError for anything else.
    """
    if weight.dim() != 2:
        raise UsageError.of("weight", f"of shape {tuple(weight.shape)}", "not a matrix [out_features, in_features]")
    check_dtypes(dtype=dtype, weight=weight.dtype)
    n, k = weight.shape
    with torch.no_grad():
        if native.available():
            data = torch.ops.slipstream.pack_linear(weight.detach(), dtype is torch.bfloat16)
            return PackedLinear(data, n, k, dtype, True)
        return PackedLinear(weight.detach().to(dtype).contiguous().clone(), n, k, dtype, False)


def join(parts: Sequence[PackedLinear]) -> tuple[PackedLinear, list[PackedLinear]]:
    """One weight [n1 + n2 + …, k] for one call, of weights with the same k; and the parts again, as views of it.

    Raises UsageError where k, dtype or kind of pack differ, or a part before the last ends within a panel of 32 outputs.
    """
    first = parts[0]
    for part in parts:
        if (part.k, part.dtype, part.native) != (first.k, first.dtype, first.native):
            raise UsageError.of("parts", f"of k {part.k} in {part.dtype}", f"the first has k {first.k}, {first.dtype}")
    if any(part.n % PANEL for part in parts[:-1]):
        raise UsageError.of("parts", [part.n for part in parts], f"n of all but the last has to be a multiple of {PANEL}")
    data = torch.cat([part.data for part in parts])
    views = [
        PackedLinear(view, part.n, part.k, part.dtype, part.native)
        for part, view in zip(parts, data.split([part.data.shape[0] for part in parts]), strict=True)
    ]
    return PackedLinear(data, sum(part.n for part in parts), first.k, first.dtype, first.native), views


def part(packed: PackedLinear, start: int, stop: int) -> PackedLinear:
    """Outputs ``start`` to before ``stop`` of a packed weight, as a view of it.

    Raises UsageError where they do not begin, and end before the last, at a multiple of 32.
    """
    if start % PANEL or not 0 <= start < stop <= packed.n or (stop % PANEL and stop != packed.n):
        raise UsageError.of("start and stop", (start, stop), f"multiples of {PANEL} up to n, {packed.n}")
    step = packed.data.shape[0] // -(-packed.n // PANEL) if packed.native else PANEL
    data = packed.data[start // PANEL * step : -(-stop // PANEL) * step]
    return PackedLinear(data, stop - start, packed.k, packed.dtype, packed.native)


def linear(
    x: torch.Tensor,
    packed: PackedLinear,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    multiplier: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    residual_first: bool = False,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [..., n] = residual + multiplier * post_op(x [..., k] · Wᵀ + bias [n]).

    With ``residual_first``, y = multiplier * post_op(x · Wᵀ + bias + residual).

    x, bias, multiplier and residual are float32 or bfloat16, each as it likes; multiplier and residual have y's shape; y is
    ``out_dtype`` or x's dtype, and always dense. Nothing is recorded for autograd: a call that would need it raises
    RuntimeError. Raises UsageError for an unknown post-op or dtype.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, out_dtype=dtype)
    refuse_gradients("linear", x, bias, multiplier, residual)
    if not packed.native:
        return plain_linear(
            x, packed.data, bias,
            post_op=post_op, multiplier=multiplier, residual=residual, residual_first=residual_first, out_dtype=dtype,
        )  # fmt: skip
    return torch.ops.slipstream.linear.default(
        x, packed.data, packed.n, packed.k, bias, code, multiplier, residual, dtype is torch.bfloat16, residual_first
    )


def plain_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    post_op: str = "none",
    multiplier: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    residual_first: bool = False,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The twin: what `linear` means, in plain torch. ``weight`` is [n, k] in the dtype that would be packed."""
    product = F.linear(x.to(weight.dtype), weight).float()
    y = plain_finish(product, bias, post_op, multiplier, residual, residual_first)
    return y.to(x.dtype if out_dtype is None else out_dtype)


def plain_finish(
    product: torch.Tensor,
    bias: torch.Tensor | None,
    post_op: str,
    multiplier: torch.Tensor | None,
    residual: torch.Tensor | None,
    residual_first: bool,
) -> torch.Tensor:
    """What follows the product [..., n], in float32, in plain torch."""
    y = product if bias is None else product + bias.float()
    if residual is not None and residual_first:
        y = y + residual.float()
    y = apply_post_op(y, post_op)
    if multiplier is not None:
        y = y * multiplier.float()
    if residual is not None and not residual_first:
        y = y + residual.float()
    return y
