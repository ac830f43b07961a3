# SPDX-License-Identifier: Apache-2.0
"""Rows put together of parts in one pass: copied, looked up in tables, summed up over bags, or picked element by element.

Recommendation models (DLRM, arXiv 1906.00091; DeepFM, Wide & Deep) make their features so: dozens of tables are looked up, and
what they give is stacked or concatenated. Here each row of a table goes straight to its place. Bound by memory latency.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.operands import check_dtypes, refuse_gradients


class Kind(enum.IntEnum):
    """What a part does with its source x; the values are csrc's."""

    ROWS = 0
    """Row r of x [B, C]."""
    EMBEDDING = 1
    """Row index[r] of x [N, C]; numbers: index [B]."""
    BAG_SUM = 2
    """The sum of the rows index[offsets[r]] to before index[offsets[r + 1]] of x [N, C], zero without any; numbers: index, then
    offsets [B]. The last bag ends where the index does."""
    BAG_MEAN = 3
    """Their mean."""
    PICKED = 4
    """Elements index[0], index[1], ... of row r of x [B, N]; numbers: index [C], dense int32."""


NUMBERS = {Kind.ROWS: 0, Kind.EMBEDDING: 1, Kind.BAG_SUM: 2, Kind.BAG_MEAN: 2, Kind.PICKED: 1}
"""How many tensors of numbers a part takes."""


@dataclass(frozen=True)
class Part:
    """``x``: float32 or bfloat16; ``numbers``: int64 or int32, as many as the kind asks for, of any stride."""

    kind: Kind
    x: torch.Tensor
    numbers: tuple[torch.Tensor, ...] = ()


def concatenate(parts: Sequence[Part], *, out_dtype: torch.dtype) -> torch.Tensor:
    """y [B, sum of C], float32 or bfloat16: the parts' rows side by side.

    Bags are summed up in float32 in the order of their index, then rounded once.
    Raises UsageError for no parts, or a dtype that is not float32 or bfloat16; RuntimeError for an index or an offset out of
    range, for what does not fit together, and where a gradient would have to be recorded.
    """
    if not parts:
        raise UsageError.of("parts", parts, "at least one", "give what is to be put together")
    check_dtypes(out_dtype=out_dtype, **{f"x of part {number}": part.x.dtype for number, part in enumerate(parts)})
    refuse_gradients("concatenate", *(part.x for part in parts))
    if not native.available():
        return plain_concatenate(parts, out_dtype=out_dtype)
    made: torch.Tensor = torch.ops.slipstream.concatenate.default(
        [part.x for part in parts], [int(part.kind) for part in parts], [number for part in parts for number in part.numbers],
        out_dtype is torch.bfloat16,
    )  # fmt: skip
    return made


def plain_concatenate(parts: Sequence[Part], *, out_dtype: torch.dtype) -> torch.Tensor:
    """The twin: torch's operations for each part, which raise for numbers that are out of range."""
    return torch.cat([_PLAIN[part.kind](part.x, *part.numbers).to(out_dtype) for part in parts], dim=1)


def _plain_bags(mode: str) -> Callable[..., torch.Tensor]:
    def sums(x: torch.Tensor, index: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(index, x).float()  # of bfloat16 rows torch's bags would round the sum
        return F.embedding_bag(torch.arange(len(rows), dtype=offsets.dtype), rows, offsets, mode=mode)

    return sums


_PLAIN: dict[Kind, Callable[..., torch.Tensor]] = {
    Kind.ROWS: lambda x: x,
    Kind.EMBEDDING: lambda x, index: F.embedding(index, x),
    Kind.BAG_SUM: _plain_bags("sum"),
    Kind.BAG_MEAN: _plain_bags("mean"),
    Kind.PICKED: lambda x, index: x.index_select(1, index),
}
