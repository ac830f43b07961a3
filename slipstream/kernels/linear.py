# SPDX-License-Identifier: Apache-2.0
"""Linear with packed weights: y = residual + multiplier * post_op(x Wᵀ + b), natively or by its plain-torch twin.

Residual networks want the residual within the post-op; `residual_first` puts it there.

Accuracy, against float64, in relative norm: float32 weights as torch's own float32 matmul (1e-6 at K = 4096); bfloat16 weights
at levels avx512_bf16 and amx round x to bfloat16 as well and sum in float32 (4e-3); at level avx512_fp16 weights and x are
scaled to float16, x and float32 weights keep eleven bits, and 32 products at a time are summed in float16 (1.2e-3, and what
rounding weights to bfloat16 took before); at lower levels x keeps float32.
float32 weights in parts of bfloat16, at levels with tiles: three parts not above torch's own float32 matmul, two 1e-5;
elsewhere they are put together again and multiplied as float32. Where bfloat16 is multiplied, denormals count as zero, those of
the parts too: below 2^-108 in magnitude a float32 loses its third part, below 2^-117 its second. Sums within a hundredth of the
largest float may come out as infinities. Post-ops add at most 4e-7 absolute (GELU: Abramowitz-Stegun 7.1.26), GELU and SiLU on
their way into bfloat16 at most a fiftieth of what rounding takes.
Rows are independent: a NaN or infinity in one row of x reaches no other.

Float32 products at the precision that torch was asked for: a float32 is the sum of three bfloat16, x = x0 + x1 + x2, each the
rounding of what those before it leave. On tiles

    "highest"   x0w0 + x0w1 + x1w0 + x1w1 + x0w2 + x2w0
    "high"      x0w0 + x0w1 + x1w0
    "medium"    x0w0, a bfloat16 product

(Henry, Tang, Heinecke: Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations, 2019). The
smallest products are added first, the sums of passes of 128 in turn. Where there are no tiles "highest" and "high" are
float32 kernels, and "medium" is bfloat16 where the level has dot products of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.operands import check_dtypes, refuse_gradients
from slipstream.kernels.post_op import POST_OPS, apply_post_op, code_of

__all__ = [
    "PARTS", "POST_OPS", "Held", "PackedLinear", "apply_post_op", "asked_precision", "best_held", "best_parts", "check_parts",
    "has_tiles", "in_words", "join", "linear", "pack", "pack_in_a_row", "part", "plain_linear", "plain_product",
    "repays_scaling", "split",
]  # fmt: skip

PANEL = 32
"""Columns of y whose weights lie together: csrc/kernels/linear.h."""

PARTS = {"highest": 3, "high": 2}
"""Parts that a weight is split into for tiles, by precision."""

PRODUCTS = {2: ((1, 0), (0, 1), (0, 0)), 3: ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0))}
"""Which part of x is multiplied by which of the weight, by the number of parts, in the order in which they are added."""

SPLIT_FROM_ROWS = 16
"""Rows of x from which tiles are full. With fewer, reading the weights takes the time, and three parts are half as long again
as the float32 that they are: then the vector kernel is used. A constant by that arithmetic, not by measurement."""

LEAST_INTEGERS = PANEL // 2 + 1
"""Outputs from which on pixels are worth making integers of (measured: 16 take half as long again, 24 less time)."""

_TILES = ("amx", native.EMULATED)
_FAST_BFLOAT16 = ("avx512_bf16", *_TILES)
"""Levels that multiply bfloat16 weights faster than float32 ones as they are; others scale them for that."""
_NAMES = {"bf16": "medium", "tf32": "high"}
_setting: Any = torch._C._get_fp32_precision_getter  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A weight [n, k] in the kernels' own order (csrc/kernels/linear.h); made once, serves every batch size and level.

    ``data`` is opaque and 1-D; without the native extension it is the weight itself, [n, k], in ``dtype``. With two or three
    ``parts`` it holds a float32 weight as so many bfloat16, 2 bytes an element each.
    """

    data: torch.Tensor
    n: int
    k: int
    dtype: torch.dtype
    native: bool
    parts: int = 1


