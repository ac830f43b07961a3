# SPDX-License-Identifier: Apache-2.0
"""What TorchScript computes with numbers, lists and flags: done in Python while a graph is walked through."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.qint8, torch.quint8, torch.qint32, torch.bfloat16,
)  # fmt: skip
"""In the order of c10/core/ScalarType.h: TorchScript has their numbers."""

FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
"""In the order of c10/core/MemoryFormat.h."""

ENUMERATIONS: dict[str, tuple[Any, ...]] = {"ScalarType": DTYPES, "MemoryFormat": FORMATS, "Layout": (torch.strided,)}
"""Type of an argument → what its numbers stand for."""


def _formatted(text: str, *values: Any) -> str:
    return text.format(*values)


def _cut(values: list[Any], start: int | None, stop: int | None, step: int) -> list[Any]:
    return list(values[start:stop:step])


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "floordiv": operator.floordiv,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "neg": operator.neg, "pow": operator.pow, "abs": abs,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "gt": operator.gt, "le": operator.le, "ge": operator.ge,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__not__": operator.not_,
    "__is__": operator.is_, "__isnot__": operator.is_not, "__contains__": operator.contains,
    "__getitem__": operator.getitem, "len": len, "Int": int, "Float": float, "Bool": bool, "IntImplicit": int,
    "FloatImplicit": float, "ScalarImplicit": lambda number: number, "str": str, "format": _formatted, "list": list,
    "slice": _cut, "append": list.append, "sqrt": math.sqrt, "ceil": math.ceil, "floor": math.floor, "min": min, "max": max,
    "keys": list, "values": lambda given: list(given.values()), "copy": list, "all": all, "any": any,
}  # fmt: skip
"""aten's and prim's names of them."""
