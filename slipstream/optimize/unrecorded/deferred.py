# SPDX-License-Identifier: Apache-2.0
"""A call of a whole model as one operation of autograd's: forward without recording, backward by the original, again.

Autograd itself sees to it that parameters and inputs are those of the forward (their versions are checked), and that memory is
freed by the first backward unless it is to be kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


class Unlike(Exception):
    """The result has another form than those that were seen before."""


@dataclass(frozen=True)
class Form:
    """What a model's results look like: their structure, and of each tensor, but for repeated ones, how it lies in memory
    (torch's own results may lie otherwise where nothing is recorded) and what made it.

    ``makers`` are the names of `grad_fn`s, None for a tensor that needs no gradient.
    """

    structure: Any
    places: tuple[int | None, ...]
    layouts: tuple[Any, ...]
    makers: tuple[str | None, ...]


@dataclass
class Call:
    """``fast()`` answers without recording, ``plain()`` by the original; ``on_backward()`` is told when one comes."""

    module: nn.Module
    form: Form
    inputs: list[torch.Tensor]
    parameters: list[torch.Tensor]
    fast: Callable[[], Any]
    plain: Callable[[], Any]
    on_backward: Callable[[], None]
    numbers: list[Any] = field(default_factory=list)
    """What of the result is no tensor, with gaps for those: they would hold their own history."""


def parts_of(result: Any) -> tuple[list[Any], Any, list[torch.Tensor], tuple[int | None, ...]]:
    """The leaves of a structure and the structure; its tensors, each once; and for each leaf which of them it is."""
    leaves, structure = pytree.tree_flatten(result)
    numbers: dict[int, int] = {}
    tensors: list[torch.Tensor] = []
    places = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and id(leaf) not in numbers:
            numbers[id(leaf)] = len(tensors)
            tensors.append(leaf)
        places.append(numbers.get(id(leaf)))
    return leaves, structure, tensors, tuple(places)


def form_of(result: Any) -> Form:
    _, structure, tensors, places = parts_of(result)
    makers = tuple(type(tensor.grad_fn).__name__ if tensor.requires_grad else None for tensor in tensors)
    return Form(structure, places, tuple(map(_layout, tensors)), makers)


def _layout(tensor: torch.Tensor) -> Any:
    """Dtype, and the order of axes in memory where it is not theirs; not the sizes."""
    if tensor.is_contiguous():
        return tensor.dtype
    strides = tensor.stride()
    return tensor.dtype, sorted(range(len(strides)), key=strides.__getitem__)


def answer(call: Call) -> Any:
    """The result, with gradients to be had. Raises Unlike."""
    made = _Deferred.apply(call, *call.inputs, *call.parameters)  # type: ignore[no-untyped-call]
    given = [
        tensor if maker is None else _named(maker).apply(tensor)  # type: ignore[attr-defined]
        for tensor, maker in zip(made, call.form.makers, strict=True)
    ]
    leaves = [leaf if place is None else given[place] for leaf, place in zip(call.numbers, call.form.places, strict=True)]
    return pytree.tree_unflatten(leaves, call.form.structure)


class _Deferred(torch.autograd.Function):
    """From a call's inputs and parameters to the tensors of its result."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: torch.Tensor) -> Any:
        leaves, structure, made, places = parts_of(call.fast())
        call.numbers = [leaf if place is None else None for leaf, place in zip(leaves, places, strict=True)]
        if (structure, places, tuple(map(_layout, made))) != (call.form.structure, call.form.places, call.form.layouts):
            raise Unlike
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        made = [owned(tensor) for tensor in made]
        ctx.mark_non_differentiable(*(t for t, maker in zip(made, call.form.makers, strict=True) if maker is None))
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        call: Call = ctx.call
        call.on_backward()
        tensors = ctx.saved_tensors  # raises where one of them was changed meanwhile
        with torch.enable_grad(), _in_evaluation(call.module):
            _, _, made, _ = parts_of(call.plain())
        pairs = [(t, g) for t, g in zip(made, gradients, strict=True) if g is not None and t.requires_grad]
        if not pairs:
            return None, *(None for _ in tensors)
        outputs, given = zip(*pairs, strict=True)
        return None, *differentiated(outputs, given, tensors, ctx.needs_input_grad[1:])


def differentiated(results: Any, gradients: Any, inputs: Sequence[Any], needed: Sequence[bool]) -> Iterator[Any]:
    """The gradients of those inputs that need one, None for the others; to be differentiated again where that is asked for."""
    wanted = [given for given, needs in zip(inputs, needed, strict=True) if needs]
    again = torch.is_grad_enabled()
    found = iter(torch.autograd.grad(results, wanted, gradients, create_graph=again, allow_unused=True))
    return (next(found) if needs else None for needs in needed)


@functools.lru_cache(256)
def _named(maker: str) -> type[torch.autograd.Function]:
    """Hands on what it is given, under the name that a script's tensor prints."""

    class Handed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
            return owned(tensor.detach())

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0]

    Handed._backward_cls.__name__ = Handed._backward_cls.__qualname__ = maker  # type: ignore[attr-defined]
    return Handed


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, but no view of another tensor: autograd forbids changing those in place."""
    if not tensor._is_view():
        return tensor
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    """As it was in the forward, wherever it is by now."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
