# SPDX-License-Identifier: Apache-2.0
"""Scaled dot product attention on our kernel, and the mask that hides nothing."""

from __future__ import annotations

from typing import Any

import torch

from slipstream.kernels import attention as kernel
from slipstream.optimize.graph.operators.operator import Operator


class Attention(Operator):
    """Takes query, key, value [B, H, L, D] and a mask or None; the result's memory is [B, L, H, E]."""

    kind = "attention"

    def __init__(self, product: torch.dtype, out: torch.dtype, *, causal: bool, scale: float | None) -> None:
        super().__init__(product, out)
        self.causal = causal
        self.scale = scale

    def __call__(self, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        return kernel.attention(
            query, key, value, mask, causal=self.causal, scale=self.scale, dtype=self.product, out_dtype=self.out
        )


def mask_that_hides(mask: torch.Tensor) -> torch.Tensor | None:
    """The boolean mask itself, or None where it lets everything through: asked once a call, for all layers that share it.

    Models make such masks where they are captured, and leave them out where they are not.
    """
    return None if bool(mask.all()) else mask


mask_that_hides.__module__ = "slipstream"
