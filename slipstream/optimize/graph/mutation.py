# SPDX-License-Identifier: Apache-2.0
"""In-place operations become ones that return something new, or the graph is refused.

`x += y` on a fresh intermediate that nothing else looks at is the same as `x = x + y`. What writes into part of one, or into
one that is looked at through views as well, writes into a copy, and those are taken of the copy from then on. What writes
into an input or a parameter is left to the script itself.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.capturing.refusals import CaptureRefused
from slipstream.optimize.graph.nodes import arguments, name_of, tensor, value
from slipstream.optimize.graph.operators.constant import evaluate

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
        "conv_transpose3d", "clone", "neg", "abs", "mish", "bmm", "mm", "addmm", "baddbmm", "leaky_relu", "elu",
        "softplus", "log_softmax", "scatter", "scatter_add", "index_select", "gather", "cumsum", "sin", "cos", "minimum",
        "maximum", "eq", "ne", "lt", "le", "gt", "ge", "tensor", "eye", "linspace", "empty", "empty_like", "new_empty",
    }
) | frozenset(_METHODS.values())  # fmt: skip
"""Operations whose result is memory of its own; of any other the result is taken to be a view of the first argument."""

_FRESH_TUPLES = frozenset({"topk", "sort", "max", "min", "kthvalue", "mode", "median", "var_mean", "std_mean", "frexp"})
"""Operations whose results, where there are several, each have memory of their own."""

_VIEWING = frozenset(
    {
        "view", "view_as", "transpose", "permute", "unsqueeze", "squeeze", "expand", "expand_as", "select", "narrow", "chunk",
        "split", "unbind", "t", "movedim", "swapaxes", "unflatten", "diagonal", "detach",
    }
)  # fmt: skip
"""Operations whose result surely is a view of the first argument, as indexing by numbers and slices is."""

_BEYOND = frozenset({"set_", "resize_", "resize_as_", "requires_grad_", "share_memory_", "rename_", "apply_", "map_", "map2_"})
"""In-place methods that do more than write values."""

RANDOM = frozenset(
    {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal", "uniform_",
     "normal_", "bernoulli_", "exponential_", "random_", "rrelu", "gumbel_softmax", "randperm"}
)  # fmt: skip
"""What draws numbers: running it twice, as a check does, would move the script's generator."""

_DROPOUTS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"})
"""What draws numbers in training, and gives back its very input otherwise."""


def make_pure(graph: fx.Graph) -> None:
    """Replace in-place operations by pure ones. Raises CaptureRefused for a graph that stays impure."""
    for node in list(graph.nodes):
        if name_of(node) in _DROPOUTS:
            _pass_on(graph, node)
            continue
        if name_of(node) in RANDOM or _module_of_numpy(node) == "torch._numpy.random":  # dynamo's stand-ins draw from torch
            raise CaptureRefused(f"{name_of(node)} draws random numbers")
        if name_of(node) == "batch_norm" and _is_training(arguments(node) or {}):
            raise CaptureRefused("batch_norm changes its statistics")
        if "out" in node.kwargs:
            raise CaptureRefused(f"{name_of(node)} writes into a given tensor")
        if node.op == "call_function" and node.target in _OPERATORS:
            if tensor(node.args[0]) is None:
                node.target = _OPERATORS[node.target]  # numbers and sizes are never changed in place
            else:
                _make_node_pure(graph, node, lambda node: setattr(node, "target", _OPERATORS[node.target]))
        elif node.op == "call_method" and str(node.target) in _METHODS:
            _make_node_pure(graph, node, lambda node: setattr(node, "target", _METHODS[str(node.target)]))
        elif _is_in_place_function(node):
            _make_node_pure(graph, node, _drop_in_place_flag)
        elif _writes(node):
            if name_of(node) in _BEYOND:
                raise CaptureRefused(f"{name_of(node)} changes a tensor in place")
            _make_node_pure(graph, node, None)


def _module_of_numpy(node: fx.Node) -> str | None:
    """The module of dynamo's stand-in for a function of numpy."""
    return getattr(getattr(node.target, "f", None), "__module__", None)


def _pass_on(graph: fx.Graph, node: fx.Node) -> None:
    given: dict[str, Any] = arguments(node) or {}
    if given.get("training", True) is not False and given.get("p", 0.5) != 0:
        raise CaptureRefused("dropout is active")
    node.replace_all_uses_with(given["input"])
    graph.erase_node(node)


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


def _make_node_pure(graph: fx.Graph, node: fx.Node, turn: Callable[[fx.Node], None] | None) -> None:
    """``turn`` makes the node its twin that returns something new; None: it has none."""
    target = node.args[0] if node.args else None
    if not isinstance(target, fx.Node) or tensor(target) is None:
        raise CaptureRefused(f"{name_of(node)} changes what is no tensor, or is not named first")
    root = _memory_of(target)
    if root.op not in {"call_function", "call_method"}:
        raise CaptureRefused(f"{name_of(node)} changes an input or a parameter in place")
    order = {other: number for number, other in enumerate(graph.nodes)}
    seen = [
        other
        for other in graph.nodes
        if order[other] < order[node]
        and other is not target
        and _memory_of(other) is root
        and any(order[user] > order[node] for user in other.users)
    ]
    if turn is None or seen:
        _write_into_a_copy(graph, node, [target, *seen])
        return
    turn(node)
    result = _in_its_dtype(graph, node)
    target.replace_all_uses_with(result, delete_user_cb=lambda user: user not in (node, result) and order[user] > order[node])


