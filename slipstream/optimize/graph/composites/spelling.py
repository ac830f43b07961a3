# SPDX-License-Identifier: Apache-2.0
"""Writes operations in front of a node, each with what it gives for the capture's tensors without values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from slipstream.optimize.graph.makers.replacing import called
from slipstream.optimize.graph.makers.written_out import linear_rows
from slipstream.optimize.graph.nodes import name_of, value


class Spelling:
    """``before``: the node in front of which all is written."""

    def __init__(self, graph: fx.Graph, before: fx.Node) -> None:
        self.graph = graph
        self.before = before

    def method(self, name: str, node: fx.Node, *args: Any) -> fx.Node:
        with self.graph.inserting_before(self.before):
            return called(self.graph, name, node, *args)

    def function(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self.graph.inserting_before(self.before):
            made = self.graph.call_function(function, args, kwargs)
        given, named = fx.map_arg((args, kwargs), value)
        made.meta = {"example_value": function(*given, **named)}
        return made

    def linear(self, x: fx.Node, weight: fx.Node, bias: fx.Node | None, rows: tuple[int, int] | None = None) -> fx.Node:
        """By those rows of the weight, by default all."""
        if rows is None:
            return self.function(torch._C._nn.linear, x, weight, bias)
        return self.function(linear_rows, x, weight, bias, rows)

    def sum(self, first: fx.Node, second: fx.Node) -> fx.Node:
        return self.function(torch.add, first, second)

    def norm(self, x: fx.Node, weight: fx.Node, bias: fx.Node, epsilon: float) -> fx.Node:
        """Over the last axis."""
        width = value(weight).shape[0]
        return self.function(F.layer_norm, x, (width,), weight, bias, epsilon)


def swaps_first_axes(node: Any) -> bool:
    return name_of(node) == "transpose" and sorted(map(repr, node.args[1:])) == ["0", "1"] and not node.kwargs
