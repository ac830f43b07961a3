# SPDX-License-Identifier: Apache-2.0
"""Keeps bfloat16 between operations where the script computes in float32 and asked for bfloat16.

Our operators read either dtype and round nothing that stays in float32. Elementwise operations, moves and pools follow their
inputs, as torch's own promotion has it, so that a sum with a float32 tensor is float32. Whatever else there is (softmax,
norms by hand, powers, comparisons) gets float32 again. What the script is given is made in float32 to begin with.
"""

from __future__ import annotations

import torch
from torch import fx

from slipstream.optimize.graph.nodes import is_float32, name_of, tensor
from slipstream.optimize.graph.operators.batched_matmul import BatchedMatmul
from slipstream.optimize.graph.operators.operator import Operator, WeightOperator

FOLLOWERS = frozenset(
    {
        "add", "sub", "mul", "neg", "abs", "maximum", "minimum", "clamp", "relu", "relu6", "gelu", "silu", "sigmoid", "tanh",
        "hardswish", "hardsigmoid", "hardtanh", "quick_gelu", "leaky_relu", "elu", "mish", "cat", "concat", "stack", "where",
        "masked_fill", "pad", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d",
        "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "pixel_shuffle", "pixel_unshuffle",
        "mean", "clone",
    }
)  # fmt: skip
"""What is as good in bfloat16 as its inputs are, and promotes as torch does."""

VIEWS = frozenset(
    {
        "reshape", "view", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as",
        "getitem", "chunk", "split", "narrow", "select", "movedim", "swapaxes", "t", "unbind", "roll", "flip", "repeat",
        "unfold", "detach", "index_select", "gather", "take_along_dim", "tile",
    }
)  # fmt: skip
"""What only moves its first argument's elements."""

ASKED = frozenset({"size", "dim", "numel", "ndimension", "shape", "getattr"})
"""What asks for sizes, not values."""

PRODUCTS = frozenset({"matmul", "bmm"})
"""Two operands of one dtype."""


def keep_bfloat16(graph: fx.Graph) -> set[fx.Node]:
    """Choose dtypes and insert casts, in place; returns the nodes that are bfloat16 instead of float32 now."""
    low: set[fx.Node] = set()
    wanted: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        wanted[node] = _is_wanted_low(node, wanted)
    for node in list(graph.nodes):
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if _chooses(node):
            if is_float32(node) and wanted[node] and not _keeps_float32(node, low):
                node.target.out = torch.bfloat16
                low.add(node)
        elif name_of(node) in VIEWS:
            if node.args and node.args[0] in low:
                low.add(node)
        elif _follows(node):
            if _promotes_to_low(node, low):
                low.add(node)
        elif name_of(node) in PRODUCTS and is_float32(node) and any(source in low for source in node.all_input_nodes):
            _cast_inputs(graph, node, low, torch.bfloat16)
            low.add(node)
        elif name_of(node) not in ASKED:
            _cast_inputs(graph, node, low, torch.float32)
    return low


def _chooses(node: fx.Node) -> bool:
    """One of our operators that takes either dtype and gives either."""
    return isinstance(node.target, Operator) and not node.target.follows


def _follows(node: fx.Node) -> bool:
    return node.target.follows if isinstance(node.target, Operator) else name_of(node) in FOLLOWERS


def _is_wanted_low(node: fx.Node, wanted: dict[fx.Node, bool]) -> bool:
    """Whether somebody downstream gains from bfloat16, and the script itself is not given this very value."""
    if is_given_back(node):
        return False
    return any(
        _chooses(user)
        or name_of(user) in PRODUCTS
        or ((_follows(user) or name_of(user) in VIEWS) and wanted[user])
        for user in node.users
    )


def is_given_back(node: fx.Node) -> bool:
    """Whether the script is given this very memory, as it is or by views: it sees its layout, and may write into it."""
    return any(user.op == "output" or (name_of(user) in VIEWS and is_given_back(user)) for user in node.users)


def _keeps_float32(node: fx.Node, low: set[fx.Node]) -> bool:
    """A sum with a float32 tensor, such as the residual stream of a transformer, stays float32, as promotion has it.

    So does a product of two float32 tensors, which is multiplied as such.
    """
    if node.target.gives_float32:  # type: ignore[union-attr]
        return True
    if isinstance(node.target, BatchedMatmul):
        a, b, addend = node.args
        return (a not in low and b not in low) or (isinstance(addend, fx.Node) and is_float32(addend) and addend not in low)
    residual = node.args[1] if isinstance(node.target, WeightOperator) else None
    return isinstance(residual, fx.Node) and is_float32(residual) and residual not in low


def _promotes_to_low(node: fx.Node, low: set[fx.Node]) -> bool:
    """torch's promotion: the result is bfloat16 where each float32 tensor with axes has become bfloat16."""
    if not is_float32(node):
        return False
    floats = [source for source in node.all_input_nodes if is_float32(source) and tensor(source).dim() > 0]  # type: ignore[union-attr]
    return bool(floats) and all(source in low for source in floats)


def _cast_inputs(graph: fx.Graph, node: fx.Node, low: set[fx.Node], dtype: torch.dtype) -> None:
    """Give this node its float32 inputs in ``dtype``: back from bfloat16, or to it."""
    for source in node.all_input_nodes:
        if (source in low) if dtype is torch.float32 else (is_float32(source) and source not in low):
            with graph.inserting_before(node):
                cast = graph.call_method("to", (source, dtype))
            cast.meta = dict(source.meta)
            node.replace_input_with(source, cast)
