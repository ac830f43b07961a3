# SPDX-License-Identifier: Apache-2.0
"""A function that a graph was made of may be replaced later: ``Attention.forward = faster``, ``torch.softmax = mine``.

Dynamo's guards ask for an object's class, and not what stands in it, nor in torch. Each function that was read is looked for in
the classes of all objects that were, each that the graph calls in torch, and has to be found there again.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _is_from_torch
from torch.fx.node import _get_qualified_name

from slipstream.optimize import gates
from slipstream.optimize.graph.capturing.deviations import named
from slipstream.optimize.graph.capturing.refusals import CaptureRefused

_BEHIND: dict[type, str] = {staticmethod: "__func__", classmethod: "__func__", property: "fget"}
"""What stands in a class for a function, by where that is."""

_CALLING = ("__call__", "_call_impl")
"""What calls every module, and what counters of calls and tracers put their own in place of. Dynamo calls forward itself."""


class Standing:
    """What one capture found. Raises CaptureRefused where somebody's own function calls all modules."""

    def __init__(self, forward: types.FunctionType) -> None:
        if not gates.nobody_else_calls():
            raise CaptureRefused("nn.Module.__call__ is not PyTorch's own")
        self._read = {forward}
        self._owners: list[Any] = []
        self._names: list[str] = []
        self._values: list[Any] = []

    def instead(self) -> list[tuple[Any, str, Any]]:
        """Whose attribute of which name is what during the capture."""
        from torch._dynamo.symbolic_convert import InliningInstructionTranslator

        build = InliningInstructionTranslator.build_inline_tracer

        def noted(parent: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
            if (read := getattr(function, "fn", None)) is not None:
                self._read.add(read)
            return build(parent, function, *args, **kwargs)

        return [(InliningInstructionTranslator, "build_inline_tracer", staticmethod(noted))]

    def keep(self, seen: set[type], graph: fx.Graph) -> None:
        """From here on all is to be as it is now. ``seen``: the classes of the objects that were read.

        Raises CaptureRefused where the script has put its own in place of one of torch's functions. A graph's code calls those
        by name; what stands there may call the one that the graph has read, which would be the script's again.
        """
        found = {(nn.Module, name): getattr(nn.Module, name) for name in _CALLING} | dict(_of_torch(graph))
        for kind in {base for one in seen for base in one.__mro__ if base is not object}:  # bases for what ``super()`` found
            for name, owner in self._names_in(kind):
                asked = nn.Module if owner is nn.Module else kind  # what all modules have from there is looked for once
                found[asked, name] = getattr(asked, name)
        self._owners, self._names = [owner for owner, _ in found], [name for _, name in found]
        self._values = list(found.values())

    def hold(self) -> bool:
        """Whether every function that was read is still the one that would be called."""
        try:
            return list(map(getattr, self._owners, self._names)) == self._values  # 30 ns each
        except AttributeError:
            return False

    def _names_in(self, kind: type) -> Iterator[tuple[str, type]]:
        """Names under which it has a function that was read, and the class where that stands."""
        names: set[str] = set()
        for owner in kind.__mro__:
            for name, value in vars(owner).items():
                if name not in names and isinstance(name, str):
                    names.add(name)
                    if _function_in(value) in self._read:
                        yield name, owner


def _function_in(value: Any) -> Any:
    """The function behind what stands in a class; None of anything else."""
    behind = _BEHIND.get(type(value))
    value = value if behind is None else getattr(value, behind)
    return value if isinstance(value, types.FunctionType) else None


def _of_torch(graph: fx.Graph) -> Iterator[tuple[tuple[Any, str], Any]]:
    """(where, name) and function of each that the graph calls."""
    for node in graph.nodes:
        if node.op == "call_method" and hasattr(torch.Tensor, str(node.target)):
            yield (torch.Tensor, str(node.target)), getattr(torch.Tensor, str(node.target))
        if node.op != "call_function" or not _is_from_torch(node.target):
            continue
        package, _, path = _get_qualified_name(node.target).partition(".")
        if package == "torch" and named(path) is not node.target:
            raise CaptureRefused(f"the script has put another function in place of torch.{path}")
        name = path.rpartition(".")[2]
        for owner in (torch, nn.functional):  # both: many a function of the latter calls that of the same name
            if name in vars(owner):
                yield (owner, name), vars(owner)[name]
