# SPDX-License-Identifier: Apache-2.0
"""`F.multi_head_attention_forward`, which nn.MultiheadAttention calls, as projections and scaled dot product attention."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from slipstream.optimize.graph.composites.spelling import Spelling, swaps_first_axes
from slipstream.optimize.graph.nodes import name_of, tensor

_signature = inspect.signature(F.multi_head_attention_forward)
_attention = torch._C._nn.scaled_dot_product_attention  # the one in functional may be one of ours


@dataclass(frozen=True)
class Projections:
    """Weights [3 E, E] of query, key and value on top of each other, and of the result [E, E], with their biases."""

    heads: int
    into: fx.Node
    into_bias: fx.Node | None
    out: fx.Node
    out_bias: fx.Node | None


def spell_multihead(graph: fx.Graph) -> None:
    """Rewrite in place."""
    for node in list(graph.nodes):
        if name_of(node) == "multi_head_attention_forward" and node.op == "call_function":
            bound = _signature.bind(*node.args, **node.kwargs)
            bound.apply_defaults()
            if _is_plain(node, bound.arguments):
                _spell(graph, node, bound.arguments)


def _is_plain(node: fx.Node, given: dict[str, Any]) -> bool:
    """Whether it is batched, not in training, with one weight for all inputs, and nobody reads how much it looked where."""
    extras = ("bias_k", "bias_v", "static_k", "static_v", "add_zero_attn", "use_separate_proj_weight")
    inputs = [tensor(given[name]) for name in ("query", "key", "value")]
    return (
        not any(given[name] is not None and given[name] is not False for name in extras)
        and (given["training"] is False or given["dropout_p"] == 0)
        and all(made is not None and made.dim() == 3 for made in inputs)
        and len({made.dtype for made in inputs if made is not None}) == 1
        and all(name_of(user) == "getitem" and (user.args[1] == 0 or not user.users) for user in node.users)
    )


def _spell(graph: fx.Graph, node: fx.Node, given: dict[str, Any]) -> None:
    spell = Spelling(graph, node)
    query, key, value = given["query"], given["key"], given["value"]
    swapped = all(map(swaps_first_axes, (query, key, value)))  # a layer with the batch first calls the function so
    if swapped:
        query, key, value = (made.args[0] for made in (query, key, value))
    mask, padding, causal = given["attn_mask"], given["key_padding_mask"], bool(given["is_causal"])
    causal = causal and padding is None and not given["need_weights"]
    weights = Projections(
        given["num_heads"], given["in_proj_weight"], given["in_proj_bias"], given["out_proj_weight"], given["out_proj_bias"]
    )
    seen = None if causal else combined(spell, mask, padding, weights.heads, query)
    y = attend(spell, (query, key, value), weights, seen, causal=causal, batch_first=swapped)
    result = spell.method("transpose", y, 0, 1) if swapped else y
    for user in list(node.users):
        if user.args[1] == 0:
            made = tensor(user)  # whose strides the script may see
            assert made is not None
            y.meta = {"example_value": made.transpose(0, 1) if swapped else made}
            result.meta = dict(user.meta)
            user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)
    for back in [user for user in result.users if swapped and swaps_first_axes(user)]:
        back.replace_all_uses_with(y)
        graph.erase_node(back)


def attend(
    spell: Spelling,
    inputs: tuple[fx.Node, fx.Node, fx.Node],
    weights: Projections,
    mask: fx.Node | None,
    *,
    causal: bool,
    batch_first: bool,
) -> fx.Node:
    """The result [B, L, E], or [L, B, E], of query, key and value like it; ``mask`` is added to the scores [B, H, L, S]."""
    query, key, value = inputs
    width = tensor(weights.out).shape[0]  # type: ignore[union-attr]

    def project(x: fx.Node, first: int, last: int) -> list[fx.Node]:
        """One product, and views of it."""
        rows = None if (first, last) == (0, 3) else (first * width, last * width)
        joint = spell.linear(x, weights.into, weights.into_bias, rows)
        if last - first == 1:
            return [_by_head(spell, joint, weights.heads, batch_first)]
        starts = range(0, (last - first) * width, width)
        parts = [spell.method("narrow", joint, -1, start, width) for start in starts]
        return [_by_head(spell, part, weights.heads, batch_first) for part in parts]

    if query is key and key is value:
        heads = project(query, 0, 3)
    elif key is value:
        heads = [*project(query, 0, 1), *project(key, 1, 3)]
    else:
        heads = [made for number, x in enumerate((query, key, value)) for made in project(x, number, number + 1)]
    y = spell.function(_attention, *heads, attn_mask=mask, dropout_p=0.0, is_causal=causal)
    y = spell.method("transpose", y, 1, 2) if batch_first else spell.method("permute", y, 2, 0, 1, 3)
    shape = tensor(y).shape  # type: ignore[union-attr]
    lead = [spell.method("size", y, axis) if not isinstance(shape[axis], int) else shape[axis] for axis in (0, 1)]
    return spell.linear(spell.method("reshape", y, *lead, width), weights.out, weights.out_bias)


def _by_head(spell: Spelling, x: fx.Node, heads: int, batch_first: bool) -> fx.Node:
    """[B, L, E] or [L, B, E] as [B, H, L, E / H]."""
    split = spell.method("unflatten", x, -1, (heads, -1))
    return spell.method("transpose", split, 1, 2) if batch_first else spell.method("permute", split, 1, 2, 0, 3)


def combined(spell: Spelling, mask: Any, padding: Any, heads: int, like: fx.Node) -> fx.Node | None:
    """One mask that is added, of a mask [L, S], [B · H, L, S] or [B, H, L, S] and padding [B, S], each added or boolean (True
    hides); None of neither."""
    if mask is None and padding is None:
        return None
    return spell.function(additive_mask, mask, padding, heads, tensor(like).dtype)  # type: ignore[union-attr]


def additive_mask(mask: torch.Tensor | None, padding: torch.Tensor | None, heads: int, dtype: torch.dtype) -> torch.Tensor:
    """As `F.multi_head_attention_forward` combines them."""

    def added(hides: torch.Tensor) -> torch.Tensor:
        if hides.dtype is not torch.bool:
            return hides
        return hides.new_zeros(hides.shape, dtype=dtype).masked_fill(hides, float("-inf"))

    parts = []
    if mask is not None:
        parts.append(added(mask).unflatten(0, (-1, heads)) if mask.dim() == 3 else added(mask))
    if padding is not None:
        parts.append(added(padding)[:, None, None, :])
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


additive_mask.__module__ = "slipstream"