def _in_its_dtype(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """What is written into keeps its dtype, where something new has the one that all operands are promoted to."""
    made = tensor(node.args[0])
    assert made is not None
    others = [other for other in map(tensor, node.all_input_nodes) if other is not None and other.is_floating_point()]
    promoted = next((dtype for other in others if (dtype := torch.result_type(made, other)) != made.dtype), None)
    if promoted is None:
        return node
    with graph.inserting_after(node):
        result = graph.call_method("to", (node, made.dtype))
    result.meta = dict(node.meta)
    node.meta = {**node.meta, "example_value": made.to(promoted)}
    node.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
    return result


class Written:
    """Takes a tensor, and what the part takes besides; the part writes into a copy of the tensor, which is returned."""

    _numbers = itertools.count()

    def __init__(self, part: fx.Graph) -> None:
        self.part = part
        # what torch.fx writes into the code that it makes of a graph
        self.__name__ = self.__qualname__ = f"written_{next(self._numbers)}"
        self.__module__ = "slipstream"

    def __call__(self, memory: torch.Tensor, *others: Any) -> torch.Tensor:
        copy = memory.clone()
        evaluate(self.part, (copy, *others))
        return copy


def _write_into_a_copy(graph: fx.Graph, node: fx.Node, seen: list[fx.Node]) -> None:
    """The first of those ``seen`` is written into; they, and what they are views of, are views of the copy from here on."""
    target, name = seen[0], name_of(node)
    root = _memory_of(target)
    order = {other: number for number, other in enumerate(graph.nodes)}
    for other in seen:
        _require_views(other, root, name)
    others = [source for source in node.all_input_nodes if source is not target and source is not root]
    above = [source for source in _chain(target, root) if source is not root]
    others += [source for view in above for source in view.all_input_nodes if source not in (*above, *others, root)]
    part = fx.Graph()
    copies = {root: part.placeholder("memory")} | {source: part.placeholder(f"other_{n}") for n, source in enumerate(others)}
    for view in (*above, node):
        copies[view] = part.node_copy(view, copies.__getitem__)
    part.output(None)
    with graph.inserting_before(node):
        copy = graph.call_function(Written(part), (root, *others))
        copy.meta = dict(root.meta)
        anew = {root: copy}
        for other in sorted(seen, key=order.__getitem__):
            for view in _chain(other, root):
                if view not in anew:
                    anew[view] = graph.node_copy(view, lambda source: anew.get(source, source))
    for old, new in anew.items():
        old.replace_all_uses_with(new, delete_user_cb=lambda user: order.get(user, -1) > order[node])
    node.replace_all_uses_with(anew[target])
    graph.erase_node(node)


def _require_views(node: fx.Node, root: fx.Node, name: str) -> None:
    if tensor(root) is None or not all(view is root or _is_view(view) for view in _chain(node, root)):
        raise CaptureRefused(f"{name} changes a tensor in place of which it is not sure what else is seen")


def _chain(node: fx.Node, root: fx.Node) -> list[fx.Node]:
    """From the one that made the memory to this node, in order."""
    found = [node]
    while found[-1] is not root:
        found.append(_base_of(found[-1]) or root)
    return found[::-1]


def _is_view(node: fx.Node) -> bool:
    if name_of(node) != "getitem":
        return name_of(node) in _VIEWING
    if isinstance(value(node.args[0]), (tuple, list)):
        return True  # one of several views
    index = node.args[1]
    parts = index if isinstance(index, tuple) else (index,)
    return all(_is_basic(part) for part in parts)


def _is_basic(index: Any) -> bool:
    """Whether indexing by this is a view: by numbers, slices, None, ``...``."""
    if isinstance(index, fx.Node):
        return isinstance(value(index), (int, torch.SymInt)) and not isinstance(value(index), bool)
    return index is None or index is ... or isinstance(index, slice) or type(index) is int


def _memory_of(node: fx.Node) -> fx.Node:
    """The node that made the memory in which this one's value lies, as far as can be told: rather too far than not."""
    while (base := _base_of(node)) is not None:
        node = base
    return node


def _base_of(node: fx.Node) -> fx.Node | None:
    """In whose memory a value may lie; None for one with memory of its own."""
    if node.op not in ("call_function", "call_method") or name_of(node) in _FRESH or isinstance(node.target, Written):
        return None
    of = node.args[0] if name_of(node) == "getitem" else None
    if name_of(of) in _FRESH_TUPLES and tensor(of) is None:
        return None
    return next((source for source in node.all_input_nodes if _has_memory(value(source))), None)


def _has_memory(made: Any) -> bool:
    return isinstance(made, torch.Tensor) or (isinstance(made, (tuple, list)) and any(_has_memory(part) for part in made))
