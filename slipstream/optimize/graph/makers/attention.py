# SPDX-License-Identifier: Apache-2.0
"""Attention by torch's function becomes one operator, which needs no copies of the heads that several queries share."""

from __future__ import annotations

import torch
from torch import fx

from slipstream.kernels.operands import DTYPES
from slipstream.optimize.graph.makers.replacing import computes, dtype_of, product_for, replace_row
from slipstream.optimize.graph.nodes import arguments, name_of, tensor
from slipstream.optimize.graph.operators.attention import Attention, mask_that_hides


def fuse_attention(graph: fx.Graph, node: fx.Node, product: torch.dtype) -> int:
    given = arguments(node)
    if given is None or given.get("dropout_p", 0.0):
        return 0
    inputs = given["query"], given["key"], given["value"]
    if not computes(node, *inputs) or any(tensor(value).dim() != 4 for value in inputs):  # type: ignore[union-attr]
        return 0
    mask, causal, scale = given.get("attn_mask"), given.get("is_causal", False), given.get("scale")
    if not isinstance(scale, float | None) or not isinstance(causal, bool) or (mask is not None and causal):
        return 0
    hidden = tensor(mask)
    if mask is not None and (hidden is None or hidden.dtype not in (torch.bool, *DTYPES)):
        return 0
    if isinstance(mask, fx.Node) and hidden is not None and hidden.dtype is torch.bool:
        mask = mask_or_none(graph, mask)
    operator = Attention(product_for(node, product), dtype_of(node), causal=causal, scale=scale)
    shared = [before_repeating(value) for value in inputs[1:]]
    if len({tensor(value).shape[1] for value in shared}) == 1:  # type: ignore[union-attr]
        inputs = inputs[0], shared[0], shared[1]
    return replace_row(graph, [node], operator, (*inputs, mask))


def before_repeating(heads: fx.Node) -> fx.Node:
    """The [B, G, L, D] of which `heads` has each head several times in a row, as transformers' `repeat_kv` does it."""
    steps = [heads]
    for name in ("reshape", "expand"):
        above = next(iter(steps[-1].args), None) if name_of(steps[-1]) == name else None
        if not isinstance(above, fx.Node):
            return heads
        steps.append(above)
    wide, inserted = tensor(steps[1]), steps[2]
    every = slice(None)
    if name_of(inserted) != "getitem" or inserted.args[1] != (every, every, None, every, every):
        return heads
    source = inserted.args[0]
    have, made = tensor(source), tensor(heads)
    if have is None or wide is None or made is None or have.dim() != 4 or wide.dim() != 5 or made.dim() != 4:
        return heads
    batch, groups, length, depth = have.shape
    if (wide.shape[:2], wide.shape[3:]) != ((batch, groups), (length, depth)) or made.shape[1] != groups * wide.shape[2]:
        return heads
    return source if made.shape[0] == batch and made.shape[2:] == (length, depth) else heads  # type: ignore[return-value]


def mask_or_none(graph: fx.Graph, mask: fx.Node) -> fx.Node:
    """One question for all layers that share a mask."""
    for user in mask.users:
        if user.target is mask_that_hides:
            return user
    with graph.inserting_after(mask):
        asked = graph.call_function(mask_that_hides, (mask,))
    asked.meta = dict(mask.meta)
    return asked
