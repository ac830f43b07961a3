# SPDX-License-Identifier: Apache-2.0
"""What follows from a model's weights alone, computed once for as long as they stay as they are."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.operators.operator import Answer, PackedOperator, Tensors


class Constant(PackedOperator):
    """Takes the weights that ``part`` has as placeholders, in their order; ``part`` computes one tensor of them.

    The result is shared by all calls and must not be written into.
    """

    kind = "constant"
    first_weight = 0
    follows = True

    def __init__(self, part: fx.Graph, out: torch.dtype) -> None:
        super().__init__(out, out)
        self.part = part
        self.fixed: tuple[torch.Tensor | None] | None = None

    def pack_kind(self, tensors: Tensors) -> Hashable:
        return self.__name__

    def sources(self, tensors: Tensors) -> Tensors:
        return tensors

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        """In a tuple: it may be None, as a mask that hides nothing is."""
        with torch.inference_mode(False), torch.no_grad():  # what is packed from it needs a version counter
            made: torch.Tensor | None = evaluate(self.part, tensors)
        return (made,), 0 if made is None else made.numel() * made.itemsize

    def content(self, tensors: Tensors) -> Any:
        if tensors:
            return super().content(tensors)
        if self.fixed is None:
            self.fixed, _ = self.make(tensors)
        return self.fixed

    def settle(self, tensors: Tensors) -> Answer | None:
        pack = self.fitting(tensors)
        if pack is None:
            return None
        (made,) = pack.content
        return lambda *_: made, (pack,)

    def __call__(self, *tensors: Any) -> torch.Tensor:
        content = self.content(tensors)
        made: torch.Tensor = evaluate(self.part, tensors) if content is None else content[0]
        return made


def evaluate(part: fx.Graph, inputs: Tensors) -> Any:
    """What a graph of functions and methods returns for these values of its placeholders."""
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in part.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        match node.op:
            case "placeholder":
                values[node] = next(given)
            case "call_function":
                values[node] = node.target(*args, **kwargs)
            case "call_method":
                values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
            case "output":
                return args[0]
    raise AssertionError("a graph without an output")
