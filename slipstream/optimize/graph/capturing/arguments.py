# SPDX-License-Identifier: Apache-2.0
"""How a call's arguments become the local variables that a capture's guards speak of."""

from __future__ import annotations

import inspect
import types
from typing import Any

from torch import nn

Locals = dict[str, Any]

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
