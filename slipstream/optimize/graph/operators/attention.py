# SPDX-License-Identifier: Apache-2.0
"""Scaled dot product attention on our kernel, and the mask that hides nothing."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

import torch

from slipstream.kernels import attention as kernel
from slipstream.kernels.linear import asked_precision, has_tiles
from slipstream.optimize import products
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.operator import Operator


class Attention(Operator):
    """Takes query, key, value [B, H, L, D] and a mask or None; the result's memory is [B, L, H, E].

    Where there are tiles, float32 is multiplied in parts of bfloat16, as torch's float32 matmul precision asks, if a race finds
    that faster than our float32 kernel.
    """

    kind = "attention"

    def __init__(
        self, product: torch.dtype, out: torch.dtype, *, causal: bool, scale: float | None, unseen: float = 0.0
    ) -> None:
        super().__init__(product, out)
        self.causal = causal
        self.scale = scale
        self.unseen = unseen
        self.ways: dict[Hashable, int] = {}
        """Parts by size and precision."""

    @functools.cached_property
    def in_parts(self) -> dict[int, quick.Quick]:
        """At the first call: until then ``out`` may change."""
        return {
            parts: quick.attention(
                self.product, self.out, causal=self.causal, scale=self.scale, unseen=self.unseen, parts=parts
            )
            for parts in ((1, 2, 3) if self.product is torch.float32 and has_tiles() else (1,))
        }

    def __call__(self, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        if len(self.in_parts) == 1:
            return self.in_parts[1](query, key, value, mask)
        return self.in_parts[self.parts(query, key, value, mask)](query, key, value, mask)

    def parts(self, query: Any, key: Any, value: Any, mask: Any) -> int:
        """Raced on these very tensors; found once for all calls of about their size."""
        (batch, heads, queries, depth), keys = query.shape, key.shape[2]
        precision = asked_precision()
        lengths = tuple(length.bit_length() for length in (batch, queries, keys))
        size = (precision, lengths, heads, key.shape[1], depth, value.shape[3], None if mask is None else mask.dtype)
        parts = self.ways.get(size)
        if parts is None:
            what = f"attention: {heads} heads of {depth}, {queries} × {keys}"
            macs = float(batch * heads * queries * keys * (depth + value.shape[3]))
            wanted = kernel.parts_for(precision, query, key)
            question = ("attention in parts", self.out, size)
            parts = products.race(what, wanted, lambda n: self.in_parts[n](query, key, value, mask), question, macs)
            self.ways[size] = parts
        return parts


def mask_that_hides(mask: torch.Tensor) -> torch.Tensor | None:
    """The boolean mask itself, or None where it lets everything through: asked once a call, for all layers that share it.

    Models make such masks where they are captured, and leave them out where they are not.
    """
    return None if bool(mask.all()) else mask


mask_that_hides.__module__ = "slipstream"


def what_hides(mask: torch.Tensor, shows: bool) -> torch.Tensor | None:
    """Where the boolean mask hides (or does not show) a key; None where it does nowhere: asked once a call, for all layers."""
    hidden = ~mask if shows else mask
    return hidden if bool(hidden.any()) else None


what_hides.__module__ = "slipstream"


def hidden_in(scores: torch.Tensor | None, hidden: torch.Tensor | None, least: float) -> torch.Tensor | None:
    """What is added to attention's scores, with ``least`` where a key is hidden.

    ``scores`` None: nothing else is added; None is given back where nothing is hidden either.
    """
    if hidden is None:
        return scores
    if scores is None:
        return hidden.new_zeros(hidden.shape, dtype=torch.float32).masked_fill_(hidden, least)
    return scores.masked_fill(hidden, least)


hidden_in.__module__ = "slipstream"
