# SPDX-License-Identifier: Apache-2.0
"""Finds GELU, its quick form and SiLU where scripts spell them out, in any way, and puts one function for them there.

What tanh, erf or sigmoid is taken of, such as √(2/π) · (x + 0.044715 x³), is read as a polynomial of x, however it is
written. In bfloat16 the roundings between the steps go.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import fx

from slipstream.kernels.post_op import quick_gelu
from slipstream.optimize.graph.makers.replacing import replace_by
from slipstream.optimize.graph.nodes import name_of, operands_of, tensor

Polynomial = dict[int, float]
"""Power → coefficient."""

_ROOT = math.sqrt(2 / math.pi)
_FORMS: dict[str, tuple[tuple[float, Polynomial, Any, dict[str, Any]], ...]] = {
    "sigmoid": ((1.0, {1: 1.0}, F.silu, {}), (1.0, {1: 1.702}, quick_gelu, {})),
    "tanh": ((0.5, {1: _ROOT, 3: _ROOT * 0.044715}, F.gelu, {"approximate": "tanh"}),),
    "erf": ((0.5, {1: 1 / math.sqrt(2)}, F.gelu, {}),),
}
"""What is in the gate → the coefficient of the product, the argument as a polynomial of x, and what that is."""

_DIGITS = 1e-5
"""Scripts write these constants with six digits or more."""


def read_gates(graph: fx.Graph) -> None:
    """Rewrite in place."""
    for node in list(graph.nodes):
        if name_of(node) == "mul":
            _activation(graph, node)
    graph.eliminate_dead_code()


def _activation(graph: fx.Graph, node: fx.Node) -> None:
    """``c · x · gate(p(x))`` for the gates of GELU and SiLU."""
    coefficient, factors = _factors(node)
    if len(factors) != 2:
        return
    for x, gate in (factors, factors[::-1]):
        if tensor(x) is None or tensor(gate) is None or tensor(x).shape != tensor(node).shape:  # type: ignore[union-attr]
            continue
        inner = gate if name_of(gate) == "sigmoid" else _beside_one(gate)
        if inner is None:
            continue
        found = _polynomial(next(iter(inner.args), None), x)
        for wanted, polynomial, function, settings in _FORMS.get(name_of(inner), ()):
            if _is(coefficient, wanted) and _agree(found, polynomial):
                return replace_by(graph, node, function, (x,), settings)


def _factors(node: Any) -> tuple[float, list[fx.Node]]:
    """A product as a number and the nodes that are multiplied."""
    if isinstance(node, (int, float)):
        return float(node), []
    operands = operands_of(node)
    if operands is not None and name_of(node) in ("mul", "div"):
        (a, first), (b, second) = map(_factors, operands)
        if name_of(node) == "mul":
            return a * b, first + second
        if not second and b:
            return a / b, first
    return 1.0, [node]


def _beside_one(node: fx.Node) -> fx.Node | None:
    """What is added to 1."""
    operands = operands_of(node) if name_of(node) == "add" else None
    if operands is None:
        return None
    for number, other in (operands, operands[::-1]):
        if isinstance(number, (int, float)) and number == 1 and isinstance(other, fx.Node):
            return other
    return None


def _polynomial(node: Any, x: fx.Node) -> Polynomial | None:
    """What a node is as a polynomial of ``x``; None where it is none, or of more than the seventh power."""
    if node is x:
        return {1: 1.0}
    if isinstance(node, (int, float)):
        return {0: float(node)}
    operands = operands_of(node)
    if operands is None:
        return None
    name, right = name_of(node), operands[1]
    first = _polynomial(operands[0], x)
    if first is None:
        return None
    if name == "pow":
        return _power(first, right) if isinstance(right, (int, float)) else None
    second = _polynomial(right, x)
    if second is None:
        return None
    if name in ("add", "sub"):
        sign = 1 if name == "add" else -1
        return {power: first.get(power, 0.0) + sign * second.get(power, 0.0) for power in {*first, *second}}
    if name == "mul":
        return _times(first, second)
    if name == "div" and set(second) == {0} and second[0]:
        return {power: value / second[0] for power, value in first.items()}
    return None


def _power(base: Polynomial, exponent: float) -> Polynomial | None:
    if exponent not in (1, 2, 3):
        return None
    result: Polynomial | None = base
    for _ in range(int(exponent) - 1):
        result = None if result is None else _times(result, base)
    return result


def _times(first: Polynomial, second: Polynomial) -> Polynomial | None:
    result: Polynomial = {}
    for (a, left), (b, right) in ((one, other) for one in first.items() for other in second.items()):
        result[a + b] = result.get(a + b, 0.0) + left * right
    return result if max(result) <= 7 else None


def _agree(found: Polynomial | None, wanted: Polynomial) -> bool:
    return found is not None and all(
        _is(found.get(power, 0.0), wanted.get(power, 0.0)) for power in {*found, *wanted}
    )


def _is(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= _DIGITS * abs(wanted)
