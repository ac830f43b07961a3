# SPDX-License-Identifier: Apache-2.0
"""1 × 1 convolutions become one operator with a depthwise convolution beside them, or with the factors that scale their image's
channels, where memory is what bounds them.

Dtypes have been chosen, and each convolution has its norm, residual and activation.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from slipstream.optimize.graph.nodes import name_of, only_user, operands_of, sizes_of, tensor
from slipstream.optimize.graph.operators.convolution import Convolution, way_for
from slipstream.optimize.graph.operators.convolution_ways import Depthwise, Pointwise
from slipstream.optimize.graph.operators.gated_pointwise import GatedPointwise
from slipstream.optimize.graph.operators.inverted_residual import InvertedResidual

BETWEEN = 2 << 20
"""Bytes between the convolutions from which they leave the second-level cache, and one pass pays."""

WEIGHTS = 1280 << 10
"""Bytes of weights up to which reading them again for each block of rows costs less than it brings."""


def fuse_inverted_residuals(graph: fx.Graph) -> int:
    """Rewrite in place; returns how many operators there are fewer now."""
    return sum(_fuse(graph, node) for node in list(graph.nodes) if not node._erased and _is(node, Depthwise))


def _is(node: Any, way: type) -> bool:
    """Whether it is a convolution that is served in this way, of all pixels."""
    if not isinstance(node, fx.Node) or type(node.target) is not Convolution:
        return False
    weight = tensor(node.args[2])
    assert weight is not None
    geometry = node.target.geometry
    if way is Pointwise and geometry.stride != (1, 1):
        return False
    return way_for(weight, geometry, node.target.product) is way


def _fuse(graph: fx.Graph, middle: Any) -> int:
    if middle.args[1] is not None:
        return 0
    source: Any = middle.args[0]
    behind: Any = only_user(middle)
    first = source if _is(source, Pointwise) and source.args[1] is None and only_user(source) is middle else None
    last = behind if _is(behind, Pointwise) and behind.args[0] is middle else None
    row: list[Any] = [node for node in (first, middle, last) if node is not None]
    if len(row) == 1 or not _pays(row):
        return 0
    parts = tuple(None if node is None else (node.target, len(node.args) - 2) for node in (first, middle, last))
    weights = [weight for node in row for weight in node.args[2:]]
    with graph.inserting_before(row[-1]):
        fused = graph.call_function(InvertedResidual(parts), (row[0].args[0], row[-1].args[1], *weights))
    fused.meta = dict(row[-1].meta)
    row[-1].replace_all_uses_with(fused)
    for node in reversed(row):
        graph.erase_node(node)
    return len(row) - 1


def _pays(row: list[Any]) -> bool:
    between = sum(math.prod(sizes_of(node)) * int(node.target.out.itemsize) for node in row[:-1])
    return between >= BETWEEN and _weight_bytes(*row) <= WEIGHTS


def _weight_bytes(*row: Any) -> int:
    return sum(math.prod(sizes_of(node.args[2])) * int(node.target.product.itemsize) for node in row)


def fuse_channel_gates(graph: fx.Graph) -> None:
    """Rewrite in place: 1 × 1 convolutions take the factors of their image's channels along."""
    for node in list(graph.nodes):
        if _is(node, Pointwise):
            _fuse_gate(graph, node)


def _fuse_gate(graph: fx.Graph, node: Any) -> None:
    product: Any = node.args[0]
    operands = operands_of(product) if name_of(product) == "mul" and only_user(product) is node else None
    if operands is None or _weight_bytes(node) > WEIGHTS:
        return
    image, gate = operands if _is_gate(operands[1], operands[0]) else operands[::-1]
    if not _is_gate(gate, image):
        return
    with graph.inserting_before(node):
        fused = graph.call_function(GatedPointwise(node.target), (image, node.args[1], gate, *node.args[2:]))
    fused.meta = dict(node.meta)
    node.replace_all_uses_with(fused)
    graph.erase_node(node)
    graph.erase_node(product)


def _is_gate(gate: Any, image: Any) -> bool:
    """Whether it is a factor for each channel of each image, [N, C, 1, 1], of more than one pixel."""
    if tensor(gate) is None or tensor(image) is None:
        return False
    (factors, sizes) = sizes_of(gate), sizes_of(image)
    return len(sizes) == 4 and factors == (*sizes[:2], 1, 1) and sizes[2] * sizes[3] > 1
