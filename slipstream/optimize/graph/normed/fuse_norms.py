# SPDX-License-Identifier: Apache-2.0
"""A norm that only one linear reads becomes part of it, as before the attention and the MLP of blocks that normalize first.

It saves a call, and what is normalized goes no further than the caches of the thread that multiplies it.
"""

from __future__ import annotations

from torch import fx

from slipstream.optimize.graph.normed.normed_linear import NormedLinear
from slipstream.optimize.graph.operators.joint_linear import JointLinear
from slipstream.optimize.graph.operators.linear import Linear
from slipstream.optimize.graph.operators.norm import LayerNorm, RmsNorm


def fuse_norms(graph: fx.Graph) -> int:
    """Rewrite in place, dtypes being chosen; returns how many operators there are fewer now."""
    fused = 0
    for node in list(graph.nodes):
        norm = node.args[0] if isinstance(node.target, Linear | JointLinear) else None
        if not isinstance(norm, fx.Node) or not isinstance(norm.target, LayerNorm | RmsNorm):
            continue
        x, residual, weight, *bias = norm.args
        if residual is not None or len(norm.users) > 1 or norm in node.args[1:]:
            continue
        node.args = (x, weight, *(bias or (None,)), *node.args[1:])
        node.target = NormedLinear(norm.target, node.target)
        graph.erase_node(norm)
        fused += 1
    return fused
