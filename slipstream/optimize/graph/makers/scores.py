# SPDX-License-Identifier: Apache-2.0
"""Reads what a softmax is taken of as attention's scores: queries times keys, scaled, with terms added and keys hidden.

Only chains without another reader are read: who wants the scores themselves gets them as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from slipstream.kernels.operands import DTYPES
from slipstream.optimize.graph.nodes import name_of, only_user, operands_of, tensor
from slipstream.optimize.graph.operators.constant import Constant

FOLDS = frozenset({"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"})

LEAST = -1e4
"""Scores from here on down count as hidden: softmax weighs them with zero beside any score above −9.8e3."""


@dataclass(frozen=True)
class Term:
    """What is added to scores of so many axes, times a factor."""

    node: fx.Node
    factor: float
    axes: int


@dataclass(frozen=True)
class Hidden:
    """A boolean mask over scores of so many axes that puts ``least`` where it is true, or with ``shows`` where it is not."""

    mask: fx.Node
    least: float
    shows: bool
    axes: int


@dataclass
class Scores:
    """``scale`` · query [..., L, D] · keyᵀ [..., S, D] plus the terms; then keys are hidden, in the order given.

    ``turned``: key was transposed in the graph; else it is [..., D, S]. ``heads`` is how many a 4-D tensor on the way has;
    ``nodes`` are the operations that all this takes, the product first.
    """

    query: fx.Node
    key: fx.Node
    turned: bool
    scale: float
    nodes: list[fx.Node]
    terms: list[Term] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    heads: Any = None


def read_scores(node: Any, reader: fx.Node) -> Scores | None:
    """What ``node`` is, if ``reader`` alone reads it and its product."""
    made = tensor(node)
    if made is None or made.dtype not in DTYPES or made.dim() not in (3, 4) or only_user(node) is not reader:
        return None
    name = name_of(node)
    if name in PRODUCTS:
        found = _product(node)
    elif name in FOLDS or name == "to":
        found = read_scores(node.args[0], node) if same_sizes(tensor(node.args[0]), made, last=2) else None
    else:
        found = _READERS[name](node) if name in _READERS else None
    if found is not None:
        found.nodes.append(node)
        if made.dim() == 4:
            found.heads = made.shape[1]
    return found


PRODUCTS = frozenset({"matmul", "bmm"})


def _product(node: fx.Node) -> Scores | None:
    first, second = operands_of(node) or (None, None)
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    query, before = unscaled(first)
    key, behind = unscaled(second)
    key, turned = turn(key)
    key, between = unscaled(key) if turned else (key, 1.0)
    return Scores(query, key, turned, before * behind * between, [])


def _sum(node: fx.Node) -> Scores | None:
    operands = operands_of(node)
    if operands is None:
        return None
    sign = -1.0 if name_of(node) == "sub" else 1.0
    for inner, other in (operands, operands[::-1]) if sign > 0 else (operands,):
        found = read_scores(inner, node) if isinstance(inner, fx.Node) else None
        if found is None:
            continue
        added = tensor(other)
        if not isinstance(other, fx.Node) or added is None or added.dtype not in DTYPES:
            return None
        if any(hidden.least != -math.inf for hidden in found.hidden):
            return None  # a term could make a difference between hidden scores, or make the least number infinite
        found.terms.append(Term(other, sign, tensor(node).dim()))  # type: ignore[union-attr]
        return found
    return None


def _scaled(node: fx.Node) -> Scores | None:
    operands = operands_of(node)
    if operands is None:
        return None
    for inner, other in (operands, operands[::-1]) if name_of(node) == "mul" else (operands,):
        factor = number_of(other)
        found = read_scores(inner, node) if isinstance(inner, fx.Node) and factor is not None else None
        if found is None or factor is None:
            continue
        if name_of(node) == "div":
            factor = 1 / factor if factor else math.nan
        if not 0 < factor < math.inf or (found.hidden and factor > 1):
            return None  # the least number would become infinite
        found.scale *= factor
        found.terms = [Term(term.node, term.factor * factor, term.axes) for term in found.terms]
        if any(hidden.least * factor > LEAST for hidden in found.hidden):
            return None
        return found
    return None


def _masked(node: fx.Node) -> Scores | None:
    """``masked_fill(scores, mask, least)``."""
    if len(node.args) != 3 or node.kwargs:
        return None
    inner, mask, least = node.args
    return _hide(node, inner, mask, least, shows=False)


def _where(node: fx.Node) -> Scores | None:
    """``where(mask, scores, least)`` or ``where(mask, least, scores)``."""
    if len(node.args) != 3 or node.kwargs:
        return None
    mask, first, second = node.args
    if name_of(node) == "where" and node.op == "call_method":
        mask, first = first, mask
    return _hide(node, first, mask, second, shows=True) or _hide(node, second, mask, first, shows=False)


def _hide(node: fx.Node, inner: Any, mask: Any, least: Any, *, shows: bool) -> Scores | None:
    number, given, made = number_of(least), tensor(mask), tensor(node)
    if number is not None and made is not None:
        number = float(torch.tensor(number).to(made.dtype))  # the least float32 is infinite in bfloat16
    if number is None or number > LEAST or given is None or given.dtype != torch.bool:
        return None
    found = read_scores(inner, node) if isinstance(inner, fx.Node) else None
    if found is not None:
        found.hidden.append(Hidden(mask, number, shows, tensor(node).dim()))  # type: ignore[union-attr]
    return found


_READERS = {
    "add": _sum, "sub": _sum, "mul": _scaled, "div": _scaled, "masked_fill": _masked, "where": _where,
}  # fmt: skip


def number_of(value: Any) -> float | None:
    """A number, or the one in a tensor without axes that follows from nothing that could change."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    known = isinstance(value, fx.Node) and isinstance(value.target, Constant) and not value.args
    if not known or tensor(value).dim() != 0:  # type: ignore[union-attr]
        return None
    return float(value.target())


