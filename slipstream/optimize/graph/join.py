# SPDX-License-Identifier: Apache-2.0
"""Linears that read one tensor become one call, whose result they are parts of: the input is converted once.

Only where each part is read by what takes strides as they are. A part that is kept, such as keys in a cache that the script is
given, would have to be copied out.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from slipstream.kernels.linear import PANEL
from slipstream.optimize.graph.nodes import name_of, tensor
from slipstream.optimize.graph.operators.attention import Attention
from slipstream.optimize.graph.operators.batched_matmul import BatchedMatmul
from slipstream.optimize.graph.operators.joint_linear import JointLinear
from slipstream.optimize.graph.operators.linear import Linear
from slipstream.optimize.graph.operators.operator import Operator
from slipstream.optimize.graph.precision import FOLLOWERS, PRODUCTS, VIEWS

_FOLDS = frozenset({"reshape", "view", "flatten", "unflatten"})
_ANY_STRIDES = FOLLOWERS | PRODUCTS | {"to", "pow"}


def join(graph: fx.Graph) -> int:
    """Rewrite in place, dtypes being chosen; returns how many operators there are fewer now."""
    groups: list[list[fx.Node]] = []
    for node in list(graph.nodes):
        if not isinstance(node.target, Operator):
            continue
        if groups and _belongs(node, groups[-1]):
            groups[-1].append(node)
        elif groups and groups[-1] and isinstance(node.target, Linear) and node.args[0] is groups[-1][0].args[0]:
            continue  # it reads the same, and may stand between two of a group
        else:
            groups.append([node] if _may_be_part(node) else [])
    return sum(_join(graph, group) for group in groups if len(group) > 1)


def _may_be_part(node: fx.Node) -> bool:
    """Whether it is a linear with nothing but a post-op behind it, whose result may have gaps between its rows."""
    if not isinstance(node.target, Linear):
        return False
    _, residual, multiplier, weight, bias, scale = node.args
    whole = node.target.rows is None and not node.target.transposed and node.target.width is None
    plain = residual is None and multiplier is None and scale is None and whole
    known = all(given is None or (isinstance(given, fx.Node) and given.op == "placeholder") for given in (weight, bias))
    return plain and known and tensor(weight).shape[0] % PANEL == 0 and _takes_strides(node, rows=True)  # type: ignore[union-attr]


def _belongs(node: fx.Node, group: list[fx.Node]) -> bool:
    if not group or not _may_be_part(node) or node.args[0] is not group[0].args[0]:
        return False
    return _likeness(node) == _likeness(group[0]) and all(node.args[3] is not other.args[3] for other in group)


def _likeness(node: fx.Node) -> Any:
    operator: Any = node.target
    return operator.product, operator.out, operator.post_op, tensor(node.args[3]).dtype  # type: ignore[union-attr]


def _takes_strides(node: fx.Node, *, rows: bool) -> bool:
    """Whether all readers take this as a view with gaps; ``rows`` while its last axis is still a whole row."""
    return all(_reads(user, node, rows) for user in node.users)


def _reads(user: fx.Node, node: fx.Node, rows: bool) -> bool:
    name = name_of(user)
    if isinstance(user.target, Attention | BatchedMatmul):
        return True
    if isinstance(user.target, Operator):
        return rows and isinstance(user.target, Linear)
    if name in _ANY_STRIDES:
        return True
    if name not in VIEWS:
        return False
    if name not in _FOLDS:
        return _takes_strides(user, rows=False)
    have, made = tensor(node), tensor(user)
    if have is None or made is None:
        return False
    if made.shape[-1] == have.shape[-1]:
        return _takes_strides(user, rows=rows)
    return made.shape[: have.dim() - 1] == have.shape[:-1] and _takes_strides(user, rows=False)


def _join(graph: fx.Graph, group: list[fx.Node]) -> int:
    first: Any = group[0]
    like = first.target
    operator = JointLinear(like.product, like.out, like.post_op, like.batch, len(group))
    weights, biases = [node.args[3] for node in group], [node.args[4] for node in group]
    with graph.inserting_before(first):
        joint = graph.call_function(operator, (first.args[0], None, *weights, *biases))
        start = 0
        for node in group:
            width = int(tensor(node.args[3]).shape[0])  # type: ignore[union-attr]
            part = graph.call_method("narrow", (joint, -1, start, width))
            part.meta = dict(node.meta)
            node.replace_all_uses_with(part)
            start += width
    for node in group:
        graph.erase_node(node)
    return len(group) - 1
