# SPDX-License-Identifier: Apache-2.0
"""`torch._transformer_encoder_layer_fwd`, which nn.TransformerEncoderLayer runs in inference, as what it is made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from slipstream.optimize.graph.composites.multihead import Projections, attend, combined
from slipstream.optimize.graph.composites.spelling import Spelling
from slipstream.optimize.graph.nodes import name_of, tensor

_NAMES = (
    "src", "embed_dim", "num_heads", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias", "use_gelu", "norm_first", "eps",
    "norm_weight_1", "norm_bias_1", "norm_weight_2", "norm_bias_2", "ffn_weight_1", "ffn_bias_1", "ffn_weight_2", "ffn_bias_2",
    "mask", "mask_type",
)  # fmt: skip
"""As aten's schema has them."""

_RANKS = {0: 2, 1: 2, 2: 4}
"""What ``mask_type`` says of a mask: [L, L], or [B, L] over keys, or [B, H, L, L] of both."""


def spell_encoder_layers(graph: fx.Graph) -> None:
    """Rewrite in place."""
    for node in list(graph.nodes):
        if name_of(node) == "_transformer_encoder_layer_fwd":
            given = {**dict.fromkeys(_NAMES), **dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
            made = tensor(given["src"])
            if made is not None and made.dim() == 3 and _masks(given) is not None:
                result = _spell(Spelling(graph, node), given)
                result.meta = dict(node.meta)
                node.replace_all_uses_with(result)
                graph.erase_node(node)


def _masks(given: dict[str, Any]) -> tuple[Any, Any] | None:
    """The mask and the padding; None for masks of other forms."""
    mask = given["mask"]
    if mask is None:
        return None, None
    kind, made = given["mask_type"], tensor(mask)
    if made is None or made.dim() != _RANKS.get(kind):
        return None
    return (None, mask) if kind == 1 else (mask, None)


def _spell(spell: Spelling, given: dict[str, Any]) -> fx.Node:
    x, first = given["src"], given["norm_first"]

    def normalized(x: fx.Node, number: int) -> fx.Node:
        return spell.norm(x, given[f"norm_weight_{number}"], given[f"norm_bias_{number}"], given["eps"])

    weights = Projections(
        given["num_heads"], given["qkv_weight"], given["qkv_bias"], given["proj_weight"], given["proj_bias"]
    )
    mask, padding = _masks(given) or (None, None)
    seen = combined(spell, mask, padding, weights.heads, x)
    read = normalized(x, 1) if first else x
    x = spell.sum(attend(spell, (read, read, read), weights, seen, causal=False, batch_first=True), x)
    x = x if first else normalized(x, 1)
    y = spell.linear(normalized(x, 2) if first else x, given["ffn_weight_1"], given["ffn_bias_1"])
    y = spell.function(F.gelu if given["use_gelu"] else torch.relu, y)
    x = spell.sum(spell.linear(y, given["ffn_weight_2"], given["ffn_bias_2"]), x)
    return x if first else normalized(x, 2)
