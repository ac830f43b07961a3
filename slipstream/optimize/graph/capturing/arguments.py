# SPDX-License-Identifier: Apache-2.0
"""A call's arguments: as the local variables that a capture's guards speak of, by their sizes, and others like them."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn

Locals = dict[str, Any]

CACHES = "transformers.cache_utils"
"""The module of the classes of transformers' caches, and of their layers."""

_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD


def function_of(module: nn.Module) -> types.FunctionType | None:
    """The plain function behind ``module.forward``, where it is an ordinary method."""
    method = module.forward
    function = getattr(method, "__func__", None)
    if not isinstance(function, types.FunctionType) or getattr(method, "__self__", None) is not module:
        return None
    return function


class Arguments:
    """How a call's arguments become the local variables that guards speak of."""

    def __init__(self, function: types.FunctionType) -> None:
        self.signature = inspect.signature(function, follow_wrapped=False)  # its own, not that of a function it wraps
        self.cells = tuple(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        parameters = self.signature.parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        self.is_simple = kinds <= {_NAMED, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
        self.names = tuple(parameter.name for parameter in parameters if parameter.kind is _NAMED)
        self.rest = tuple(parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.VAR_KEYWORD)
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty} | {name: {} for name in self.rest}
        self.every = frozenset(self.signature.parameters)

    def bind(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Locals:
        """Raises TypeError for arguments that do not fit."""
        values = self._bind_simply((module, *args), kwargs) if self.is_simple else None
        if values is None:
            bound = self.signature.bind(module, *args, **kwargs)
            bound.apply_defaults()
            values = bound.arguments
        return {**{name: cell.cell_contents for name, cell in self.cells}, **values}

    def _bind_simply(self, given: tuple[Any, ...], kwargs: dict[str, Any]) -> Locals | None:
        """What takes inspect's binding ten times as long; None for calls that it has to judge."""
        taken = self.names[: len(given)]
        if len(taken) < len(given) or any(name in kwargs for name in taken + self.rest):
            return None
        values = {**self.defaults, **dict(zip(taken, given, strict=True)), **kwargs}
        return values if values.keys() == self.every else None


def shapes_of(*values: Any) -> Hashable:
    """The shapes of all tensors in arguments, in order."""
    return tuple(tuple(leaf.shape) for leaf in tensors_in(values))


def bucket_of(*values: Any) -> Hashable:
    """What the speed depends on, coarsely: the sizes of the tensors to the next power of two."""
    return tuple(leaf.numel().bit_length() for leaf in tensors_in(values))


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Those in a structure of arguments, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [leaf for part in value for leaf in tensors_in(part)] if isinstance(value, (tuple, list)) else []


def grows(*values: Any) -> bool:
    """Whether there is one of transformers' caches among arguments, which the call itself makes longer."""
    return any(is_cache(container) for container in containers_in(values))


def containers_in(value: Any) -> Iterator[Any]:
    """The lists, dictionaries and caches in a structure of arguments: what `alike` makes anew and a call can change."""
    if type(value) in (list, dict) or is_cache(value):
        yield value
    if type(value) in (tuple, list, dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers_in(part)


def is_cache(value: Any) -> bool:
    """Whether it is a cache of transformers', or one of its layers."""
    return type(value).__module__ == CACHES


def alike(value: Any, known: dict[int, Any] | None = None) -> Any:
    """The same structure with tensors of the same kind in it, whose values are whatever lies there.

    A capture asks for no value, and holding the script's own tensors would keep their memory. Caches are copied as well: the
    script's grow while the capture is at it.
    """
    known = {} if known is None else known
    if is_cache(value):
        if id(value) not in known:
            known[id(value)] = made = copy.copy(value)
            vars(made).update({name: alike(part, known) for name, part in vars(value).items()})
        return known[id(value)]
    if type(value) is torch.Tensor:
        if id(value) not in known:
            known[id(value)] = _alike(value)
        return known[id(value)]
    if type(value) in (tuple, list):
        return type(value)(alike(part, known) for part in value)
    if type(value) is dict:
        return {key: alike(part, known) for key, part in value.items()}
    return value


def _alike(value: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(value.is_inference()):
        made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device)
    return made.requires_grad_(value.requires_grad) if value.is_leaf and value.requires_grad else made
