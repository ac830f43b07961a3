# SPDX-License-Identifier: Apache-2.0
"""Scaled dot product attention on our kernel, and the mask that hides nothing."""

from __future__ import annotations

from typing import Any

import torch

from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.operator import Operator


class Attention(Operator):
    """Takes query, key, value [B, H, L, D] and a mask or None; the result's memory is [B, L, H, E]."""

    kind = "attention"

    def __init__(
        self, product: torch.dtype, out: torch.dtype, *, causal: bool, scale: float | None, unseen: float = 0.0
    ) -> None:
        super().__init__(product, out)
        self.run = quick.attention(product, out, causal=causal, scale=scale, unseen=unseen)

    def __call__(self, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        return self.run(query, key, value, mask)


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
