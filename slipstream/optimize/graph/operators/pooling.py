# SPDX-License-Identifier: Apache-2.0
"""Pooling of channels-last images: the largest of a window, the mean of a whole image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.operator import Operator

Pair = tuple[int, int]


class MaxPool(Operator):
    """Takes x [N, C, H, W]; the result has its dtype."""

    kind = "max_pool"
    follows = True

    def __init__(self, dtype: torch.dtype, window: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil: bool) -> None:
        super().__init__(dtype, dtype)
        self.numbers = (window, stride, padding, dilation, ceil)
        self.run = quick.max_pool(*self.numbers)

    def __call__(self, x: Any) -> torch.Tensor:
        if x.stride(1) != 1:
            return F.max_pool2d(x, *self.numbers)  # channels first: a copy would cost more than the kernel saves
        return self.run(x)


class GlobalAverage(Operator):
    """Takes x [N, C, H, W], gives [N, C, 1, 1] in x's dtype."""

    kind = "global_average"
    follows = True

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype, dtype)
        self.run = quick.global_average()

    def __call__(self, x: Any) -> torch.Tensor:
        if x.stride(1) != 1:
            return F.adaptive_avg_pool2d(x, 1)
        return self.run(x)
