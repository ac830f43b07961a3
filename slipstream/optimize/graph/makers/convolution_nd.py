# SPDX-License-Identifier: Apache-2.0
"""Finds convolutions in one and three dimensions and transposed ones, with the norm and the activation behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.fuse import Row
from slipstream.optimize.graph.fuse import _take_norm as take_norm
from slipstream.optimize.graph.makers.replacing import are_given, computes, dtype_of, product_for, replace_row
from slipstream.optimize.graph.nodes import arguments, name_of, sizes_of, tensor
from slipstream.optimize.graph.operators.convolution_nd import Convolution1d, ConvolutionNd, Numbers
from slipstream.optimize.graph.operators.convolution_ways import Geometry
from slipstream.optimize.graph.operators.operator import Operator
from slipstream.optimize.pieces.followers import BY_POST_OP
from slipstream.optimize.pieces.linear import onednn_product

RANKS = {"conv1d": 1, "conv3d": 3, "conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


def fuse_convolutions(graph: fx.Graph, product: torch.dtype) -> int:
    """Rewrite in place, as `fuse` does for the rest. Returns the number of operators."""
    made = 0
    for node in list(graph.nodes):
        if not node._erased and node.op == "call_function" and name_of(node) in RANKS and not isinstance(node.target, Operator):
            made += _fuse(graph, node, product)
    return made


def _fuse(graph: fx.Graph, node: fx.Node, product: torch.dtype) -> int:
    given = arguments(node)
    if given is None or not are_given(given["weight"], given.get("bias")) or not computes(node, given["input"]):
        return 0
    numbers = _numbers(name_of(node), given)
    if numbers is None:
        return 0
    row = Row([node])
    take_norm(row)
    flat = name_of(node) == "conv1d"
    product = product_for(node, product) if flat else onednn_product(product_for(node, product))
    if flat:
        row.residual = row.take("add")
    row.take_activation(BY_POST_OP)
    out = dtype_of(row.last)
    operator: Operator
    if flat:
        operator = Convolution1d(product, out, _of_height_one(numbers), row.post_op, row.epsilon)
    else:
        operator = ConvolutionNd(product, out, numbers, row.post_op, row.epsilon)
    inputs = (given["input"], row.residual, given["weight"], given.get("bias"), *row.norm)
    return replace_row(graph, row.nodes, operator, inputs)


def _numbers(name: str, given: dict[str, Any]) -> Numbers | None:
    """The numbers, where they are plain ones and the input has a batch."""
    image, rank = tensor(given["input"]), RANKS[name]
    assert image is not None
    if image.dim() != rank + 2 or isinstance(given.get("padding"), str):
        return None
    size = sizes_of(given["input"])
    stride, padding = _each(given.get("stride") or 1, rank), _each(given.get("padding", 0), rank)
    behind = _each(given.get("output_padding", 0), rank) if name.startswith("conv_transpose") else None
    return Numbers(stride, padding, _each(given.get("dilation", 1), rank), given.get("groups", 1), size, behind)


def _each(numbers: Any, rank: int) -> tuple[int, ...]:
    """One number, or one or more in a row, for each dimension."""
    values = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return values * rank if len(values) == 1 else values


def _of_height_one(numbers: Numbers) -> Geometry:
    (stride,), (padding,), (dilation,) = numbers.stride, numbers.padding, numbers.dilation
    batch, channels, length = numbers.size
    return Geometry((1, stride), (0, padding), (1, dilation), numbers.groups, (batch, channels, 1, length))
