# SPDX-License-Identifier: Apache-2.0
"""`torch.einsum` of two tensors as the product that it is: a linear where one is a weight, else one of two activations.

Moves of axes before and behind are written as `transpose` where they are no more than that, as scripts write attention.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from slipstream.kernels.operands import DTYPES
from slipstream.optimize.graph.composites.spelling import Spelling
from slipstream.optimize.graph.nodes import name_of, tensor

Axes = tuple[str, ...]
"""A name for each axis: a letter, or "...2" for the third of an ellipsis, counted from its end."""

MOST_BATCH_AXES = 2
"""More are one axis in a product, so that attention over heads keeps its four."""


@dataclass(frozen=True)
class Term:
    """A tensor and what its axes are called."""

    node: fx.Node
    axes: Axes


@dataclass(frozen=True)
class Contraction:
    """Both operands and the result's axes. Each axis of an operand is in the other one, in the result, or in both."""

    first: Term
    second: Term
    result: Axes

    def summed(self, term: Term) -> Axes:
        """What is in both and not in the result, in the order of one of them."""
        return tuple(axis for axis in term.axes if axis not in self.result)

    def shared(self) -> Axes:
        """What is in all three."""
        return tuple(axis for axis in self.result if axis in self.first.axes and axis in self.second.axes)

    def only(self, term: Term) -> Axes:
        """What the result has of one operand alone."""
        shared = self.shared()
        return tuple(axis for axis in self.result if axis in term.axes and axis not in shared)


def linear_folded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    """x [..., K] by a weight with several axes for N or K: [N..., K...], or [K..., N...] if transposed."""
    matrix = weight.reshape(x.shape[-1], -1).t() if transposed else weight.reshape(-1, x.shape[-1])
    return F.linear(x, matrix, bias)


linear_folded.__module__ = "slipstream"


def spell_einsums(graph: fx.Graph, own: Collection[fx.Node]) -> None:
    """Rewrite in place; ``own`` are the placeholders of the model's parameters and buffers."""
    for node in list(graph.nodes):
        found = _read(node)
        if found is None:
            continue
        spell = Spelling(graph, node)
        first, second = found.first, found.second
        if second.node in own:
            made = _linear(spell, found, first, second)
        elif first.node in own:
            made = _linear(spell, found, second, first)
        else:
            made = _product(spell, found)
        if made is not None:
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _read(node: fx.Node) -> Contraction | None:
    """What is contracted, where two tensors are, of one dtype, and nothing is summed or repeated within one."""
    if name_of(node) != "einsum" or node.kwargs or not node.args or not isinstance(node.args[0], str):
        return None
    operands: Any = node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = operands[0]
    values = [tensor(operand) for operand in operands]
    made = tensor(node)
    if len(values) != 2 or made is None or made.dtype not in DTYPES or any(v is None or v.dtype != made.dtype for v in values):
        return None
    names = _names(node.args[0], [v.dim() for v in values if v is not None])
    if names is None or any(len(set(axes)) < len(axes) for axes in names):
        return None
    first, second = (Term(operand, axes) for operand, axes in zip(operands, names[:2], strict=True))
    found = Contraction(first, second, names[2])
    return found if _is_plain(found) else None


