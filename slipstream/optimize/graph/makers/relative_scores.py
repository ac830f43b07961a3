# SPDX-License-Identifier: Apache-2.0
"""Terms of attention's scores that are looked up in products with a table of positions: gather(q tableᵀ, index), or of keys.

Disentangled attention (DeBERTa, arXiv 2006.03654) has both kinds. One operator computes them, for the positions that occur, and
for all of a batch from one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.makers.replacing import are_given, called
from slipstream.optimize.graph.makers.scores import FOLDS, PRODUCTS, Term, number_of, same_sizes, turn, unscaled
from slipstream.optimize.graph.nodes import arguments, name_of, only_user, tensor
from slipstream.optimize.graph.operators.relative_scores import RelativeScores, positions_of


@dataclass(frozen=True)
class Found:
    """``scale`` · x[i] · table[index[i, j]], or with ``of_keys`` x[j] and index[j, i]; x is as the graph has it."""

    x: fx.Node
    table: fx.Node
    index: fx.Node
    of_keys: bool
    scale: float


def read_relative(
    graph: fx.Graph, terms: list[Term], query: fx.Node, key: fx.Node, product: torch.dtype
) -> list[Term]:
    """The terms with those that are looked up as one term, computed where nodes are inserted now."""
    kept: list[Term] = []
    found: dict[bool, Found] = {}
    for term in terms:
        for part in _addends(term):
            looked_up = _looked_up(part, query, key)
            if looked_up is None or looked_up.of_keys in found:
                kept.append(part)
            else:
                found[looked_up.of_keys] = looked_up
    if not found:
        return terms
    tables: list[Any] = []
    for of_keys in (False, True):
        one = found.get(of_keys)
        tables += (None, None) if one is None else _tables(graph, one, product)
    scales = [found[of_keys].scale if of_keys in found else 1.0 for of_keys in (False, True)]
    made = graph.call_function(RelativeScores(product, *scales), (query, key, *tables))
    q, k = tensor(query), tensor(key)
    assert q is not None and k is not None
    made.meta = {"example_value": q.new_empty((*q.shape[:3], k.shape[2]), dtype=torch.float32)}
    return [Term(made, 1.0, 4), *kept]


def _addends(term: Term) -> list[Term]:
    """What a term is the sum of."""
    node = term.node
    inner, factor = unscaled(node)
    if factor != 1 and only_user(node) is not None:
        return _addends(Term(inner, term.factor * factor, term.axes))
    if name_of(node) != "add" or len(node.args) != 2 or node.kwargs or only_user(node) is None:
        return [term]
    parts = [argument for argument in node.args if number_of(argument) != 0]
    if not all(tensor(part) is not None for part in parts):
        return [term]
    if len(parts) == 2 and not same_sizes(tensor(parts[0]), tensor(parts[1])):
        return [term]
    return [leaf for part in parts for leaf in _addends(Term(part, term.factor, term.axes))]  # type: ignore[arg-type]


def _looked_up(term: Term, query: fx.Node, key: fx.Node) -> Found | None:
    node, scale = unscaled(term.node)
    node, of_keys = turn(node)
    given = arguments(node) if name_of(node) == "gather" else None
    made = tensor(node)
    if given is None or made is None or given.get("dim") not in (-1, made.dim() - 1) or only_user(node) is None:
        return None
    inner, within = unscaled(given["input"])
    if name_of(inner) not in PRODUCTS or len(inner.args) != 2 or inner.kwargs:
        return None
    x, before = unscaled(inner.args[0])  # type: ignore[arg-type]
    table, turned = turn(inner.args[1])  # type: ignore[arg-type]
    if not turned:
        return None
    one, index = _for_one_batch(table), _for_all_heads(given["index"])
    rows = key if of_keys else query
    if one is None or index is None or _four(x) is not _four(rows):
        return None
    heads = tensor(rows).shape[1]  # type: ignore[union-attr]
    if tensor(one).shape[-3] != heads:  # type: ignore[union-attr]
        return None
    return Found(rows, one, index, of_keys, term.factor * scale * within * before)


def _four(node: fx.Node) -> fx.Node:
    """[B, H, L, D] of which a node is [B · H, L, D], or the node."""
    while name_of(node) in FOLDS:
        source = node.args[0]
        if not isinstance(source, fx.Node) or not same_sizes(tensor(node), tensor(source), last=2):
            break
        node = source
    return node


def _for_one_batch(table: fx.Node) -> fx.Node | None:
    """[H, P, D], or [1, H, P, D], of which a table is copies for a batch."""
    while name_of(table) in ("repeat", "expand") and isinstance(table.args[0], fx.Node):
        source, made = tensor(table.args[0]), tensor(table)
        times = table.args[1] if len(table.args) == 2 and isinstance(table.args[1], (tuple, list)) else table.args[1:]
        if source is None or not same_sizes(source, made, last=2):
            return None
        if name_of(table) == "repeat" and (len(times) != source.dim() or source.dim() != 3):
            return None
        table = table.args[0]
    made = tensor(table)
    if made is None or made.dim() not in (3, 4) or (made.dim() == 4 and made.shape[0] != 1):
        return None
    return table


def _for_all_heads(index: Any) -> fx.Node | None:
    """The [..., L, S] of which an index is copies for batch and heads."""
    while isinstance(index, fx.Node) and name_of(index) in ("expand", "repeat", "unsqueeze", "squeeze"):
        source = index.args[0]
        if not same_sizes(tensor(source), tensor(index), last=2):
            return None
        index = source
    made = tensor(index)
    alike = made is not None and made.dim() >= 2 and all(length == 1 for length in made.shape[:-2])
    return index if alike else None


def _tables(graph: fx.Graph, found: Found, product: torch.dtype) -> tuple[fx.Node, fx.Node]:
    table = found.table
    if tensor(table).dim() == 4:  # type: ignore[union-attr]
        table = called(graph, "squeeze", table, 0)
    if product is torch.bfloat16 and are_given(found.table) and tensor(table).dtype != product:  # type: ignore[union-attr]
        table = called(graph, "to", table, product)
    positions = graph.call_function(positions_of, (found.index, found.of_keys))
    index = tensor(found.index)
    assert index is not None
    index = index.reshape(index.shape[-2:])
    positions.meta = {"example_value": (index.T if found.of_keys else index).to(torch.int32)}
    return table, positions
