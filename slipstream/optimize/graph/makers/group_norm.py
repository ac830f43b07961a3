# SPDX-License-Identifier: Apache-2.0
"""Group norms, and instance norms by a sample's own statistics, become one operator with the activation behind them."""

from __future__ import annotations

from torch import fx

from slipstream.optimize.graph.fuse import Row
from slipstream.optimize.graph.makers.replacing import are_given, computes, dtype_of, replace_row
from slipstream.optimize.graph.nodes import arguments, name_of, tensor
from slipstream.optimize.graph.operators.norm import GroupNorm
from slipstream.optimize.graph.operators.operator import Operator


def fuse_group_norms(graph: fx.Graph) -> int:
    """Rewrite in place, as `fuse` does for the rest. Returns the number of operators."""
    made = 0
    for node in list(graph.nodes):
        if name_of(node) in ("group_norm", "instance_norm") and not isinstance(node.target, Operator):
            made += _fuse(graph, node)
    return made


def _fuse(graph: fx.Graph, node: fx.Node) -> int:
    given = arguments(node)
    if given is None or not computes(node, given["input"]) or not are_given(given.get("weight"), given.get("bias")):
        return 0
    if given.get("use_input_stats", True) is not True or given.get("running_mean") is not None:
        return 0
    made, epsilon = tensor(node), given.get("eps", 1e-5)
    assert made is not None
    groups = given.get("num_groups", made.shape[1])
    if not isinstance(groups, int) or not isinstance(epsilon, float):
        return 0
    row = Row([node])
    row.take_activation()
    inputs = given["input"], given.get("weight"), given.get("bias")
    return replace_row(graph, row.nodes, GroupNorm(dtype_of(row.last), groups, epsilon, row.post_op), inputs)
