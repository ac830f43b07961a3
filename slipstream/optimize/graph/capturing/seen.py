# SPDX-License-Identifier: Apache-2.0
"""What a trace has seen of the script's objects has to be so when its guards are made, which is when they are told values.

The script runs on while a trace reads its modules. Where it sets a number, a list's length or a function meanwhile, the graph
would be made of what was, and the guard would ask for what is.
"""

from __future__ import annotations

import collections
import enum
import types
from typing import Any

import torch

from slipstream.optimize.graph.capturing.refusals import CaptureDisturbed

_PLAIN = frozenset(
    {
        int, float, bool, complex, str, bytes, type(None), range,
        torch.dtype, torch.device, torch.layout, torch.memory_format,
    }
)  # fmt: skip
_ITSELF = (enum.Enum, type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_COUNTED = (list, tuple, set, frozenset, collections.deque)

_CHANGING = object()
"""Stands for what looked different from one reading to the next: nothing is like it."""


class Seen:
    """By one capture. ``classes``: those that it saw, and of the objects that it saw."""

    def __init__(self) -> None:
        self.classes: set[type] = set()
        self._looks: dict[Any, Any] = {}
        self._reading: Any = None

    def instead(self) -> list[tuple[Any, str, Any]]:
        """Whose attribute of which name is what during the capture."""
        from torch._dynamo.guards import GuardBuilder
        from torch._dynamo.variables.builder import VariableBuilder

        wrap, get = VariableBuilder._call_impl, GuardBuilder.get

        def noted(builder: Any, value: Any) -> Any:
            self._note(builder.tx.output, builder.source, value)
            return wrap(builder, value)

        def compared(builder: Any, guard: Any, *args: Any, **kwargs: Any) -> Any:
            value = get(builder, guard, *args, **kwargs)
            source = getattr(guard, "originating_source", guard)
            if source in self._looks and self._looks[source] != look(value):
                raise CaptureDisturbed(f"the script changed {source.name} meanwhile")
            return value

        return [(VariableBuilder, "_call_impl", noted), (GuardBuilder, "get", compared)]

    def _note(self, reading: Any, source: Any, value: Any) -> None:
        if reading is not self._reading:  # dynamo begins anew, with another graph
            self._reading = reading
            self._looks.clear()
            self.classes.clear()
        self.classes.add(value if isinstance(value, type) else type(value))
        now = look(value)
        if self._looks.setdefault(source, now) != now:
            self._looks[source] = _CHANGING


def look(value: Any) -> Any:
    """What of a value a graph may have been made of; what it holds has looks of its own."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, _ITSELF):
        return kind, value
    if isinstance(value, types.MethodType):
        return kind, value.__func__
    if isinstance(value, torch.Tensor):
        return kind, value.dtype, value.requires_grad  # guards of its sizes and strides are told what the trace was
    if isinstance(value, dict):
        keys = tuple(value)
        return kind, keys if all(type(key) in _PLAIN for key in keys) else len(keys)
    if isinstance(value, _COUNTED):
        return kind, len(value)
    return kind