def pack(weight: torch.Tensor, *, dtype: torch.dtype, parts: int = 1, scaled: bool = True) -> PackedLinear:
    """Copy ``weight`` [n, k] (float32 or bfloat16, any strides) into the order that `linear` reads.

    ``dtype`` is what the packed copy holds, float32 or bfloat16. float32 may be held in two or three ``parts`` of bfloat16,
    which tiles multiply. Instead of bfloat16 it is ``scaled`` to float16, or to 16-bit integers, at levels that multiply those:
    both keep more of a float32. Float16 where the largest value of each of its rows is finite and within 2**40 of 1, integers
    where also few of the others are faint beside it (csrc/kernels/int16_operands.h). Raises UsageError for anything else.
    """
    if weight.dim() != 2:
        raise UsageError.of("weight", f"of shape {tuple(weight.shape)}", "not a matrix [out_features, in_features]")
    check_dtypes(dtype=dtype, weight=weight.dtype)
    check_parts(parts, dtype)
    n, k = weight.shape
    with torch.no_grad():
        if native.available():
            fits = scaled and dtype is torch.bfloat16 and native.scaled_dtype("linear") is not torch.bfloat16
            data = torch.ops.slipstream.pack_linear(weight.detach(), dtype is torch.bfloat16 or parts > 1, parts, fits)
            return PackedLinear(data, n, k, dtype, True, parts)
        return PackedLinear(weight.detach().to(dtype).contiguous().clone(), n, k, dtype, False, parts)


def repays_scaling(n: int) -> bool:
    """Whether so many outputs repay that rows of x are scaled in each call, where there may be many rows and little depth."""
    return native.scaled_dtype("linear") is not torch.int16 or n >= LEAST_INTEGERS


def pack_in_a_row(weights: Sequence[torch.Tensor], *, dtype: torch.dtype, parts: int = 1) -> torch.Tensor:
    """The data of each weight's pack, one behind the other: scaled, as `pack` has it, where that fits all of them."""
    packs = [pack(weight, dtype=dtype, parts=parts).data for weight in weights]
    if any(packed.dtype is not packs[0].dtype for packed in packs):
        packs = [pack(weight, dtype=dtype, parts=parts, scaled=False).data for weight in weights]
    return _in_a_row(packs)


def _in_a_row(packs: Sequence[torch.Tensor]) -> torch.Tensor:
    words = torch.int32 if packs[0].itemsize == 4 else torch.int16
    return torch.cat([packed.view(words) for packed in packs]).view(packs[0].dtype)  # autocast would convert them


def check_parts(parts: int, dtype: torch.dtype) -> None:
    """Raise UsageError for a number of parts that this dtype is not multiplied in."""
    if parts not in ((1, 2, 3) if dtype is torch.float32 else (1,)):
        raise UsageError.of("parts", parts, "must be 1, 2 or 3, and 1 for bfloat16")


def join(parts: Sequence[PackedLinear]) -> tuple[PackedLinear, list[PackedLinear]]:
    """One weight [n1 + n2 + …, k] for one call, of weights with the same k; and the parts again, as views of it.

    Raises UsageError where k, dtype or kind of pack differ, or a part before the last ends within a panel of 32 outputs.
    """
    first = parts[0]
    for part in parts:
        if (part.k, part.data.dtype, part.native, part.parts) != (first.k, first.data.dtype, first.native, first.parts):
            raise UsageError.of("parts", f"of k {part.k} in {part.dtype}", f"the first has k {first.k}, {first.dtype}")
    if any(part.n % PANEL for part in parts[:-1]):
        raise UsageError.of("parts", [part.n for part in parts], f"n of all but the last has to be a multiple of {PANEL}")
    data = _in_a_row([part.data for part in parts])
    views = [
        PackedLinear(view, part.n, part.k, part.dtype, part.native, part.parts)
        for part, view in zip(parts, data.split([part.data.shape[0] for part in parts]), strict=True)
    ]
    return PackedLinear(data, sum(part.n for part in parts), first.k, first.dtype, first.native, first.parts), views


def is_part(start: int, stop: int, *, of: int) -> bool:
    """Whether `part` can cut these outputs out of ``of``."""
    return start % PANEL == 0 and 0 <= start < stop <= of and (stop % PANEL == 0 or stop == of)


