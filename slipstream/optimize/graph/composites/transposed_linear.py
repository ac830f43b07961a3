# SPDX-License-Identifier: Apache-2.0
"""Products with a weight [in, out]: `torch.addmm` as transformers' Conv1D calls it (GPT-2), `mm`, and ``x @ weight``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from slipstream.optimize.graph.composites.spelling import Spelling
from slipstream.optimize.graph.nodes import name_of, only_user, tensor

_PRODUCTS = frozenset({"matmul", "mm"})
_SHAPES = frozenset({"view", "reshape"})


def linear_transposed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., in] by a weight [in, out]."""
    return F.linear(x, weight.t(), bias)


linear_transposed.__module__ = "slipstream"


def spell_transposed_linears(graph: fx.Graph, own: Collection[fx.Node]) -> None:
    """Rewrite in place; ``own`` are the placeholders of the model's parameters and buffers."""
    for node in list(graph.nodes):
        found = _operands(node, own)
        if found is None:
            continue
        x, weight, bias = found
        replaced, x = _with_all_axes(node, x)
        made = Spelling(graph, replaced).function(linear_transposed, x, weight, bias)
        made.meta = dict(replaced.meta)
        replaced.replace_all_uses_with(made)
        graph.erase_node(replaced)
        if replaced is not node:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _operands(node: fx.Node, own: Collection[fx.Node]) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """x, weight and bias, if it is such a product."""
    if node.kwargs or node.op not in ("call_function", "call_method"):
        return None
    bias: Any = None
    if name_of(node) == "addmm" and len(node.args) == 3:
        bias, x, weight = node.args
    elif name_of(node) in _PRODUCTS and len(node.args) == 2:
        x, weight = node.args
    else:
        return None
    if weight not in own or (bias is not None and bias not in own):
        return None
    rows, columns, shift, made = map(tensor, (x, weight, bias, node))
    if rows is None or columns is None or made is None or columns.dim() != 2 or rows.dim() < 2:
        return None
    if (bias is None) != (shift is None) or (shift is not None and shift.shape != columns.shape[1:]):
        return None
    return x, weight, bias  # type: ignore[return-value]


def _with_all_axes(node: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The node to replace and what it reads, without axes being put together before the product and taken apart behind it."""
    behind = only_user(node)
    if name_of(x) not in _SHAPES or name_of(behind) not in _SHAPES or behind is None:
        return node, x
    source = x.args[0]
    whole, made = tensor(source), tensor(behind)
    if whole is None or made is None or whole.shape[:-1] != made.shape[:-1] or whole.shape[-1] != tensor(x).shape[-1]:  # type: ignore[union-attr]
        return node, x
    return (behind, source) if made.shape[-1] == tensor(node).shape[-1] else (node, x)  # type: ignore[union-attr, return-value]
