# SPDX-License-Identifier: Apache-2.0
"""A norm and the one linear that reads it, as one call."""

from __future__ import annotations

from typing import Any

import torch

from slipstream.kernels.linear import PackedLinear
from slipstream.kernels.normed_linear import Normalization
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.joint_linear import JointLinear
from slipstream.optimize.graph.operators.linear import Linear
from slipstream.optimize.graph.operators.norm import LayerNorm, RmsNorm
from slipstream.optimize.graph.operators.operator import Answer, PackedOperator, Tensors


class NormedLinear(PackedOperator):
    """Takes x, the norm's weight and bias, or None, and what the linear takes from its second on; the linear has the pack."""

    kind = "normed_linear"

    def __init__(self, norm: LayerNorm | RmsNorm, linear: Linear | JointLinear) -> None:
        super().__init__(linear.product, linear.out)
        self.norm, self.linear = norm, linear
        self.normalization = Normalization(norm.eps, norm.centred, norm.out)
        self.first_weight = 2 + linear.first_weight

    def is_shared(self, tensors: Tensors) -> bool:
        return self.linear.is_shared(tensors)

    def content(self, tensors: Tensors) -> Any:
        return self.linear.content(tensors)

    def settle(self, tensors: Tensors) -> Answer | None:
        settled = self.linear.settle_by(tensors, self._run_on)
        if settled is None:
            return None
        answer, packs = settled
        return lambda x, weight, bias, *rest: answer((x, weight, bias), *rest), packs

    def _run_on(self, packed: PackedLinear) -> quick.Quick:
        return quick.normed_linear(packed, self.linear.post_op, self.out, self.normalization)

    def __call__(self, x: Any, weight: Any, bias: Any, *rest: Any) -> torch.Tensor:
        return self.linear(self.norm.run(x, None, weight, bias), *rest)
