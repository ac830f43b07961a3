# SPDX-License-Identifier: Apache-2.0
"""A product of two activations, the number that scales it and the tensor that is added to it become one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slipstream.kernels.operands import DTYPES
from slipstream.optimize.graph.makers.replacing import are_given, computes, dtype_of, replace_row
from slipstream.optimize.graph.nodes import arguments, name_of, only_user, operands_of, sizes_of, tensor
from slipstream.optimize.graph.operators.batched_matmul import BatchedMatmul


def fuse_matmul(graph: fx.Graph, node: fx.Node, _: torch.dtype) -> int:
    """``matmul`` and ``bmm`` of tensors with two axes at least; a parameter by itself is a linear's weight, and left alone."""
    given = arguments(node)
    if given is None or set(given) != {"input", "other"}:
        return 0
    a, b = given["input"], given["other"]
    if not computes(node, a, b) or are_given(a) or are_given(b):
        return 0
    if min(tensor(a).dim(), tensor(b).dim()) < 2:  # type: ignore[union-attr]
        return 0
    row, alpha, addend = [node], 1.0, None
    scaled = only_user(node)
    factor = None if scaled is None else _number_of(scaled, node)
    if scaled is not None and factor is not None:
        row.append(scaled)
        alpha = factor
    added = only_user(row[-1])
    if added is not None:
        addend = _addend_of(added, row[-1])
        if addend is not None:
            row.append(added)
    product = torch.bfloat16 if dtype_of(node) is torch.bfloat16 else torch.float32
    return replace_row(graph, row, BatchedMatmul(product, dtype_of(row[-1]), alpha), (a, b, addend))


def _number_of(user: fx.Node, product: fx.Node) -> float | None:
    """What a following product with, or quotient by, a plain number multiplies by."""
    name, operands = name_of(user), operands_of(user)
    if name not in ("mul", "div") or operands is None or not computes(user, product):
        return None
    first, second = operands
    if name == "mul" and second is product:
        first, second = second, first
    if first is not product or isinstance(second, bool) or not isinstance(second, int | float):
        return None
    if name == "mul":
        return float(second)
    return 1.0 / second if second else None


def _addend_of(user: fx.Node, product: fx.Node) -> Any:
    """The tensor that a following sum of the product's own shape and dtype adds."""
    given = arguments(user) if name_of(user) == "add" else None
    if given is None or set(given) != {"input", "other"} or not computes(user, product):
        return None
    other = given["other"] if given["input"] is product else given["input"]
    have = tensor(other)
    if other is product or have is None or have.dtype not in DTYPES:
        return None
    return other if sizes_of(user) == sizes_of(product) and dtype_of(user) is dtype_of(product) else None
