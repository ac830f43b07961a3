# SPDX-License-Identifier: Apache-2.0
"""Linear on integers: x rounded to 8 bits in the call, int8 weights packed once, exact int32 sums, float32 or bfloat16 out.

    x ≈ sx · (u - zx)     one sx, zx a row (per_token), for all of x (per_tensor), or given (`Static`)
    W ≈ sw · (q - zw)     one sw, zw a row of W, that is a column of y
    y = residual + multiplier · post_op(sw · sx · Σ (u - zx)(q - zw) + b)

The integer sums are exact at every instruction-set level and equal those of the twin bit by bit; what follows them is float32,
so y is within 1e-6 of the twin's (relative, and absolute times the largest of |y|, bias and residual; 4e-7 more for post-ops),
or bfloat16's rounding. Rows are independent. A row that holds a NaN is NaN, and so is one that holds an infinity, except that a
`Static` scale takes infinities as the ends of its range. No other row sees either: a tensor's range is that of its finite rows.
Formulas: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.linear import plain_finish
from slipstream.kernels.operands import check_dtypes, refuse_gradients
from slipstream.kernels.post_op import code_of

ACTIVATIONS = ("per_token", "per_tensor", "per_token_asymmetric", "per_tensor_asymmetric")
"""Dynamic ways to a scale for x, in the order of csrc/bind/linear_int8.cpp's Activation; `Static` is the one after them."""

DEEPEST = 32768
"""Largest in_features: sums of that many products of at most 255 · 255 stay below 2³¹."""

SMALLEST_SCALE = 2.0**-126
"""The smallest normal float32, whose reciprocal is finite: a row or tensor that asks for a smaller scale counts as zero."""


@dataclass(frozen=True)
class Static:
    """A scale and zero point known before: u = zero_point + round(x / scale), kept within ``dtype``, torch.int8 or torch.uint8.

    Raises UsageError for a scale that is not a normal positive float32 and a zero point that ``dtype`` does not hold.
    """

    scale: float
    zero_point: int = 0
    dtype: torch.dtype = torch.int8

    def __post_init__(self) -> None:
        if self.dtype not in (torch.int8, torch.uint8):
            raise UsageError.of("dtype", self.dtype, (torch.int8, torch.uint8))
        if not SMALLEST_SCALE <= self.scale <= torch.finfo(torch.float32).max:
            raise UsageError.of("scale", self.scale, "must be a positive float32 of 1.2e-38 or more")
        info = torch.iinfo(self.dtype)
        if not info.min <= self.zero_point <= info.max:
            raise UsageError.of("zero_point", self.zero_point, f"must be {info.min} to {info.max}, which {self.dtype} holds")

    @property
    def unsigned_zero_point(self) -> int:
        """The zero point of the same numbers shifted to 0 … 255."""
        return self.zero_point - torch.iinfo(self.dtype).min


Activation = str | Static


@dataclass(frozen=True, eq=False)
class PackedLinearInt8:
    """An int8 weight [n, k], its scales and zero points in the kernels' order; made once, serves every batch size and level.

    ``data`` is opaque, 1-D int8; without the native extension it is the weight itself, [n, k].
    """

    data: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    n: int
    k: int
    native: bool


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 [n, k], float32 scales [n]) of a float32 or bfloat16 weight [n, k], symmetric, a scale a row of W.

    scale = max |row| / 127, in float32; q = round(row / scale), half to even, within ±127. A row whose scale would be below
    2⁻¹²⁶ is all zeros with scale 1. Raises UsageError for another rank or dtype and for weights that are not finite.
    """
    if weight.dim() != 2:
        raise UsageError.of("weight", f"of shape {tuple(weight.shape)}", "not a matrix [out_features, in_features]")
    check_dtypes(weight=weight.dtype)
    with torch.no_grad():
        values = weight.detach().float()
        if not values.isfinite().all():
            raise UsageError("weight: holds NaN or infinity, which has no scale; quantize finite weights")
        scales = values.abs().amax(1) / 127 if values.shape[1] else values.new_zeros(values.shape[0])
        empty = scales < SMALLEST_SCALE
        scales = torch.where(empty, 1.0, scales)
        integers = (values / scales[:, None]).round_().clamp_(-127, 127)
        return integers.masked_fill_(empty[:, None], 0).to(torch.int8), scales


def pack(weight: torch.Tensor, scales: torch.Tensor, *, zero_points: torch.Tensor | None = None) -> PackedLinearInt8:
    """Copy an int8 ``weight`` [n, k] of any strides, its float32 ``scales`` [n] and int32 ``zero_points`` [n] (0 by default).

    Raises UsageError for other shapes and dtypes, zero points that are no int8, and k beyond 32768.
    """
    if weight.dim() != 2 or weight.dtype is not torch.int8:
        what = f"of shape {tuple(weight.shape)} and {weight.dtype}"
        raise UsageError.of("weight", what, "not an int8 matrix [out_features, in_features]", "see quantize_weight")
    n, k = weight.shape
    if k > DEEPEST:
        raise UsageError.of("weight", f"of {k} in_features", f"more than {DEEPEST}, whose sums could leave int32")
    _check_vector("scales", scales, n, torch.float32)
    if zero_points is not None:
        _check_vector("zero_points", zero_points, n, torch.int32)
        if n and not (int(zero_points.min()) >= -128 and int(zero_points.max()) <= 127):
            raise UsageError("zero_points: must be -128 to 127, which the weight's int8 holds")
    with torch.no_grad():
        scales = scales.detach().clone()
        zero_points = None if zero_points is None else zero_points.clone()
        if native.available():
            data = torch.ops.slipstream.pack_linear_int8(weight, scales, zero_points)
            return PackedLinearInt8(data, scales, zero_points, n, k, True)
        return PackedLinearInt8(weight.contiguous().clone(), scales, zero_points, n, k, False)


def linear_int8(
    x: torch.Tensor,
    packed: PackedLinearInt8,
    bias: torch.Tensor | None = None,
    *,
    activation: Activation = "per_token",
    post_op: str = "none",
    multiplier: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    residual_first: bool = False,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [..., n] = residual + multiplier · post_op(x [..., k] · Wᵀ + bias [n]), x rounded as ``activation`` says.

    With ``residual_first``, y = multiplier · post_op(x · Wᵀ + bias + residual).

    "per_token" and "per_tensor": sx = max |x| / 127 and u - zx = round(x · (1 / sx)) within ±127. With "_asymmetric":
    sx = high / 255 - low / 255, zx = round(-low · (1 / sx)) and u = zx + round(x · (1 / sx)) within 0 … 255, where
    low ≤ 0 ≤ high is the range of x. All in float32, half to even. x, bias, multiplier and residual are float32 or bfloat16,
    each as it likes; multiplier and residual have y's shape; y is ``out_dtype`` or x's dtype, and dense. Raises UsageError for
    an unknown activation, post-op or dtype, RuntimeError for sizes that do not fit together and where a gradient is wanted.
    """
    code = code_of(post_op)
    dtype = x.dtype if out_dtype is None else out_dtype
    check_dtypes(x=x.dtype, out_dtype=dtype)
    if not isinstance(activation, Static) and activation not in ACTIVATIONS:
        raise UsageError.of("activation", activation, (*ACTIVATIONS, "a Static(scale, zero_point)"))
    refuse_gradients("linear_int8", x, bias, multiplier, residual)
    if not packed.native:
        return plain_linear_int8(
            x, packed.data, packed.scales, bias, zero_points=packed.zero_points, activation=activation, post_op=post_op,
            multiplier=multiplier, residual=residual, residual_first=residual_first, out_dtype=dtype,
        )  # fmt: skip
    how, scale, zero_point = _in_numbers(activation)
    return torch.ops.slipstream.linear_int8.default(
        x, packed.data, packed.n, packed.k, how, scale, zero_point, bias, code, multiplier, residual, dtype is torch.bfloat16,
        residual_first,
    )  # fmt: skip


