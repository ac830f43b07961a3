# SPDX-License-Identifier: Apache-2.0
"""Features side by side: rows, rows of tables, sums of bags of them, picked columns; written to their places in one pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from slipstream.decision import log
from slipstream.kernels import concatenate as kernel
from slipstream.kernels.concatenate import NUMBERS, Kind, Part
from slipstream.optimize.graph.operators.operator import Answer, PackedOperator, Tensors
from slipstream.runtime.available_memory import available_bytes

MOST_OF_MEMORY = 1 / 4
"""Of what is available: as much may bfloat16 copies of tables take. Tables may be as large as the machine, and of a table only
the rows are read that are asked for."""

LOOKED_UP = frozenset({Kind.EMBEDDING, Kind.BAG_SUM, Kind.BAG_MEAN})


class Concatenation(PackedOperator):
    """Takes for each part in turn its rows (those looked up have none) and its numbers, then the tables of those looked up.

    Gives [..., sum of C], or [..., parts, C] where ``stacked``. float32 tables are held in bfloat16 where the result is, and
    where ``product`` is that and memory allows it.
    """

    kind = "concatenation"

    def __init__(self, product: torch.dtype, out: torch.dtype, kinds: Sequence[Kind], *, stacked: bool) -> None:
        super().__init__(product, out)
        self.kinds = tuple(kinds)
        self.stacked = stacked
        self.first_weight = sum(NUMBERS[kind] + (kind not in LOOKED_UP) for kind in kinds)
        self.has_room: bool | None = None

    def is_shared(self, tensors: Tensors) -> bool:
        return not self._is_held_short(tensors) or super().is_shared(tensors)

    def pack_kind(self, tensors: Tensors) -> Hashable:
        return ("tables", tuple(id(table) for table in tensors))

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        short = [table.detach().to(torch.bfloat16) for table in tensors if table is not None]
        return short, sum(table.numel() * table.itemsize for table in short)

    def content(self, tensors: Tensors) -> Any:
        return super().content(tensors) if self._is_held_short(tensors) else None

    def settle(self, tensors: Tensors) -> Answer | None:
        pack = self.fitting(tensors)
        return None if pack is None else (functools.partial(self._put_together, pack.content), (pack,))

    def __call__(self, *values: Any) -> torch.Tensor:
        tables = values[self.first_weight :]
        content = self.content(tables)
        return self._put_together(tables if content is None else content, *values)

    def _put_together(self, tables: Sequence[Any], *values: Any) -> torch.Tensor:
        parts, leading = self._parts(tables, values)
        y = kernel.concatenate(parts, out_dtype=self.out)
        if self.stacked:
            return y.view(*leading, len(parts), y.shape[1] // len(parts))
        return y if len(leading) == 1 else y.view(*leading, y.shape[1])

    def _parts(self, tables: Sequence[Any], values: Sequence[Any]) -> tuple[list[Part], torch.Size]:
        given, looked_up = iter(values), iter(tables)
        parts: list[Part] = []
        leading: torch.Size | None = None
        for kind in self.kinds:
            x = next(looked_up) if kind in LOOKED_UP else next(given)
            numbers = tuple(next(given) for _ in range(NUMBERS[kind]))
            if leading is None:
                leading = x.shape[:1] if kind is Kind.PICKED else x.shape[:-1] if kind is Kind.ROWS else numbers[-1].shape
            if kind is Kind.PICKED:
                x = x.flatten(1)
            elif kind is Kind.ROWS:
                x = x if x.dim() == 2 else x.flatten(0, -2)
            elif kind is Kind.EMBEDDING and numbers[0].dim() != 1:
                numbers = (numbers[0].flatten(),)
            parts.append(Part(kind, x, numbers))
        assert leading is not None  # there is a part
        return parts, leading

    def _is_held_short(self, tensors: Tensors) -> bool:
        """Whether float32 tables are to be copied in bfloat16. What memory allows is asked once."""
        if not self.product is self.out is torch.bfloat16 or all(t is None or t.dtype is torch.bfloat16 for t in tensors):
            return False
        if self.has_room is None:
            self.has_room = self._finds_room(tensors)
        return self.has_room

    def _finds_room(self, tensors: Tensors) -> bool:
        wanted = sum(2 * table.numel() for table in tensors if table is not None)
        available = available_bytes()
        fits = wanted <= MOST_OF_MEMORY * (math.inf if available is None else available)
        says = "an unknown amount" if available is None else f"{available / 1e6:,.0f} MB"
        reason = f"copies of {wanted / 1e6:,.1f} MB, {says} available, of which a quarter may be taken"
        log.note(f"{len(tensors)} embedding tables in bfloat16", fits, reason)
        return fits


def column_numbers(sizes: tuple[int, ...], *indices: torch.Tensor) -> torch.Tensor:
    """int32 [C]: where the elements [indices[0][c], indices[1][c], ...] of a tensor of these sizes lie in its memory.

    Raises IndexError, as torch does, for one that is not in it.
    """
    found = torch.zeros((), dtype=torch.int64)
    for size, index in zip(sizes, indices, strict=True):
        if index.numel() and not -size <= int(index.min()) <= int(index.max()) < size:
            raise IndexError(f"index out of range for an axis of size {size}")
        found = found * size + torch.where(index < 0, index + size, index)
    return found.to(torch.int32)


column_numbers.__module__ = "slipstream"
