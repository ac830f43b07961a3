# SPDX-License-Identifier: Apache-2.0
"""Gives each output the strides that the script expects: those that it had in the capture."""

from __future__ import annotations

import torch
from torch import fx

from slipstream.optimize.graph.nodes import tensor
from slipstream.optimize.pieces import layouts


def restore_layouts(graph: fx.Graph) -> None:
    """Insert copies, in place, that do something only where a result lies otherwise than expected."""
    output = next(node for node in graph.nodes if node.op == "output")
    for source in output.all_input_nodes:
        made = tensor(source)
        if made is None or source.op == "placeholder" or made.dim() == 0:
            continue
        with graph.inserting_before(output):
            if made.is_contiguous():
                right = graph.call_method("contiguous", (source,))
            elif made.dim() in layouts.CHANNELS_LAST and made.is_contiguous(memory_format=layouts.CHANNELS_LAST[made.dim()]):
                right = graph.call_method("contiguous", (source,), {"memory_format": layouts.CHANNELS_LAST[made.dim()]})
            else:
                right = graph.call_function(as_strided_as, (source, _order(made)))
        right.meta = dict(source.meta)
        output.replace_input_with(source, right)


def as_strided_as(y: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """``y`` with its axes in memory in this order, outermost first; ``y`` itself where they are, also with gaps."""
    permuted = y.permute(order)
    strides = permuted.stride()
    if all(first >= second for first, second in zip(strides, strides[1:], strict=False)):
        return y
    back = sorted(range(len(order)), key=order.__getitem__)
    return permuted.contiguous().permute(back)


as_strided_as.__module__ = "slipstream"


def _order(made: torch.Tensor) -> tuple[int, ...]:
    strides = [stride if isinstance(stride, int) else stride.node.hint for stride in made.stride()]
    return tuple(sorted(range(made.dim()), key=lambda axis: -strides[axis]))
