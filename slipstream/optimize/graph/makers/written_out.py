# SPDX-License-Identifier: Apache-2.0
"""Finds functions that models write out as several operations, and puts torch's one function for them there.

RMS norms as transformers has them, and a linear whose result is cut into a gate and what it gates, which becomes two linears on
parts of the weight, so that activation and product are fused with them. All in float32 or bfloat16 throughout: where dtypes
change on the way, roundings are part of what the script says. Activations are `gates`'.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from slipstream.kernels.linear import PANEL
from slipstream.optimize.graph.makers.replacing import are_given, replace_by
from slipstream.optimize.graph.nodes import arguments, name_of, only_user, tensor

_GATES = frozenset({"gelu", "silu", "relu", "sigmoid", "tanh"})


def read_written_out(graph: fx.Graph) -> None:
    """Rewrite in place."""
    readers = {"rsqrt": _read_rms_norm, "chunk": _read_gate}
    for node in list(graph.nodes):
        reader = readers.get(name_of(node))
        if reader is not None and not node._erased:
            reader(graph, node)
    graph.eliminate_dead_code()


def linear_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rows: tuple[int, int]) -> torch.Tensor:
    """x · W[rows]ᵀ + b[rows]."""
    start, stop = rows
    return F.linear(x, weight[start:stop], None if bias is None else bias[start:stop])


linear_rows.__module__ = "slipstream"


def _read_rms_norm(graph: fx.Graph, node: fx.Node) -> None:
    """weight * (x * rsqrt(mean(x ** 2, -1, keepdim=True) + epsilon))."""
    epsilon, mean = _number_and(next(iter(node.args), None), "add")
    given = arguments(mean) if name_of(mean) == "mean" and epsilon is not None else None
    if given is None or given.get("dim") not in (-1, (-1,), [-1]) or given.get("keepdim") is not True:
        return
    x = _squared(given["input"])
    scaled = only_user(node)
    if x is None or scaled is None or name_of(scaled) != "mul" or set(scaled.all_input_nodes) != {x, node}:
        return
    weighted = only_user(scaled)
    factors = () if weighted is None or name_of(weighted) != "mul" else weighted.all_input_nodes
    weight = next((factor for factor in factors if factor is not scaled), None)
    have, made = tensor(x), tensor(weight)
    if weighted is None or have is None or made is None or not are_given(weight):
        return
    if made.shape != have.shape[-1:] or made.dtype != have.dtype or _dtypes(scaled, weighted, mean) != {have.dtype}:
        return
    replace_by(graph, weighted, F.rms_norm, (x, tuple(made.shape), weight, epsilon))


def _squared(node: Any) -> fx.Node | None:
    """x of x ** 2 or x * x."""
    given = arguments(node)
    if given is None:
        return None
    is_square = name_of(node) == "pow" and given["exponent"] == 2
    is_product = name_of(node) == "mul" and given["input"] is given["other"]
    return given["input"] if is_square or is_product else None


def _read_gate(graph: fx.Graph, node: fx.Node) -> None:
    """first, second = linear(x).chunk(2, -1), one of which goes through an activation and is multiplied by the other."""
    given = arguments(node)
    source: Any = given["input"] if given is not None else None
    found = arguments(source) if name_of(source) == "linear" and only_user(source) is node else None
    have, weight = tensor(source), None if found is None else tensor(found["weight"])
    if given is None or found is None or have is None or weight is None or not are_given(found["weight"], found.get("bias")):
        return
    halves: dict[Any, fx.Node] = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    if given["chunks"] != 2 or given.get("dim", 0) not in (-1, have.dim() - 1) or len(node.users) != 2 or set(halves) != {0, 1}:
        return
    if weight.shape[0] % (2 * PANEL) or not (_gates(halves[0], halves[1]) or _gates(halves[1], halves[0])):
        return
    half_rows = weight.shape[0] // 2
    for number, half in halves.items():
        rows = number * half_rows, (number + 1) * half_rows
        with graph.inserting_before(source):
            part = graph.call_function(linear_rows, (found["input"], found["weight"], found.get("bias"), rows))
        part.meta = dict(half.meta)
        half.replace_all_uses_with(part)
        graph.erase_node(half)


def _gates(gate: fx.Node, other: fx.Node) -> bool:
    activation, product = only_user(gate), only_user(other)
    if activation is None or product is None or name_of(activation) not in _GATES or name_of(product) != "mul":
        return False
    return only_user(activation) is product


def _number_and(node: Any, name: str) -> tuple[float | None, Any]:
    """The number and the tensor of a sum or product of the two; (None, None) for anything else."""
    given = arguments(node) if name_of(node) == name else None
    if given is None or given.get("alpha", 1) != 1:
        return None, None
    for number, other in ((given["input"], given["other"]), (given["other"], given["input"])):
        if isinstance(number, float | int) and isinstance(other, fx.Node):
            return number, other
    return None, None


def _dtypes(*nodes: Any) -> set[torch.dtype | None]:
    return {None if (made := tensor(node)) is None else made.dtype for node in nodes}