def unscaled(node: fx.Node) -> tuple[fx.Node, float]:
    """What is multiplied by numbers, and their product."""
    factor = 1.0
    while name_of(node) in ("mul", "div"):
        operands = operands_of(node)
        if operands is None:
            break
        inner, number = operands[0], number_of(operands[1])
        if name_of(node) == "mul" and number is None:
            inner, number = operands[1], number_of(operands[0])
        source, made = tensor(inner), tensor(node)
        if number is None or not 0 < abs(number) < math.inf or source is None or made is None or source.dtype != made.dtype:
            break
        node, factor = inner, factor * number if name_of(node) == "mul" else factor / number
    return node, factor


def turn(node: fx.Node) -> tuple[fx.Node, bool]:
    """What the last two axes were changed of; or the node and False."""
    made, inner = tensor(node), node.args[0] if node.args else None
    if made is None or not isinstance(inner, fx.Node) or node.kwargs:
        return node, False
    last = {made.dim() - 2, made.dim() - 1}
    if name_of(node) in ("transpose", "swapaxes", "swapdims") and len(node.args) == 3:
        axes = [axis % made.dim() for axis in node.args[1:] if isinstance(axis, int)]
        return (inner, True) if set(axes) == last and len(axes) == 2 else (node, False)
    if name_of(node) == "getattr" and node.args[1:] == ("mT",):
        return inner, True
    return node, False


def same_sizes(first: torch.Tensor | None, second: torch.Tensor | None, *, last: int | None = None) -> bool:
    """Whether two shapes, or their last axes, are the same whatever sizes vary."""
    if first is None or second is None:
        return False
    a, b = (tuple(value.shape) if last is None else tuple(value.shape)[-last:] for value in (first, second))
    return len(a) == len(b) and all(statically_known_true(one == other) for one, other in zip(a, b, strict=True))
