# SPDX-License-Identifier: Apache-2.0
"""1 × 1, depthwise and 1 × 1 convolution in one pass over the image: what lies between them is never a tensor."""

from __future__ import annotations

import functools
from typing import Any

import torch

from slipstream.kernels import transpose
from slipstream.kernels.channels_last import inverted_residual as kernel
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

    def _shares(self, tensors: Tensors) -> list[tuple[Convolution, Tensors] | None]:
        """Each convolution with its own weights."""
        found: list[tuple[Convolution, Tensors] | None] = []
        for part in self.parts:
            if part is None:
                found.append(None)
            else:
                found.append((part[0], tensors[: part[1]]))
                tensors = tensors[part[1] :]
        return found

    def is_shared(self, tensors: Tensors) -> bool:
        return all(share is None or share[0].is_shared(share[1]) for share in self._shares(tensors))

    def content(self, tensors: Tensors) -> Any:
        found = [None if share is None else share[0].content(share[1]) for share in self._shares(tensors)]
        missing = any(made is None and part is not None for made, part in zip(found, self.parts, strict=True))
        return None if missing else found

    def settle(self) -> Answer | None:
        held = tuple(part[0].pack for part in self.parts if part is not None)
        if None in held:
            return None
        content = [None if part is None or part[0].pack is None else part[0].pack.content for part in self.parts]
        return functools.partial(self._answer, content), tuple(pack for pack in held if pack is not None)

    def __call__(self, x: Any, residual: Any, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        if content is None:
            shares = [share for share in self._shares(tensors) if share is not None]
            for operator, weights in shares:
                x = operator(x, residual if operator is shares[-1][0] else None, *weights)
            return x  # type: ignore[no-any-return]
        return self._answer(content, x, residual)

    def _answer(self, content: Any, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        first, middle, last = content
        image = transpose.to_channels_last(x, x.dtype if x.stride(1) == 1 else self.product)
        return kernel.inverted_residual(
            image, _pointwise(first), kernel.Middle(middle.packed, middle.bias, middle.post_op, middle.out), _pointwise(last),
            residual=residual,
        )  # fmt: skip


def _pointwise(made: Any) -> kernel.Pointwise | None:
    return None if made is None else kernel.Pointwise(made.packed, made.bias, made.post_op, made.out)
