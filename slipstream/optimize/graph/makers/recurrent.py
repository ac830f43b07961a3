# SPDX-License-Identifier: Apache-2.0
"""LSTM, GRU and RNN layers, all of a module at once, become one operator."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from slipstream.kernels.operands import DTYPES
from slipstream.optimize.graph.makers.replacing import are_given
from slipstream.optimize.graph.nodes import arguments, name_of, tensor, value
from slipstream.optimize.graph.operators.recurrent import Cells, Recurrent


def fuse_recurrent(graph: fx.Graph, node: fx.Node, product: torch.dtype) -> int:
    """Sequences of one length, in inference. With the states unused, the operator's result is the output alone."""
    given = arguments(node)
    made = value(node)
    x = tensor(given["input"]) if given is not None and "batch_first" in given else None
    if given is None or x is None or x.dim() != 3 or x.dtype not in DTYPES or given["train"] is not False:
        return 0
    weights = given["params"]
    if not isinstance(weights, (list, tuple)) or not are_given(*weights) or None in weights:
        return 0
    if {tensor(weight).dtype for weight in weights} != {x.dtype} or {part.dtype for part in made} != {x.dtype}:  # type: ignore[union-attr]
        return 0
    cell = name_of(node)
    states = given["hx"] if cell == "lstm" else (given["hx"],)
    h, c = (*(None if name_of(state) == "zeros" else state for state in states), None)[:2]
    directions = 2 if given["bidirectional"] else 1
    each = len(weights) // (given["num_layers"] * directions)
    cells = Cells(
        cell, given["num_layers"], given["bidirectional"], given["has_biases"], each == 3 + 2 * given["has_biases"],
        given["batch_first"],
    )  # fmt: skip
    first = _only_the_output(node)
    dtype = torch.bfloat16 if x.dtype is torch.bfloat16 else product
    with graph.inserting_before(node):
        target = Recurrent(dtype, x.dtype, cells, states=first is None)
        fused = graph.call_function(target, (given["input"], None, h, c, *weights))
    old: Any = node if first is None else first
    fused.meta = dict(old.meta)
    old.replace_all_uses_with(fused)
    graph.erase_node(old)
    if first is not None:
        graph.erase_node(node)
    return 1


def _only_the_output(node: fx.Node) -> fx.Node | None:
    """What takes the output from the result, where nothing takes a state."""
    users = list(node.users)
    taken = [user for user in users if user.target is operator.getitem and user.args[1] == 0]
    return taken[0] if len(users) == len(taken) == 1 else None
