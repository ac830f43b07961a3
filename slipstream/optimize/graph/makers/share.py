# SPDX-License-Identifier: Apache-2.0
"""What is computed twice of the same values is computed once: masks, tables of positions, of which each layer makes its own."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.nodes import name_of
from slipstream.optimize.graph.operators.constant import Constant
from slipstream.optimize.graph.precision import is_given_back


def share(graph: fx.Graph) -> int:
    """Rewrite in place, the graph being pure; returns how many nodes there are fewer now.

    What the script is given stays its own: it may write into one of two results and not mean the other.
    """
    first: dict[Hashable, fx.Node] = {}
    before = len(graph.nodes)
    for node in list(graph.nodes):
        key = _key(node)
        if key is None:
            continue
        known = first.setdefault(key, node)
        if known is not node and not is_given_back(node) and not is_given_back(known):
            node.replace_all_uses_with(known)
            graph.erase_node(node)
    return before - len(graph.nodes)


def _key(node: fx.Node) -> Hashable | None:
    """Equal for what gives equal values; None for what draws, sets, or leaves memory as it finds it."""
    name = name_of(node)
    if node.op not in ("call_function", "call_method") or not node.users:
        return None
    if "empty" in name or name.startswith("_") or "autocast" in name or "grad_enabled" in name:
        return None
    does = _computed_by(node.target.part) if isinstance(node.target, Constant) else node.target
    try:
        key = node.op, does, _frozen(node.args), _frozen(node.kwargs)
        hash(key)
    except TypeError:
        return None
    return key


def _computed_by(part: fx.Graph) -> Hashable:
    """Equal for graphs that do the same."""
    numbers = {node: number for number, node in enumerate(part.nodes)}
    args = [fx.map_arg((node.args, node.kwargs), lambda source: ("node", numbers[source])) for node in part.nodes]
    return tuple(
        (node.op, "" if node.op == "placeholder" else node.target, _frozen(given))
        for node, given in zip(part.nodes, args, strict=True)
    )


def _frozen(value: Any) -> Hashable:
    """With types, since 1, 1.0 and True are equal; a number that is not one is equal to itself here."""
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *(_frozen(part) for part in value)
    if isinstance(value, dict):
        return "dict", *((name, _frozen(part)) for name, part in sorted(value.items()))
    if isinstance(value, slice):
        return "slice", _frozen(value.start), _frozen(value.stop), _frozen(value.step)
    if isinstance(value, (fx.Node, torch.dtype)):
        return value
    return type(value).__name__, repr(value) if isinstance(value, float) else value
