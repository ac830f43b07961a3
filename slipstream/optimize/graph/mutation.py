# SPDX-License-Identifier: Apache-2.0
"""In-place operations become ones that return something new, or the graph is refused.

`x += y` on a fresh intermediate that nothing else looks at is the same as `x = x + y`. What writes into an input, a
parameter, a view that is still looked at through its base, or into part of a tensor is left to the script itself.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.capture import CaptureRefused
from slipstream.optimize.graph.nodes import arguments, name_of, tensor

_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv, operator.imod: operator.mod,
    operator.ipow: operator.pow, operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor,
    operator.imatmul: operator.matmul,
}  # fmt: skip

_METHODS = {
    name: name.removesuffix("_")
    for name in (
        "add_", "sub_", "mul_", "div_", "pow_", "relu_", "sigmoid_", "tanh_", "clamp_", "clamp_min_", "clamp_max_", "neg_",
        "exp_", "sqrt_", "rsqrt_", "abs_", "masked_fill_", "lerp_", "addcmul_", "addcdiv_", "round_", "floor_", "ceil_",
        "reciprocal_", "logical_not_", "logical_and_", "logical_or_", "erf_", "square_", "log_", "softmax_", "tril_", "triu_",
    )
}  # fmt: skip
"""In-place method → its twin that returns something new."""

_FRESH = frozenset(
    {
        "linear", "conv1d", "conv2d", "conv3d", "batch_norm", "layer_norm", "rms_norm", "group_norm", "add", "sub", "mul",
        "div", "gelu", "relu", "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "softmax", "matmul",
        "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "embedding", "cat", "stack", "mean", "sum", "interpolate", "exp",
        "sqrt", "rsqrt", "pow", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
        "new_full", "arange", "where", "masked_fill", "scaled_dot_product_attention", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "clone", "neg", "abs",
        "mish", "bmm",
    }
)  # fmt: skip
"""Operations whose result is memory of its own; of any other the result is taken to be a view of the first argument."""

RANDOM = frozenset(
    {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal", "uniform_",
     "normal_", "bernoulli_", "exponential_", "random_", "rrelu", "gumbel_softmax", "randperm"}
)  # fmt: skip
"""What draws numbers: running it twice, as a check does, would move the script's generator."""


def make_pure(graph: fx.Graph) -> None:
    """Replace in-place operations by pure ones. Raises CaptureRefused for a graph that stays impure."""
    for node in list(graph.nodes):
        if name_of(node) in RANDOM:
            raise CaptureRefused(f"{name_of(node)} draws random numbers")
        if name_of(node) == "batch_norm" and _is_training(arguments(node) or {}):
            raise CaptureRefused("batch_norm changes its statistics")
        if "out" in node.kwargs:
            raise CaptureRefused(f"{name_of(node)} writes into a given tensor")
        if node.op == "call_function" and node.target in _OPERATORS:
            node.target = _OPERATORS[node.target]
            _take_over(graph, node)
        elif node.op == "call_method" and str(node.target) in _METHODS:
            node.target = _METHODS[str(node.target)]
            _take_over(graph, node)
        elif _is_in_place_function(node):
            _drop_in_place_flag(node)
            _take_over(graph, node)
        elif _writes(node):
            raise CaptureRefused(f"{name_of(node)} changes a tensor in place")


def _is_training(given: dict[str, Any]) -> bool:
    return given.get("training", False) is not False and given.get("running_mean") is not None


def _is_in_place_function(node: fx.Node) -> bool:
    return node.op == "call_function" and (node.kwargs.get("inplace") is True or _positional_flag(node) is not None)


def _positional_flag(node: fx.Node) -> int | None:
    """Where among the positional arguments an ``inplace`` of True stands, for functions that have one."""
    code = getattr(node.target, "__code__", None)
    if code is None or "inplace" not in code.co_varnames[: code.co_argcount]:
        return None
    position = code.co_varnames.index("inplace")
    return position if position < len(node.args) and node.args[position] is True else None


def _drop_in_place_flag(node: fx.Node) -> None:
    position = _positional_flag(node)
    if position is not None:
        node.args = (*node.args[:position], False, *node.args[position + 1 :])
    node.kwargs = {**node.kwargs, "inplace": False} if "inplace" in node.kwargs else dict(node.kwargs)


def _writes(node: fx.Node) -> bool:
    name = name_of(node)
    if node.op == "call_function" and node.target is operator.setitem:
        return True
    in_place = name.endswith("_") and not name.endswith("__") and name not in ("and_", "or_", "not_", "is_")
    of_torch = node.op == "call_method" or getattr(node.target, "__module__", "").startswith(("torch", "_VariableFunctions"))
    builtin = isinstance(node.target, type(torch.relu_))
    return in_place and (of_torch or builtin)


def _take_over(graph: fx.Graph, node: fx.Node) -> None:
    """From here on the new value stands for the one that would have been written into."""
    target = node.args[0]
    if not isinstance(target, fx.Node) or tensor(target) is None:
        return  # numbers and sizes are never changed in place
    order = {other: number for number, other in enumerate(graph.nodes)}
    root = _memory_of(target)
    if root.op not in {"call_function", "call_method"}:
        raise CaptureRefused(f"{name_of(node)} changes an input or a parameter in place")
    for other in graph.nodes:
        if other is target or other is node or other.op == "output" or _memory_of(other) is not root:
            continue
        if any(order[user] > order[node] for user in other.users):
            raise CaptureRefused(f"{name_of(node)} changes a tensor in place that is also seen through a view")
    target.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and order[user] > order[node])


def _memory_of(node: fx.Node) -> fx.Node:
    """The node that made the memory in which this one's value lies, as far as can be told: rather too far than not."""
    while node.op in ("call_function", "call_method") and name_of(node) not in _FRESH:
        base = next((argument for argument in node.all_input_nodes if tensor(argument) is not None), None)
        if base is None:
            break
        node = base
    return node
