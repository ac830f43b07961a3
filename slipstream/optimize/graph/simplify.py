# SPDX-License-Identifier: Apache-2.0
"""Drops what computes nothing: casts to the dtype that is there, copies into another layout.

Layouts of intermediates are ours to choose; `results` gives outputs the strides that the script expects. A copy whose layout
the script is given stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.capturing.refusals import CaptureRefused
from slipstream.optimize.graph.nodes import name_of, strides_of, tensor
from slipstream.optimize.graph.precision import is_given_back

_CASTS = {"to", "float", "type_as", "type", "contiguous"}


def simplify(graph: fx.Graph) -> None:
    """Rewrite in place. Raises CaptureRefused where the graph depends on strides."""
    for node in list(graph.nodes):
        name = name_of(node)
        if name in ("as_strided", "stride", "data_ptr", "storage_offset", "untyped_storage", "set_"):
            raise CaptureRefused(f"it asks for memory layout: {name}")
        if name in _CASTS and node.op == "call_method":
            _simplify_cast(graph, node)
        elif name == "view" and node.op == "call_method" and not _is_bit_cast(node):
            node.target = "reshape"  # a view of ours may lie in another layout than the script's
    graph.eliminate_dead_code()


def _is_bit_cast(node: fx.Node) -> bool:
    return any(isinstance(argument, torch.dtype) for argument in (*node.args, *node.kwargs.values()))


def _simplify_cast(graph: fx.Graph, node: fx.Node) -> None:
    source, made = tensor(node.args[0]), tensor(node)
    if source is None or made is None:
        return
    if made.dtype == source.dtype:
        if made.device == source.device and not node.kwargs.get("copy") and not _lays_out_a_result(node, source, made):
            _pass_on(graph, node, node.args[0])
    elif name_of(node) in ("type_as", "to", "float"):  # a tensor to take the dtype from may have another by now
        node.target, node.args, node.kwargs = "to", (node.args[0], made.dtype), {}


def _lays_out_a_result(node: fx.Node, source: torch.Tensor, made: torch.Tensor) -> bool:
    """Whether it puts into another layout what the script is given, as it is or by views."""
    return strides_of(source) != strides_of(made) and is_given_back(node)


def _pass_on(graph: fx.Graph, node: fx.Node, source: Any) -> None:
    assert isinstance(source, fx.Node), "the first argument of these is a tensor"
    node.replace_all_uses_with(source)
    graph.erase_node(node)
