# SPDX-License-Identifier: Apache-2.0
"""Several linears on one input as one: [x W₁ᵀ + b₁, x W₂ᵀ + b₂, …] side by side, such as queries, keys and values."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from slipstream.kernels import linear as kernel
from slipstream.optimize import packs
from slipstream.optimize.graph.operators.linear import LinearOperator, RunOn, shared_kind
from slipstream.optimize.graph.operators.operator import Answer, Tensors


class JointLinear(LinearOperator):
    """Takes x [..., K], None, ``count`` weights [Nᵢ, K], as many biases [Nᵢ] or None; gives [..., N₁ + N₂ + …].

    There is one copy of the packed weights: the layers' own packs become views of the joint one.
    """

    kind = "joint_linear"
    first_weight = 2

    def __init__(self, product: torch.dtype, out: torch.dtype, post_op: str, batch: int, count: int) -> None:
        super().__init__(product, out, post_op, batch)
        self.count = count

    def pack_kind(self, tensors: Tensors) -> Hashable:
        return ("joint linear", self.held, *(None if tensor is None else id(tensor) for tensor in tensors[1:]))

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def is_shared(self, tensors: Tensors) -> bool:
        self.choose()
        weights, _ = self._parted(tensors)
        return all(packs.find(shared_kind(weight, self.held), weight) is not None for weight in weights)

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        weights, biases = self._parted(tensors)
        found = [packs.find(shared_kind(weight, self.held), weight) for weight in weights]
        parts = [
            kernel.pack(weight, dtype=self.held.dtype, parts=self.held.parts) if pack is None else pack.content[0]
            for pack, weight in zip(found, weights, strict=True)
        ]
        joint, views = kernel.join(parts)
        for pack, view in zip(found, views, strict=True):
            if pack is not None:
                packs.rehouse(pack, (view, *pack.content[1:]))
        return (joint, _bias(weights, biases)), joint.data.numel() * joint.data.element_size()

    def settle(self, tensors: Tensors) -> Answer | None:
        return self.settle_by(tensors, self.run_on)

    def settle_by(self, tensors: Tensors, run_on: RunOn) -> Answer | None:
        """As `Linear.settle_by`."""
        pack = self.fitting(tensors)
        if pack is None:
            return None
        packed, bias = pack.content
        run = run_on(packed)
        return lambda x, *_: run(x, None, None, bias), (pack,)

    def __call__(self, x: Any, _: None, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        if content is None:
            return torch.cat(
                [
                    kernel.plain_linear(x, weight, bias, post_op=self.post_op, out_dtype=self.out)
                    for weight, bias in zip(*self._parted(tensors), strict=True)
                ],
                dim=-1,
            )
        return kernel.linear(x, content[0], content[1], post_op=self.post_op, out_dtype=self.out)

    def _parted(self, tensors: Tensors) -> tuple[Any, Any]:
        return tensors[: self.count], tensors[self.count :]


def _bias(weights: Any, biases: Any) -> torch.Tensor | None:
    """All biases in a row, zeros for who has none."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()
            for weight, bias in zip(weights, biases, strict=True)
        ]
    )
