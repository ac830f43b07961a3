# SPDX-License-Identifier: Apache-2.0
"""Attention that a model writes out, softmax(scale · q kᵀ + terms) v, becomes the operator that torch's function becomes.

Rows that see no key come out as a softmax has them: NaN where they are hidden by minus infinity; the mean of the values where
it was the least finite number, for which that number is added, and no boolean mask taken, which would make zeros of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from slipstream.kernels.operands import DTYPES
from slipstream.optimize.graph.makers.attention import before_repeating, mask_or_none
from slipstream.optimize.graph.makers.relative_scores import read_relative
from slipstream.optimize.graph.makers.replacing import called, computes, dtype_of, product_for
from slipstream.optimize.graph.makers.scores import (
    FOLDS,
    PRODUCTS,
    Hidden,
    Scores,
    read_scores,
    same_sizes,
)
from slipstream.optimize.graph.nodes import arguments, name_of, only_user, tensor
from slipstream.optimize.graph.operators.attention import Attention, hidden_in, what_hides


def read_attention(graph: fx.Graph, product: torch.dtype) -> int:
    """Rewrite in place; ``product`` is what float32 is multiplied in. Returns the number of operators."""
    made = 0
    for node in list(graph.nodes):
        if name_of(node) == "softmax":
            made += _attention(graph, node, product)
    graph.eliminate_dead_code()
    return made


def _attention(graph: fx.Graph, softmax: fx.Node, product: torch.dtype) -> int:
    given, made = arguments(softmax), tensor(softmax)
    if given is None or made is None or made.dtype not in DTYPES or given.get("dim") not in (-1, made.dim() - 1):
        return 0
    last = _weighted(softmax)
    scores = None if last is None else read_scores(given["input"], softmax)
    if last is None or scores is None or not isinstance(last.args[1], fx.Node):
        return 0
    value = last.args[1]
    if not computes(last, scores.nodes[0].args[0], scores.nodes[0].args[1], value):
        return 0
    heads = scores.heads if scores.heads is not None else _heads_of(scores.query)
    if not isinstance(heads, int):
        return 0
    return _replace(graph, last, scores, value, heads, product)


def _weighted(softmax: fx.Node) -> fx.Node | None:
    """The product of the weights with values, if nobody else is given the weights."""
    node = softmax
    while True:
        user = only_user(node)
        if user is None:
            return None
        if name_of(user) in PRODUCTS:
            return user if len(user.args) == 2 and user.args[0] is node and not user.kwargs else None
        moved = name_of(user) in FOLDS and same_sizes(tensor(user), tensor(node), last=2)
        made = tensor(user)
        if not (moved or (name_of(user) == "to" and made is not None and made.dtype in DTYPES)):
            return None
        node = user


def _heads_of(query: fx.Node) -> Any:
    """Of [B · H, L, D] that was [B, H, L, D]; else all count as the batch, of one head each."""
    source = query.args[0] if name_of(query) in FOLDS and query.args else None
    have, made = tensor(source), tensor(query)
    if have is not None and made is not None and have.dim() == 4 and same_sizes(have, made, last=2):
        return have.shape[1]
    return 1


def _replace(
    graph: fx.Graph, last: fx.Node, scores: Scores, value: fx.Node, heads: int, product: torch.dtype
) -> int:
    with graph.inserting_before(last):
        key = scores.key if scores.turned else called(graph, "transpose", scores.key, -1, -2)
        query, key, value = (_with_heads(graph, part, heads) for part in (scores.query, key, value))
        if not _fit(query, key, value):
            return 0
        mask = _mask(graph, scores, query, key, heads, product_for(last, product))
        shared = [before_repeating(part) for part in (key, value)]
        if same_sizes(tensor(shared[0]), tensor(shared[1]), last=None) or shared == [key, value]:
            key, value = shared
        operator = Attention(
            product_for(last, product), dtype_of(last), causal=False, scale=scores.scale, unseen=math.nan
        )
        fused = graph.call_function(operator, (query, key, value, mask))
        q, v, made = tensor(query), tensor(value), tensor(last)
        assert q is not None and v is not None and made is not None
        fused.meta = {"example_value": made.new_empty((*q.shape[:3], v.shape[3]))}
        after = only_user(last)
        if made.dim() == 4:
            last.replace_all_uses_with(fused)
        elif after is not None and name_of(after) in FOLDS and same_sizes(tensor(after), tensor(fused)):
            after.replace_all_uses_with(fused)
        else:
            last.replace_all_uses_with(called(graph, "flatten", fused, 0, 1))
    return 1


def _with_heads(graph: fx.Graph, part: fx.Node, heads: int) -> fx.Node:
    """[B, heads, L, D] of [B · heads, L, D]: what that was made of, or a view."""
    made = tensor(part)
    if made is None or made.dim() != 3:
        return part
    source = part.args[0] if name_of(part) in FOLDS and part.args else None
    have = tensor(source)
    if have is not None and have.dim() == 4 and have.shape[1] == heads and same_sizes(have, made, last=2):
        return source  # type: ignore[return-value]
    return called(graph, "unflatten", part, 0, (-1, heads))


def _fit(query: fx.Node, key: fx.Node, value: fx.Node) -> bool:
    """Whether the kernel takes these: one batch, heads of keys and values that divide those of queries."""
    parts = [tensor(part) for part in (query, key, value)]
    if any(part is None or part.dim() != 4 for part in parts):
        return False
    q, k, v = parts
    assert q is not None and k is not None and v is not None
    groups = k.shape[1]
    return (
        same_sizes(q[:, 0, 0, 0], k[:, 0, 0, 0])
        and same_sizes(k[..., 0], v[..., 0])
        and isinstance(groups, int)
        and isinstance(q.shape[1], int)
        and groups > 0
        and q.shape[1] % groups == 0
    )


def _mask(graph: fx.Graph, scores: Scores, query: fx.Node, key: fx.Node, heads: int, product: torch.dtype) -> fx.Node | None:
    """All that is added to scores, or hides some, as one node."""
    if scores.hidden and not scores.terms and all(hidden.least == -math.inf for hidden in scores.hidden):
        seen = [_seen(graph, hidden, heads) for hidden in scores.hidden]
        mask = seen[0]
        for other in seen[1:]:
            mask = called(graph, "logical_and", mask, other)
        return mask_or_none(graph, mask)
    terms = read_relative(graph, scores.terms, query, key, product)
    added: fx.Node | None = None
    for term in terms:
        node = _of_four_axes(graph, term.node, term.axes, heads)
        if term.factor != 1:
            node = called(graph, "mul", node, term.factor)
        added = node if added is None else called(graph, "add", added, node)
    for hidden in scores.hidden:
        added = _hide(graph, added, hidden, heads)
    return added


def _seen(graph: fx.Graph, hidden: Hidden, heads: int) -> fx.Node:
    mask = _of_four_axes(graph, hidden.mask, hidden.axes, heads)
    return mask if hidden.shows else called(graph, "logical_not", mask)


def _hide(graph: fx.Graph, added: fx.Node | None, hidden: Hidden, heads: int) -> fx.Node:
    mask = _of_four_axes(graph, hidden.mask, hidden.axes, heads)
    where = graph.call_function(what_hides, (mask, hidden.shows))
    where.meta = dict(mask.meta)
    made = graph.call_function(hidden_in, (added, where, hidden.least))
    hides = tensor(mask)
    assert hides is not None
    example = hides.to(torch.float32) if added is None else tensor(added) + hides  # type: ignore[operator]
    made.meta = {"example_value": example}
    return made


def _of_four_axes(graph: fx.Graph, node: fx.Node, axes: int, heads: int) -> fx.Node:
    """What spread over [B · heads, L, S] as it spreads over [B, heads, L, S]."""
    made = tensor(node)
    if made is None or axes == 4 or made.dim() < 3 or made.shape[0] == 1:
        return node
    return _with_heads(graph, node, heads)