def part(packed: PackedLinear, start: int, stop: int) -> PackedLinear:
    """Outputs ``start`` to before ``stop`` of a packed weight, as a view of it.

    Raises UsageError where they do not begin, and end before the last, at a multiple of 32.
    """
    if not is_part(start, stop, of=packed.n):
        raise UsageError.of("start and stop", (start, stop), f"multiples of {PANEL} up to n, {packed.n}")
    step = packed.data.shape[0] // -(-packed.n // PANEL) if packed.native else PANEL
    data = packed.data[start // PANEL * step : -(-stop // PANEL) * step]
    return PackedLinear(data, stop - start, packed.k, packed.dtype, packed.native, packed.parts)


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
            x, packed.data, bias, parts=packed.parts,
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
    parts: int = 1,
) -> torch.Tensor:
    """The twin: what `linear` means, in plain torch. ``weight`` is [n, k] in the dtype that would be packed."""
    product = plain_product(x, weight, parts) if parts > 1 else F.linear(x.to(weight.dtype), weight).float()
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


class Held(NamedTuple):
    """How a float32 weight is held when packed."""

    dtype: torch.dtype
    parts: int = 1


def asked_precision(of: str = "matmul") -> str:
    """`torch.get_float32_matmul_precision()`: "highest", "high" or "medium".

    It is read where the CPU's part of it stands, `torch.backends.mkldnn.matmul.fp32_precision`, because that is there for who
    set it by torch's newer names as well, where the older function raises. Convolutions have a setting of their own in torch,
    `torch.backends.mkldnn.conv.fp32_precision`, which is ``of`` "conv".
    """
    return _NAMES.get(_setting("mkldnn", of), "highest")


def best_held(precision: str, rows: int) -> Held:
    """How to hold a float32 weight for x of so many rows, at the level in use."""
    if precision == "medium":
        return Held(torch.bfloat16 if _multiplies_bfloat16(native.active_level()) else torch.float32)
    return Held(torch.float32, best_parts(precision, rows))


def has_tiles() -> bool:
    """Whether the level in use multiplies parts of bfloat16; others would put them together again."""
    return native.active_level() in _TILES


def best_parts(precision: str, rows: int) -> int:
    """Parts of bfloat16 for float32 products of two activations, the first of so many rows, at the level in use.

    1 is the float32 kernel. "medium" has as many as "high": a float32 among activations may be a position, which one part of
    8 bits would not tell from its neighbours.
    """
    return PARTS.get(precision, PARTS["high"]) if has_tiles() and rows >= SPLIT_FROM_ROWS else 1


def in_words(precision: str, held: Held) -> str:
    """For the report."""
    if held.parts > 1:
        return f"float32 products from {held.parts} parts of bfloat16, as float32 matmul precision {precision} has them"
    if precision == "medium" and held.dtype == torch.float32:
        return f"float32 products: those of bfloat16 are no faster ({native.reason()}) for float32 matmul precision medium"
    name = str(held.dtype).removeprefix("torch.")
    return f"{name} products, as float32 matmul precision {precision} has them"


def _multiplies_bfloat16(level: str) -> bool:
    if level in _FAST_BFLOAT16 or native.scaled_dtype("linear") is not torch.bfloat16:
        return True
    return level == "none" and torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def split(values: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """float32 tensors that bfloat16 holds exactly, and that add up to ``values``, three of them exactly.

    Rounded to nearest even, but towards zero where that would overflow. Of what is not finite nothing is left.
    """
    rest, found = values.float(), []
    for _ in range(parts):
        rounded, cut = rest.bfloat16().float(), (rest.view(torch.int32) & -65536).view(torch.float32)
        part = torch.where(rounded.isinf(), cut, rounded)
        rest = torch.where(rest.isfinite(), rest - part, 0.0)
        found.append(part)
    return found


def plain_product(
    x: torch.Tensor, weight: torch.Tensor, parts: int, multiply: Callable[..., torch.Tensor] = F.linear
) -> torch.Tensor:
    """The twin: x [..., k] · weight [n, k]ᵀ in float32, from so many parts. Sums that are not finite are those of x0w0.

    ``multiply`` may be another product of the two, torch.matmul or a convolution, say.
    """
    x_parts, w_parts = split(x, parts), split(weight, parts)
    products = [multiply(x_parts[i], w_parts[j]) for i, j in PRODUCTS[parts]]
    total = torch.stack(products).sum(0)
    return torch.where(total.isfinite(), total, products[-1])
