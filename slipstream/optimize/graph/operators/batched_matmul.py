# SPDX-License-Identifier: Apache-2.0
"""y = alpha · A B + addend of two activations: on our kernel or on torch's, whichever a race finds faster for a size.

Where there are tiles, float32 is multiplied in parts of bfloat16, as torch's float32 matmul precision asks, if an earlier race
finds that faster than our float32 kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from typing import Any

import torch

from slipstream.decision import log
from slipstream.kernels import batched_matmul as kernel
from slipstream.kernels.linear import asked_precision, best_parts, has_tiles
from slipstream.optimize import guards, products
from slipstream.optimize.graph.operators.operator import Operator
from slipstream.optimize.options import set_up

MARGIN = 1.03
"""How many times faster than torch's our kernel has to be."""


class BatchedMatmul(Operator):
    """Takes A [..., M, K], B [..., K, N], and an addend that broadcasts to the result, or None; any strides, either dtype.

    Multiplies in bfloat16 where ``product`` is that, or where A or B comes in it: what stayed float32 until here may be
    positions, whose products must not be rounded.
    """

    kind = "batched_matmul"

    def __init__(self, product: torch.dtype, out: torch.dtype, alpha: float) -> None:
        super().__init__(product, out)
        self.alpha = alpha
        self.tiles = has_tiles()
        self.ways: dict[Hashable, int] = {}
        """Parts of our kernel by size and precision, 0 for torch's."""

    def __call__(self, a: Any, b: Any, addend: Any) -> torch.Tensor:
        is_low = self.product is torch.bfloat16 or a.dtype is torch.bfloat16 or b.dtype is torch.bfloat16
        dtype = torch.bfloat16 if is_low else torch.float32
        size = (*_size_of(a, b, dtype), asked_precision() if self.tiles and not is_low else None)
        parts = self.ways.get(size)
        if parts is None:
            parts = self.ways[size] = self.race(a, b, addend, dtype, size)
        return self.ours(a, b, addend, dtype, parts) if parts else self.theirs(a, b, addend, dtype)

    def ours(self, a: Any, b: Any, addend: Any, dtype: torch.dtype, parts: int) -> torch.Tensor:
        return kernel.batched_matmul(a, b, addend=addend, alpha=self.alpha, dtype=dtype, out_dtype=self.out, parts=parts)

    def theirs(self, a: Any, b: Any, addend: Any, dtype: torch.dtype) -> torch.Tensor:
        y = torch.matmul(a.to(dtype), b.to(dtype))
        if self.alpha != 1:
            y = y * self.alpha
        return (y if addend is None else y + addend).to(self.out)

    def race(self, a: Any, b: Any, addend: Any, dtype: torch.dtype, size: tuple[Hashable, ...]) -> int:
        """Which is faster on these very tensors; found once for all products of about their size and layout."""
        question = size, self.out, self.alpha != 1, addend is None
        macs = float(math.prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])) * a.shape[-2] * a.shape[-1] * b.shape[-1])
        if macs == 0:
            return 1
        what = "product of " + " by ".join(" x ".join(map(str, x.shape)) for x in (a, b))
        ours = functools.partial(self.ours, a, b, addend, dtype)
        theirs = functools.partial(self.theirs, a, b, addend, dtype)
        parts = 1 if size[-1] is None else best_parts(str(size[-1]), a.shape[-2])
        parts = products.race(what, parts, ours, ("batched_matmul in parts", *question), macs)
        with set_up.timed():
            verdict = guards.speed.settle(("batched_matmul", *question, parts), lambda: ours(parts), theirs, macs, MARGIN)
        reason = f"raced against torch's on tensors like these{verdict.when()}"
        log.note(f"{what}: our kernel", verdict.fast, reason, speedup_x=verdict.speedup_x)
        return parts if verdict.fast else 0


def _size_of(a: Any, b: Any, dtype: torch.dtype) -> tuple[Hashable, ...]:
    """What the speed depends on: sizes, coarsely, dtypes, and which way the operands lie."""
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = a.numel() // max(1, rows * inner)
    return (
        batch.bit_length(), rows.bit_length(), inner.bit_length(), columns.bit_length(), dtype, a.dtype, b.dtype,
        b.stride(-1) == 1, a.stride(-1) == 1,
    )  # fmt: skip
