# SPDX-License-Identifier: Apache-2.0
"""1 × 1, depthwise and 1 × 1 convolution in one pass over the image: what lies between them is never a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from slipstream.kernels import transpose
from slipstream.kernels.channels_last import inverted_residual as kernel
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.convolution import Convolution
from slipstream.optimize.graph.operators.operator import Answer, Tensors, WeightOperator


class InvertedResidual(WeightOperator):
    """Takes x, the last convolution's residual, and behind each other the weights that each of the convolutions takes.

    ``parts`` are one or two 1 × 1 convolutions around a depthwise one (or one, and None), each with the number of its weights.
    They keep their own packs, which the layers and other graphs share.
    """

    kind = "inverted_residual"
    first_weight = 2

    def __init__(self, parts: tuple[tuple[Convolution, int] | None, ...]) -> None:
        there = [part for part in parts if part is not None]
        super().__init__(there[0][0].product, there[-1][0].out)
        self.parts = parts
        for operator, _ in there:
            operator.stay_whole()

    def _shares(self, tensors: Tensors) -> list[tuple[Convolution, Tensors]]:
        """Each convolution that is there with its own weights."""
        found, start = [], 0
        for part in self.parts:
            if part is not None:
                found.append((part[0], tensors[start : start + part[1]]))
                start += part[1]
        return found

    def is_shared(self, tensors: Tensors) -> bool:
        return all(operator.is_shared(weights) for operator, weights in self._shares(tensors))

    def content(self, tensors: Tensors) -> Any:
        """Of each convolution that is there, or None."""
        found = [operator.content(weights) for operator, weights in self._shares(tensors)]
        return None if None in found else found

    def settle(self, tensors: Tensors) -> Answer | None:
        held = [operator.fitting(weights) for operator, weights in self._shares(tensors)]
        packs = tuple(pack for pack in held if pack is not None)
        return (self._answer([pack.content for pack in packs]), packs) if len(packs) == len(held) else None

    def __call__(self, x: Any, residual: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        if content is not None:
            return self._answer(content)(x, residual)
        *before, (last, weights) = self._shares(tensors)
        for operator, others in before:
            x = operator(x, None, *others)
        return last(x, residual, *weights)

    def _answer(self, content: list[Any]) -> Callable[..., torch.Tensor]:
        made = iter(content)
        first, middle, last = (None if part is None else next(made) for part in self.parts)
        assert middle is not None
        between = kernel.Middle(middle.packed, middle.bias, middle.post_op, middle.out)
        run, product = quick.inverted_residual(_pointwise(first), between, _pointwise(last)), self.product

        def answer(x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
            return run(x if x.stride(1) == 1 else transpose.to_channels_last(x, product), residual)

        return answer


def _pointwise(made: Any) -> kernel.Pointwise | None:
    return None if made is None else kernel.Pointwise(made.packed, made.bias, made.post_op, made.out)
