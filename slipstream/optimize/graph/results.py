# SPDX-License-Identifier: Apache-2.0
"""Gives each output the dtype and the strides that the script expects: those that it had in the capture.

An output that is a view shows the strides of what it is a view of; so that tensor is put right, and the view taken anew.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from slipstream.optimize.graph.nodes import name_of, strides_of, tensor, value
from slipstream.optimize.graph.precision import VIEWS
from slipstream.optimize.pieces import layouts


def restore(graph: fx.Graph, low: set[fx.Node]) -> None:
    """Insert casts and copies, in place, that do something only where a result is otherwise; ``low`` are bfloat16 now."""
    output = next(node for node in graph.nodes if node.op == "output")
    for source in output.all_input_nodes:
        views = _views_above(source)
        base = views[-1].args[0] if views else source
        if not isinstance(base, fx.Node) or tensor(base) is None or base.op in ("placeholder", "get_attr"):
            continue
        with graph.inserting_before(output):
            right = _put_right(graph, base, base in low)
            for view in reversed(views):
                right = _taken_of(graph, view, right)
        output.replace_input_with(source, right)
    graph.eliminate_dead_code()


def _views_above(node: fx.Node) -> list[fx.Node]:
    """The node and those above it, as long as they are views."""
    found = []
    while name_of(node) in VIEWS and node.args and isinstance(node.args[0], fx.Node):
        found.append(node)
        node = node.args[0]
    return found


def _taken_of(graph: fx.Graph, view: fx.Node, base: fx.Node) -> fx.Node:
    """A copy of a view, of another tensor."""
    before = view.args[0]
    return graph.node_copy(view, lambda node: base if node is before else node)


def follow(fast: fx.GraphModule, inputs: Sequence[Any], got: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Have outputs laid out as torch's own were, where nothing but strides differs; whether that was so and can be done.

    A capture may tell them otherwise than torch then makes them: a reshape leaves any stride along an axis of one, by which a
    convolution tells in which order channels lie.
    """
    output = next(node for node in fast.graph.nodes if node.op == "output")
    places = [number for number, (ours, torchs) in enumerate(zip(got, wanted, strict=True)) if _differ(ours, torchs)]
    memories = Counter(_address(made) for made in (*inputs, *wanted) if isinstance(made, torch.Tensor))
    if not places or any(memories[_address(wanted[place])] > 1 for place in places):
        return False  # in the latter case a copy would not be the view that torch's is
    results = list(output.args[0])  # type: ignore[arg-type]
    fixed = all(_is_fixed(value(node)) for node in fast.graph.nodes if node.op == "placeholder")
    with fast.graph.inserting_before(output):
        for place in places:
            made = wanted[place]
            results[place] = _as_in_memory(fast.graph, results[place], made, made.stride() if fixed else None)
    output.args = (tuple(results),)
    fast.recompile()
    return True


def _differ(ours: Any, torchs: Any) -> bool:
    """Whether by strides, and by nothing else that can be seen without values."""
    if not isinstance(torchs, torch.Tensor):
        return False
    return (ours.dtype, ours.shape) == (torchs.dtype, torchs.shape) and ours.stride() != torchs.stride()


def _is_fixed(given: Any) -> bool:
    """Whether an input has the same sizes in every call that the capture holds for."""
    if isinstance(given, torch.Tensor):
        return all(isinstance(length, int) for length in given.shape)
    return not isinstance(given, torch.SymInt)


def _address(made: torch.Tensor) -> int:
    return made.untyped_storage().data_ptr()


def _put_right(graph: fx.Graph, base: fx.Node, is_low: bool) -> fx.Node:
    made = tensor(base)
    assert made is not None
    right = graph.call_method("to", (base, torch.float32)) if is_low else base
    return right if made.dim() == 0 else _as_in_memory(graph, right, made, _known(made))


def _as_in_memory(graph: fx.Graph, right: Any, made: torch.Tensor, strides: tuple[int, ...] | None) -> fx.Node:
    """A node for what is laid out as this tensor is, with these strides, if they are known."""
    if made.is_contiguous():
        return graph.call_function(laid_out, (right, torch.contiguous_format, strides))
    if made.dim() in layouts.CHANNELS_LAST and made.is_contiguous(memory_format=layouts.CHANNELS_LAST[made.dim()]):
        return graph.call_function(laid_out, (right, layouts.CHANNELS_LAST[made.dim()], strides))
    return graph.call_function(with_axes_in_order, (right, _order(made)))


def laid_out(y: torch.Tensor, memory_format: torch.memory_format, strides: tuple[int, ...] | None) -> torch.Tensor:
    """``y`` in this format with just these strides (None: a new tensor's), also along axes of one, which may have any."""
    y = y.contiguous(memory_format=memory_format)
    if 1 not in y.shape or not y.numel():
        return y
    wanted = strides or torch.empty_like(y, device="meta", memory_format=memory_format).stride()
    return y if wanted == y.stride() else y.as_strided(y.shape, wanted)


def _known(made: torch.Tensor) -> tuple[int, ...] | None:
    """The strides, where they are the same for every call that the capture holds for."""
    return made.stride() if all(isinstance(stride, int) for stride in made.stride()) else None


def with_axes_in_order(y: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """``y`` with its axes in memory in this order, outermost first; ``y`` itself where they are, also with gaps."""
    permuted = y.permute(order)
    if all(first >= second for first, second in itertools.pairwise(permuted.stride())):
        return y
    back = sorted(range(len(order)), key=order.__getitem__)
    return permuted.contiguous().permute(back)


laid_out.__module__ = with_axes_in_order.__module__ = "slipstream"


def _order(made: torch.Tensor) -> tuple[int, ...]:
    strides = strides_of(made)
    return tuple(sorted(range(made.dim()), key=lambda axis: -strides[axis]))