def plain_linear_int8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    zero_points: torch.Tensor | None = None,
    activation: Activation = "per_token",
    post_op: str = "none",
    multiplier: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    residual_first: bool = False,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The twin, in plain torch; ``weight`` is int8 [n, k]. Integers are summed in float64, which holds them exactly."""
    integers, row_scales = quantize_activation(x, activation)
    shifted = weight.double() if zero_points is None else weight.double() - zero_points.double()[:, None]
    sums = integers.double() @ shifted.T
    y = plain_finish(sums.float() * scales * row_scales, bias, post_op, multiplier, residual, residual_first)
    return y.to(x.dtype if out_dtype is None else out_dtype)


def quantize_activation(x: torch.Tensor, activation: Activation) -> tuple[torch.Tensor, torch.Tensor]:
    """What `linear_int8` makes of x: (u - zx, int32 [..., k]; sx, float32 [..., 1], NaN for rows without a scale)."""
    values = x.float()
    finite = values.isfinite().all(-1, keepdim=True)
    if isinstance(activation, Static):
        zero_point: torch.Tensor | int = activation.unsigned_zero_point
        scale = torch.full_like(values[..., :1], activation.scale) if values.shape[-1] else values.new_ones(*x.shape[:-1], 1)
        finite = ~values.isnan().any(-1, keepdim=True)
        low: torch.Tensor | int = 0
    else:
        low_end, high_end = _range(torch.where(finite, values, 0.0), whole=activation.startswith("per_tensor"))
        if activation.endswith("asymmetric"):
            scale = high_end / 255 - low_end / 255
            zero_point = (-low_end * (1 / scale)).round().nan_to_num(0).clamp(0, 255)
            low = 0
        else:
            scale, zero_point, low = torch.maximum(-low_end, high_end) / 127, 128, 1
        scale = scale.expand(*x.shape[:-1], 1)
    counts = finite & (scale >= SMALLEST_SCALE)
    rounded = torch.clamp(values * (1 / scale), _as_tensor(low - zero_point), _as_tensor(255 - zero_point)).round()
    integers = torch.where(counts, rounded, 0.0).int()
    return integers, torch.where(finite, torch.where(counts, scale, 0.0), math.nan)


def _range(values: torch.Tensor, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and highest of each row, or of all, zero included; [..., 1] or [1]."""
    zero = values.new_zeros(*values.shape[:-1], 1)
    with_zero = torch.cat([values, zero], -1)
    low, high = with_zero.amin(-1, keepdim=True), with_zero.amax(-1, keepdim=True)
    if not whole:
        return low, high
    edge = values.new_zeros(1)
    return torch.cat([low.reshape(-1), edge]).amin().reshape(1), torch.cat([high.reshape(-1), edge]).amax().reshape(1)


def _as_tensor(value: torch.Tensor | int) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.tensor(float(value))


def _in_numbers(activation: Activation) -> tuple[int, float, int]:
    """(code, scale, zero point of u8) for the operator."""
    if isinstance(activation, Static):
        return len(ACTIVATIONS), activation.scale, activation.unsigned_zero_point
    return ACTIVATIONS.index(activation), 0.0, 0


def _check_vector(argument: str, value: torch.Tensor, n: int, dtype: torch.dtype) -> None:
    if value.shape != (n,) or value.dtype is not dtype:
        allowed = f"not a vector of {n} {dtype}, one for each of the weight's out_features"
        raise UsageError.of(argument, f"of shape {tuple(value.shape)} and {value.dtype}", allowed)
