# SPDX-License-Identifier: Apache-2.0
"""Layer norms and RMS norms, with the sum of two tensors before them, become one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.makers.replacing import are_given, computes, dtype_of, replace_row, terms_of
from slipstream.optimize.graph.nodes import arguments, name_of, only_user
from slipstream.optimize.graph.operators.norm import LayerNorm, RmsNorm


def fuse_layer_norm(graph: fx.Graph, node: fx.Node, _: torch.dtype) -> int:
    given = arguments(node)
    if given is None or not _is_of_rows(node, given) or not are_given(given.get("weight"), given.get("bias")):
        return 0
    nodes, source, residual = _with_the_sum(node, given["input"])
    inputs = source, residual, given.get("weight"), given.get("bias")
    return replace_row(graph, nodes, LayerNorm(dtype_of(node), given.get("eps", 1e-5)), inputs)


def fuse_rms_norm(graph: fx.Graph, node: fx.Node, _: torch.dtype) -> int:
    given = arguments(node)
    if given is None or not _is_of_rows(node, given) or not are_given(given.get("weight")):
        return 0
    epsilon = given.get("eps")
    epsilon = torch.finfo(dtype_of(node)).eps if epsilon is None else epsilon
    nodes, source, residual = _with_the_sum(node, given["input"])
    return replace_row(graph, nodes, RmsNorm(dtype_of(node), epsilon), (source, residual, given.get("weight")))


def _is_of_rows(node: fx.Node, given: dict[str, Any]) -> bool:
    return computes(node, given["input"]) and len(given["normalized_shape"]) == 1


def _with_the_sum(node: fx.Node, source: Any) -> tuple[list[fx.Node], Any, Any]:
    """The row of nodes, and the two terms of a sum that only this norm reads; otherwise its input and None."""
    terms = terms_of(source, promoted=True) if name_of(source) == "add" and only_user(source) is node else None
    return ([node], source, None) if terms is None else ([source, node], *terms)
