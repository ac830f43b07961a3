# SPDX-License-Identifier: Apache-2.0
"""Counts the floating point operations of a model's products: matrices, convolutions, attention, recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shape = Sequence[int]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _recurrent(x: Shape, of_input: Shape, of_state: Shape, *_: Any, **__: Any) -> int:
    """x is [steps, batch, features]; each weight is used once a step and sample."""
    return 2 * math.prod(x[:2]) * (math.prod(of_input) + math.prod(of_state))


NOT_TORCHS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
}
"""What torch's counter has no formula for."""


def count(run: Callable[[], Any]) -> float:
    """A multiplication and an addition are two. Lookups, norms and activations count nothing."""
    with FlopCounterMode(display=False, custom_mapping=NOT_TORCHS) as counter:
        run()
    return float(counter.get_total_flops())
