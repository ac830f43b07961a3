# SPDX-License-Identifier: Apache-2.0
"""A 1 × 1 convolution of an image whose channels are scaled first, in one pass, channels last."""

from __future__ import annotations

from typing import Any

import torch

from slipstream.kernels import transpose
from slipstream.kernels.channels_last.inverted_residual import Pointwise
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.convolution import Convolution
from slipstream.optimize.graph.operators.operator import Answer, Tensors, WeightOperator


class GatedPointwise(WeightOperator):
    """Takes x, residual, the factors [N, C, 1, 1], and what the convolution takes as its weights."""

    kind = "gated_pointwise"
    first_weight = 3

    def __init__(self, convolution: Convolution) -> None:
        super().__init__(convolution.product, convolution.out)
        self.convolution = convolution
        convolution.stay_whole()

    def is_shared(self, tensors: Tensors) -> bool:
        return self.convolution.is_shared(tensors)

    def content(self, tensors: Tensors) -> Any:
        return self.convolution.content(tensors)

    def settle(self, tensors: Tensors) -> Answer | None:
        pack = self.convolution.fitting(tensors)
        return None if pack is None else (self._answer(pack.content), (pack,))

    def __call__(self, x: Any, residual: Any, gate: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        if content is None:
            return self.convolution(x * gate, residual, *tensors)
        return self._answer(content)(x, residual, gate)  # type: ignore[no-any-return]

    def _answer(self, content: Any) -> Any:
        run = quick.gated_pointwise(Pointwise(content.packed, content.bias, content.post_op, content.out))
        product = self.product

        def answer(x: torch.Tensor, residual: torch.Tensor | None, gate: torch.Tensor, *_: Any) -> torch.Tensor:
            return run(x if x.stride(1) == 1 else transpose.to_channels_last(x, product), residual, gate)

        return answer