def _names(equation: str, dims: list[int]) -> tuple[Axes, Axes, Axes] | None:
    """Of both operands' axes and the result's."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(dims):
        return None
    first, second = (_axes(term, dim - len(term.replace("...", ""))) for term, dim in zip(terms, dims, strict=True))
    count = max(sum(map(_is_dot, axes)) for axes in (first, second))
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = "..." * (count > 0) + "".join(sorted(letter for letter in letters if letters.count(letter) == 1))
    return first, second, _axes(right, count)


def _axes(term: str, dots: int) -> Axes:
    before, found, behind = term.partition("...")
    between = tuple(f"...{number}" for number in reversed(range(dots))) if found else ()
    return (*before, *between, *behind)


def _is_dot(axis: str) -> bool:
    return axis.startswith("...")


def _is_plain(found: Contraction) -> bool:
    """Whether each axis is somewhere else too, of the same size there, some are summed, and each operand has some alone."""
    first, second = tensor(found.first.node), tensor(found.second.node)
    assert first is not None and second is not None
    sizes = dict(zip(found.first.axes, first.shape, strict=True))
    for axis, size in zip(found.second.axes, second.shape, strict=True):
        if axis in sizes and not statically_known_true(sizes[axis] == size):
            return False  # one of them may be 1, and spread
        sizes[axis] = size
    known = all(axis in sizes for axis in found.result)
    summed = [found.summed(term) for term in (found.first, found.second)]
    return known and set(summed[0]) == set(summed[1]) != set() and all(map(found.only, (found.first, found.second)))


def _linear(spell: Spelling, found: Contraction, x: Term, weight: Term) -> fx.Node | None:
    """By a weight whose summed axes are its first ones, or its last ones; for each row the same."""
    summed, out = found.summed(weight), tuple(axis for axis in weight.axes if axis in found.result)
    if found.shared() or weight.axes not in (out + summed, summed + out):
        return None
    transposed = weight.axes == summed + out
    kept = found.only(x)
    rows = _joined(spell, _ordered(spell, x, kept + summed), -1, len(summed))
    if len(weight.axes) == 2 and not transposed:
        made = spell.linear(rows, weight.node, None)
    else:
        made = spell.function(linear_folded, rows, weight.node, None, transposed)
    made = _parted(spell, made, -1, _sizes(weight, out))
    return _ordered(spell, Term(made, kept + out), found.result)


def _product(spell: Spelling, found: Contraction) -> fx.Node | None:
    """[batch, rows, summed] by [batch, summed, columns], the result's last axis being one of the columns where it may be."""
    first, second = found.first, found.second
    if found.result[-1] in found.only(first):
        first, second = second, first
    batch, rows, columns, summed = found.shared(), found.only(first), found.only(second), found.summed(first)
    batches = len(batch) if len(batch) > MOST_BATCH_AXES else 1
    groups = (_sizes(first, batch) if batches > 1 else (), _sizes(first, rows), _sizes(second, columns))
    if any(len(sizes) > 1 and not all(isinstance(size, int) for size in sizes) for sizes in groups):
        return None  # they could not be told apart again
    a = _joined(spell, _ordered(spell, first, batch + rows + summed), -1, len(summed))
    a = _joined(spell, _joined(spell, a, -2, len(rows)), batches - 1, batches)
    turned = second.axes[-1] in summed
    last, before = (summed, columns) if turned else (columns, summed)
    b = _joined(spell, _ordered(spell, second, batch + before + last), -1, len(last))
    b = _joined(spell, _joined(spell, b, -2, len(before)), batches - 1, batches)
    made = spell.function(torch.matmul, a, spell.method("transpose", b, -2, -1) if turned else b)
    made = _parted(spell, _parted(spell, made, -1, groups[2]), -1 - len(columns), groups[1])
    return _ordered(spell, Term(_parted(spell, made, 0, groups[0]), batch + rows + columns), found.result)


def _sizes(term: Term, axes: Axes) -> tuple[Any, ...]:
    made = tensor(term.node)
    assert made is not None
    return tuple(made.shape[term.axes.index(axis)] for axis in axes)


def _ordered(spell: Spelling, term: Term, wanted: Axes) -> fx.Node:
    """The tensor with its axes in another order."""
    order = tuple(term.axes.index(axis) for axis in wanted)
    moved = [place for place, axis in enumerate(order) if place != axis]
    if not moved:
        return term.node
    return spell.method("transpose", term.node, *moved) if len(moved) == 2 else spell.method("permute", term.node, *order)


def _joined(spell: Spelling, node: fx.Node, last: int, count: int) -> fx.Node:
    """So many axes, of which ``last`` is the last one, as one."""
    return node if count == 1 else spell.method("flatten", node, last - count + 1, last)


def _parted(spell: Spelling, node: fx.Node, axis: int, sizes: tuple[Any, ...]) -> fx.Node:
    """One axis as several of these sizes."""
    return node if len(sizes) < 2 else spell.method("unflatten", node, axis, sizes)
