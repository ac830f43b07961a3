# SPDX-License-Identifier: Apache-2.0
"""What all makers ask of nodes, and how an operator takes the place of a row of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slipstream.kernels.operands import DTYPES
from slipstream.optimize.graph.nodes import arguments, tensor, value
from slipstream.optimize.graph.operators.constant import Constant
from slipstream.optimize.graph.operators.operator import Operator


def replace_row(
    graph: fx.Graph,
    nodes: list[fx.Node],
    operator: Operator,
    inputs: tuple[Any, ...],
    order: tuple[int, ...] | None = None,
) -> int:
    """Let the operator stand for the row; with ``order`` its result is permuted then."""
    last = nodes[-1]
    with graph.inserting_before(last):
        fused = graph.call_function(operator, inputs)
        fused.meta = dict(last.meta if order is None else nodes[-3].meta)
        if order is not None:
            fused = graph.call_method("permute", (fused, *order))
            fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    for node in reversed(nodes):
        graph.erase_node(node)
    return 1


def replace_by(
    graph: fx.Graph, node: fx.Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> None:
    """Let a call of one function stand for the node."""
    with graph.inserting_before(node):
        made = graph.call_function(function, args, kwargs)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def called(graph: fx.Graph, method: str, node: fx.Node, *args: Any) -> fx.Node:
    """A new node, this method of a tensor, where nodes are inserted now."""
    made = graph.call_method(method, (node, *args))
    examples = fx.map_arg((node, *args), value)
    made.meta = {"example_value": getattr(examples[0], method)(*examples[1:])}
    return made


def terms_of(node: fx.Node, *, promoted: bool = False) -> tuple[fx.Node, fx.Node] | None:
    """The operands of an add or mul, where both are tensors of the result's shape and dtype, or may be promoted to it."""
    given = arguments(node)
    if given is None or given.get("alpha", 1) != 1 or set(given) - {"input", "other", "alpha"}:
        return None
    want = tensor(node)
    for operand in (given["input"], given["other"]):
        have = tensor(operand)
        if have is None or want is None or have.shape != want.shape:
            return None
        if have.dtype != want.dtype and not (promoted and {have.dtype, want.dtype} == set(DTYPES)):
            return None
    return given["input"], given["other"]


def other_operand(node: fx.Node, known: fx.Node, *, promoted: bool = False) -> fx.Node | None:
    """Of an add or mul of ``known`` and a like tensor, the latter."""
    terms = terms_of(node, promoted=promoted)
    return None if terms is None else terms[1] if terms[0] is known else terms[0]


def are_given(*weights: Any) -> bool:
    """Whether each is a parameter or buffer of the model, or what follows from them, or None: what can be packed once."""
    return all(weight is None or (isinstance(weight, fx.Node) and _is_given(weight)) for weight in weights)


def _is_given(node: fx.Node) -> bool:
    return tensor(node) is not None and (node.op in ("placeholder", "get_attr") or isinstance(node.target, Constant))


def computes(node: fx.Node, *inputs: Any) -> bool:
    """Whether inputs and result are of one dtype that we have kernels for, or autocast makes them so."""
    made = tensor(node)
    found = {None if tensor(value) is None else tensor(value).dtype for value in inputs}  # type: ignore[union-attr]
    return made is not None and made.dtype in DTYPES and (
        found == {made.dtype} or (made.dtype == torch.bfloat16 and found == {torch.float32})
    )


def dtype_of(node: fx.Node) -> torch.dtype:
    made = tensor(node)
    assert made is not None
    return made.dtype


def product_for(node: fx.Node, product: torch.dtype) -> torch.dtype:
    """bfloat16 models multiply in bfloat16, whatever was asked for."""
    return torch.bfloat16 if dtype_of(node) == torch.bfloat16 else product
