# SPDX-License-Identifier: Apache-2.0
"""Finds what depends on the model's own weights alone: projections of position tables, weight norms, tables of positions.

Models compute these anew at every call, since weights might change. Here each is one operator that keeps its result on the
stamps that packs have.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.nodes import name_of, tensor, value
from slipstream.optimize.graph.operators.constant import Constant
from slipstream.optimize.graph.operators.operator import Operator
from slipstream.optimize.graph.precision import VIEWS, is_given_back

MOST_BYTES = 16 << 20
"""A result may be larger than the weights that it comes from, up to this."""

_MOVES = VIEWS | {"contiguous", "clone"}
"""What computes nothing: as cheap, or as large to keep, as it was."""

_MAKES = frozenset({"arange", "zeros", "ones", "full", "tensor", "eye", "linspace", "tril_indices", "triu_indices"})
"""Functions that make a tensor of numbers."""


def fold_constants(graph: fx.Graph, own: Collection[fx.Node]) -> int:
    """Rewrite in place; ``own`` are the placeholders of parameters and buffers. Returns the number of results that are kept."""
    known = _constants(graph, own)
    staying: set[fx.Node] = set()
    made = 0
    for node in list(reversed(graph.nodes)):
        if node not in known or all(user in known and user not in staying for user in node.users):
            continue
        if _is_worth_it(node):
            _replace(graph, node)
            made += 1
        else:
            staying.add(node)
    graph.eliminate_dead_code()
    return made


def _constants(graph: fx.Graph, own: Collection[fx.Node]) -> set[fx.Node]:
    """Nodes whose values the weights decide, in the order of the graph; those that the script is given are none."""
    known: set[fx.Node] = set()
    for node in graph.nodes:
        if node in own or (_is_operation(node) and all(source in known for source in node.all_input_nodes)):
            known.add(node)
    return known


def _is_operation(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or "empty" in name_of(node) or not _is_plain(value(node)):
        return False
    if isinstance(node.target, Operator):
        return isinstance(node.target, Constant)
    return bool(node.all_input_nodes) or name_of(node) in _MAKES


def _is_plain(made: Any) -> bool:
    """Whether it is a CPU tensor of known sizes, or several, or a number; nothing that stands for one."""
    if isinstance(made, torch.Tensor):
        return made.device.type == "cpu" and all(isinstance(length, int) for length in made.shape)
    if isinstance(made, (tuple, list)):
        return all(_is_plain(part) for part in made)
    return isinstance(made, (int, float, bool))


def _is_worth_it(node: fx.Node) -> bool:
    """Whether something is computed for it, nobody may write into it, and it is not too large to keep."""
    made = tensor(node)
    if made is None or node.op == "placeholder" or isinstance(node.target, Constant) or is_given_back(node):
        return False
    if _bytes(node) > _bytes(_before_moves(node)):
        return False  # it repeats what can be kept
    above = _above(node)
    if all(source.op == "placeholder" or _moves(source) or isinstance(source.target, Constant) for source in above):
        return False
    return _bytes(node) <= max(MOST_BYTES, sum(_bytes(source) for source in above if source.op == "placeholder"))


def _moves(node: fx.Node) -> bool:
    """Whether nothing is computed; what is looked up in a table by a table is (the biases of windows)."""
    if name_of(node) == "getitem":
        return len(node.all_input_nodes) == 1
    return name_of(node) in _MOVES


def _before_moves(node: fx.Node) -> fx.Node:
    while _moves(node) and node.args and isinstance(node.args[0], fx.Node) and tensor(node.args[0]) is not None:
        node = node.args[0]
    return node


def _bytes(node: Any) -> int:
    made = tensor(node)
    return 0 if made is None else made.numel() * made.itemsize


def _above(node: fx.Node) -> list[fx.Node]:
    """The node and all that it is computed from, in an order in which each comes after what it reads."""
    found: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        last = waiting[-1]
        missing = [source for source in last.all_input_nodes if source not in found]
        if missing:
            waiting += missing
        else:
            found[waiting.pop()] = None
    return list(found)


def _replace(graph: fx.Graph, node: fx.Node) -> None:
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    inputs: list[fx.Node] = []
    for source in _above(node):
        if source.op == "placeholder" or isinstance(source.target, Constant):
            copies[source] = part.placeholder(f"weight_{len(inputs)}")
            inputs.append(source)
        else:
            copies[source] = part.node_copy(source, copies.__getitem__)
    part.output(copies[node])
    made = tensor(node)
    assert made is not None
    with graph.inserting_before(node):
        constant = graph.call_function(Constant(part, made.dtype), tuple(inputs))
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)
    graph.erase_node(node)
