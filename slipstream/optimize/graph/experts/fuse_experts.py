# SPDX-License-Identifier: Apache-2.0
"""Finds products of groups of rows with a weight each: torch's `grouped_mm`, and what transformers has in place of it."""

from __future__ import annotations

import torch
from torch import fx

from slipstream.optimize.graph.experts.grouped_linear import GroupedLinear
from slipstream.optimize.graph.makers.replacing import are_given, computes, dtype_of, product_for, replace_row
from slipstream.optimize.graph.nodes import arguments, name_of, sizes_of, tensor

NAMES = ("grouped_mm", "_grouped_mm", "grouped_mm_fallback")


def fuse_experts(graph: fx.Graph, product: torch.dtype) -> int:
    """Rewrite in place; ``product`` is what float32 weights are multiplied in. Returns the number of operators."""
    return sum(_fuse(graph, node, product) for node in list(graph.nodes) if name_of(node) in NAMES)


def _fuse(graph: fx.Graph, node: fx.Node, product: torch.dtype) -> int:
    given = arguments(node)
    if given is None or any(given.get(name) is not None for name in ("bias", "out_dtype")):
        return 0
    x, weight, ends = given["input"], given["weight"], given.get("offs")
    if tensor(ends) is None or tensor(x).dim() != 2 or tensor(weight).dim() != 3 or not computes(node, x):  # type: ignore[union-attr]
        return 0
    lying = _before_transposition(weight)
    if not are_given(lying or weight):
        return 0
    rows, groups = sizes_of(x)[0], sizes_of(weight)[0]
    operator = GroupedLinear(product_for(node, product), dtype_of(node), max(1, rows // groups), transposed=lying is None)
    return replace_row(graph, [node], operator, (x, None, ends, lying or weight))


def _before_transposition(weight: fx.Node) -> fx.Node | None:
    """The weight [G, N, K] of which this is [G, K, N], if it is that."""
    if name_of(weight) not in ("transpose", "swapaxes") or weight.kwargs or len(weight.args) != 3:
        return None
    source, *axes = weight.args
    swapped = {axis % 3 for axis in axes if isinstance(axis, int)}
    return source if swapped == {1, 2} and isinstance(source, fx.Node) else None
