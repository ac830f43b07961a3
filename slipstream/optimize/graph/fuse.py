# SPDX-License-Identifier: Apache-2.0
"""Replaces rows of operations by one operator each: conv, norm, residual, activation; linear, activation, product, sum; norms.

A row ends where its value has another reader. The operator stands where the row's last operation stood, when all that it
reads is there.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from slipstream.kernels.post_op import POST_OPS
from slipstream.optimize.graph.makers.attention import fuse_attention
from slipstream.optimize.graph.makers.batched_matmul import fuse_matmul
from slipstream.optimize.graph.makers.norm import fuse_layer_norm, fuse_rms_norm
from slipstream.optimize.graph.makers.recurrent import fuse_recurrent
from slipstream.optimize.graph.makers.replacing import (
    are_given,
    computes,
    dtype_of,
    other_operand,
    product_for,
    replace_row,
)
from slipstream.optimize.graph.nodes import arguments, name_of, only_user, sizes_of, tensor
from slipstream.optimize.graph.operators.convolution import Convolution
from slipstream.optimize.graph.operators.convolution_ways import Geometry
from slipstream.optimize.graph.operators.linear import Linear
from slipstream.optimize.graph.operators.operator import Operator
from slipstream.optimize.graph.operators.pooling import GlobalAverage, MaxPool
from slipstream.optimize.pieces.followers import BY_POST_OP

_ACTIVATIONS = {"relu", "relu6", "silu", "tanh", "sigmoid", "hardswish", "hardsigmoid", "quick_gelu"}


@dataclass
class Row:
    """Operations that become one; ``post_op``, ``residual``, ``multiplier`` are what was found behind the first."""

    nodes: list[fx.Node]
    post_op: str = "none"
    residual: fx.Node | None = None
    multiplier: fx.Node | None = None
    norm: list[Any] = field(default_factory=list)
    epsilon: float | None = None

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    def next(self) -> fx.Node | None:
        return only_user(self.last)

    def take_activation(self, known: Collection[str] = POST_OPS) -> None:
        user = self.next()
        found = None if user is None else activation_of(user)
        if user is not None and found in known and found is not None and self.post_op == "none":
            self.nodes.append(user)
            self.post_op = found

    def take(self, name: str, *, promoted: bool = False) -> fx.Node | None:
        """The other operand of a following ``add`` or ``mul`` of two like tensors, which joins the row.

        ``promoted``: also where one is bfloat16 and one float32, as within autocast.
        """
        user = self.next()
        if user is None or name_of(user) != name:
            return None
        other = other_operand(user, self.last, promoted=promoted)
        if other is not None:
            self.nodes.append(user)
        return other


    def take_scale(self) -> fx.Node | None:
        """The parameter [N] of a following product with the last axis, which joins the row."""
        user, made = self.next(), tensor(self.last)
        given = arguments(user) if user is not None and name_of(user) == "mul" else None
        if user is None or given is None or made is None:
            return None
        other = given["other"] if given["input"] is self.last else given["input"]
        factor = tensor(other)
        if factor is None or not are_given(other) or factor.dtype != made.dtype or factor.shape != made.shape[-1:]:
            return None
        self.nodes.append(user)
        return other if isinstance(other, fx.Node) else None

    def take_permuted_sum(self, graph: fx.Graph) -> tuple[int, ...] | None:
        """A permutation and the sum behind it, by adding what is permuted back; returns the permutation."""
        moved = self.next()
        order = () if moved is None or name_of(moved) != "permute" else _order_of(moved)
        added = only_user(moved) if moved is not None and order else None
        if moved is None or added is None or name_of(added) != "add":
            return None
        other = other_operand(added, moved)
        if other is None:
            return None
        with graph.inserting_before(added):
            back = graph.call_method("permute", (other, *sorted(range(len(order)), key=order.__getitem__)))
        back.meta = dict(self.last.meta)
        self.residual = back
        self.nodes += [moved, added]
        return order


def fuse(graph: fx.Graph, product: torch.dtype) -> int:
    """Rewrite in place; ``product`` is what float32 weights are multiplied in. Returns the number of operators."""
    made = 0
    for node in list(graph.nodes):
        if node._erased:
            continue
        found = _MAKERS.get(name_of(node)) if node.op in ("call_function", "call_method") else None
        if found is not None and not isinstance(node.target, Operator):
            made += found(graph, node, product)
    graph.eliminate_dead_code()
    return made


def activation_of(node: fx.Node) -> str | None:
    """The post-op that a node is, if it is one."""
    name = name_of(node)
    if name in _ACTIVATIONS:
        return name
    given = arguments(node)
    if given is None:
        return None
    if name == "gelu":
        return "gelu_tanh" if given.get("approximate", "none") == "tanh" else "gelu_erf"
    if name == "hardtanh" and (given.get("min_val", -1.0), given.get("max_val", 1.0)) == (0.0, 6.0):
        return "relu6"
    return None


def _fuse_linear(graph: fx.Graph, node: fx.Node, product: torch.dtype) -> int:
    given = arguments(node)
    if given is None or not are_given(given["weight"], given.get("bias")) or not computes(node, given["input"]):
        return 0
    x, weight = tensor(given["input"]), tensor(given["weight"])
    folded = name_of(node) == "linear_folded"
    assert x is not None and weight is not None
    if x.dim() < 1 or (weight.dim() != 2 and not folded):
        return 0
    row = Row([node])
    scale = row.take_scale() if given.get("rows") is None else None
    if scale is None:
        row.take_activation()
        row.multiplier = row.take("mul")
    row.residual = row.take("add", promoted=True)
    order = None if row.residual is not None else row.take_permuted_sum(graph)
    batch = math.prod(sizes_of(given["input"])[:-1])
    operator = Linear(
        product_for(node, product), dtype_of(row.last), row.post_op, batch, given.get("rows"),
        transposed=given.get("transposed", name_of(node) == "linear_transposed"), width=int(x.shape[-1]) if folded else None,
    )  # fmt: skip
    inputs = (given["input"], row.residual, row.multiplier, given["weight"], given.get("bias"), scale)
    return replace_row(graph, row.nodes, operator, inputs, order)


def _fuse_convolution(graph: fx.Graph, node: fx.Node, product: torch.dtype) -> int:
    given = arguments(node)
    if given is None or not are_given(given["weight"], given.get("bias")) or not computes(node, given["input"]):
        return 0
    geometry = _geometry(given)
    if geometry is None:
        return 0
    source, geometry = _with_zeros_around(node, given, geometry)
    row = Row([node])
    _take_norm(row)
    row.residual = row.take("add")
    row.take_activation(BY_POST_OP)
    operator = Convolution(product_for(node, product), dtype_of(row.last), geometry, row.post_op, row.epsilon)
    inputs = (source, row.residual, given["weight"], given.get("bias"), *row.norm)
    return replace_row(graph, row.nodes, operator, inputs)  # a pad that nobody reads any more goes with the dead code


def _geometry(given: dict[str, Any]) -> Geometry | None:
    """The numbers, where the image has four axes of known size, and as much padding in front as behind."""
    image, weight = tensor(given["input"]), tensor(given["weight"])
    assert image is not None and weight is not None
    if image.dim() != 4:
        return None
    size = sizes_of(given["input"])
    stride, dilation, padding = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1)), given.get("padding", 0)
    if padding == "same":
        spans = [step * (taps - 1) for step, taps in zip(dilation, weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):
            return None
        padding = [span // 2 for span in spans]
    padding = (0, 0) if padding == "valid" else _pair(padding)
    return Geometry(stride, padding, dilation, given.get("groups", 1), size)


def _with_zeros_around(node: fx.Node, given: dict[str, Any], geometry: Geometry) -> tuple[fx.Node, Geometry]:
    """The image before zeros are put around it, where this convolution alone reads that, and the padding that does it.

    Padding behind may be another than in front, as TensorFlow's models have it.
    """
    image: fx.Node = given["input"]
    pad = arguments(image) if name_of(image) == "pad" and only_user(image) is node else None
    if pad is None or pad.get("mode", "constant") != "constant" or pad.get("value"):
        return image, geometry
    sizes = pad["pad"]
    if len(sizes) != 4 or not all(isinstance(size, int) and size >= 0 for size in sizes):
        return image, geometry
    left, right, top, bottom = sizes
    before = geometry.padding
    padding, behind = (before[0] + top, before[1] + left), (before[0] + bottom, before[1] + right)
    batch, channels, height, width = geometry.size
    size = batch, channels, height - top - bottom, width - left - right
    end_padding = None if padding == behind else behind
    return pad["input"], replace(geometry, padding=padding, size=size, end_padding=end_padding)


def _take_norm(row: Row) -> None:
    user = row.next()
    if user is None or user.target is not F.batch_norm:
        return
    given = arguments(user)
    if given is None or given.get("training", False) is not False or given["input"] is not row.last:
        return
    norm = [given.get("weight"), given.get("bias"), given.get("running_mean"), given.get("running_var")]
    epsilon = given.get("eps", 1e-5)
    if norm[2] is not None and norm[3] is not None and are_given(*norm) and isinstance(epsilon, float):
        row.nodes.append(user)
        row.norm, row.epsilon = norm, epsilon


def _fuse_max_pool(graph: fx.Graph, node: fx.Node, _: torch.dtype) -> int:
    given = arguments(node)
    if given is None or given.get("return_indices") or not computes(node, given["input"]) or tensor(node).dim() != 4:  # type: ignore[union-attr]
        return 0
    window = _pair(given["kernel_size"])
    stride = _pair(given.get("stride") or window)
    numbers = window, stride, _pair(given.get("padding", 0)), _pair(given.get("dilation", 1))
    return replace_row(graph, [node], MaxPool(dtype_of(node), *numbers, bool(given.get("ceil_mode"))), (given["input"],))


def _fuse_average(graph: fx.Graph, node: fx.Node, _: torch.dtype) -> int:
    given = arguments(node)
    if given is None or not computes(node, given["input"]) or tensor(node).dim() != 4:  # type: ignore[union-attr]
        return 0
    if given["output_size"] not in (1, (1, 1), [1, 1]):
        return 0
    return replace_row(graph, [node], GlobalAverage(dtype_of(node)), (given["input"],))


def _fuse_mean(graph: fx.Graph, node: fx.Node, _: torch.dtype) -> int:
    """The mean over height and width, with and without those axes in the result."""
    given = arguments(node)
    if given is None or given.keys() - {"input", "dim", "keepdim"} or not computes(node, given["input"]):
        return 0
    made, axes = tensor(node), given.get("dim")
    if tensor(given["input"]).dim() != 4 or not isinstance(axes, (tuple, list)):  # type: ignore[union-attr]
        return 0
    if sorted(axis % 4 for axis in axes if isinstance(axis, int)) != [2, 3] or len(axes) != 2:
        return 0
    if given.get("keepdim", False):
        return replace_row(graph, [node], GlobalAverage(dtype_of(node)), (given["input"],))
    assert made is not None
    with graph.inserting_before(node):
        pooled = graph.call_function(GlobalAverage(dtype_of(node)), (given["input"],))
        pooled.meta = {"example_value": made[..., None, None]}
        flat = graph.call_method("flatten", (pooled, 1))
    flat.meta = dict(node.meta)
    node.replace_all_uses_with(flat)
    graph.erase_node(node)
    return 1


def _pair(numbers: Any) -> tuple[int, int]:
    """One number, or one or two in a row, for two dimensions."""
    if isinstance(numbers, int):
        return numbers, numbers
    return (numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _order_of(permute: fx.Node) -> tuple[int, ...]:
    """Its axes as non-negative numbers."""
    axes = permute.args[1] if len(permute.args) == 2 and isinstance(permute.args[1], (tuple, list)) else permute.args[1:]
    numbers = tuple(axis for axis in axes if isinstance(axis, int))
    return tuple(axis % len(axes) for axis in numbers) if len(numbers) == len(axes) else ()


_MAKERS = {
    "linear": _fuse_linear,
    "linear_rows": _fuse_linear,
    "linear_transposed": _fuse_linear,
    "linear_folded": _fuse_linear,
    "conv2d": _fuse_convolution,
    "layer_norm": fuse_layer_norm,
    "rms_norm": fuse_rms_norm,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), fuse_recurrent),
    "scaled_dot_product_attention": fuse_attention,
    **dict.fromkeys(("matmul", "bmm"), fuse_matmul),
    "max_pool2d": _fuse_max_pool,
    "adaptive_avg_pool2d": _fuse_average,
    "mean": _fuse_mean,
}
