# SPDX-License-Identifier: Apache-2.0
"""Products of two activations, alpha · A B + addend for each matrix of a batch, in bfloat16 or float32, natively or by a twin.

Error against float64, in relative norm on normal data: 1e-6 in float32, 4e-3 in bfloat16 (B is rounded to it, and A where there
are dot products of it; sums are float32, or as kernels/linear.py has them at level avx512_fp16), and the result's own
rounding. Either operand may lie by rows or by columns, so that
``q @ k.transpose(-1, -2)`` copies nothing; what lies by neither is copied once.

Levels with tiles may multiply float32 in parts of bfloat16, as kernels/linear.py multiplies weights in parts: three parts
err not above torch's own float32 matmul, two 1e-5, and what is said there of tiny and huge numbers holds here.
"""

from __future__ import annotations

import torch

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.linear import check_parts, plain_product
from slipstream.kernels.operands import DTYPES, check_dtypes, refuse_gradients


def batched_matmul(
    a: torch.Tensor, b: torch.Tensor, *, addend: torch.Tensor | None = None, alpha: float = 1.0,
    dtype: torch.dtype | None = None, out_dtype: torch.dtype | None = None, parts: int = 1,
) -> torch.Tensor:  # fmt: skip
    """y [..., M, N] = alpha · a [..., M, K] · b [..., K, N] + addend [..., M, N]; y is contiguous.

    Batch dimensions broadcast, as torch.matmul's do, and so does the addend. A matrix b that the whole batch shares is packed
    once a thread. Each tensor is float32 or bfloat16; ``dtype`` is what is multiplied, ``out_dtype`` the result's, both by
    default bfloat16 where a or b is. With two or three ``parts`` tiles multiply float32 as the sum of so many bfloat16, at a
    third or a sixth of bfloat16's rate; b is split when it is packed, a while it is read. Other levels multiply float32.
    Raises UsageError for another dtype, shape or number of parts, RuntimeError where a gradient would have to be recorded.
    """
    if dtype is None:
        dtype = torch.bfloat16 if torch.bfloat16 in (a.dtype, b.dtype) else torch.float32
    if out_dtype is None:
        out_dtype = torch.bfloat16 if torch.bfloat16 in (a.dtype, b.dtype) else torch.float32
    if torch.is_grad_enabled():
        refuse_gradients("batched_matmul", a, b, addend)
    check_parts(parts, dtype)
    if dtype not in DTYPES or out_dtype not in DTYPES or not native.available():
        _check(a, b, addend, dtype=dtype, out_dtype=out_dtype)
        return plain_batched_matmul(a, b, addend=addend, alpha=alpha, dtype=dtype, out_dtype=out_dtype, parts=parts)
    try:
        batch, left, right, more = a.shape[:-2], a, b, addend
        if batch != b.shape[:-2]:
            batch = torch.broadcast_shapes(batch, b.shape[:-2])
            left, right = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
        if addend is not None:
            more = addend.expand(*batch, a.shape[-2], b.shape[-1])
        return torch.ops.slipstream.batched_matmul.default(
            left, right, more, alpha, dtype is torch.bfloat16, out_dtype is torch.bfloat16, parts
        )
    except (RuntimeError, IndexError):
        _check(a, b, addend)  # asked late: it takes as long as a small product
        raise


def plain_batched_matmul(
    a: torch.Tensor, b: torch.Tensor, *, addend: torch.Tensor | None = None, alpha: float = 1.0,
    dtype: torch.dtype | None = None, out_dtype: torch.dtype | None = None, parts: int = 1,
) -> torch.Tensor:  # fmt: skip
    """The twin: products of rounded operands are exact in float32, in which torch adds them up."""
    given = torch.bfloat16 if torch.bfloat16 in (a.dtype, b.dtype) else torch.float32
    dtype = given if dtype is None else dtype
    y = plain_product(a, b, parts, torch.matmul) if parts > 1 else a.to(dtype).float() @ b.to(dtype).float()
    y = y * alpha
    if addend is not None:
        y = y + addend
    return y.to(given if out_dtype is None else out_dtype).contiguous()


def _check(a: torch.Tensor, b: torch.Tensor, addend: torch.Tensor | None, **dtypes: torch.dtype) -> None:
    """Raise UsageError for what has no product."""
    given = {"a": a, "b": b, "addend": addend}
    check_dtypes(**{key: tensor.dtype for key, tensor in given.items() if tensor is not None}, **dtypes)
    for argument, tensor in (("a", a), ("b", b)):
        if tensor.dim() < 2:
            raise UsageError.of(argument, f"of shape {tuple(tensor.shape)}", "not a matrix", "give it an axis: .unsqueeze()")
    if b.shape[-2] != a.shape[-1]:
        raise UsageError.of("b", f"of shape {tuple(b.shape)}", f"its rows are not the {a.shape[-1]} columns of a")
    try:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        allowed = f"its batch does not broadcast with that of a, {tuple(a.shape)}"
        raise UsageError.of("b", f"of shape {tuple(b.shape)}", allowed) from None
    made = (*batch, a.shape[-2], b.shape[-1])
    if addend is not None and (
        addend.dim() > len(made)
        or any(have not in (1, want) for have, want in zip(addend.shape[::-1], made[::-1], strict=False))
    ):
        raise UsageError.of("addend", f"of shape {tuple(addend.shape)}", f"it does not broadcast to the result's {made}")
