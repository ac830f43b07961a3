# SPDX-License-Identifier: Apache-2.0
"""Names that dynamo puts among the globals of a forward's file, for guards and for the function that it makes of a graph.

It takes them away with the code that it compiled, of which there is none here: they go with the capture. The graph as it was
captured, which is among them and is as large as a small model, goes at once.
"""

from __future__ import annotations

import contextlib
import importlib
import types
import weakref
from collections.abc import Callable
from typing import Any


class Installed:
    """Those of one capture, there for as long as anything holds this."""

    def __init__(self) -> None:
        self._hooks: list[Any] = []
        weakref.finalize(self, _take_away, self._hooks).atexit = False

    def instead(self) -> list[tuple[Any, str, Any]]:
        """Whose attribute of which name is what during the capture."""
        from torch._dynamo import output_graph

        create = output_graph.CleanupHook.create

        def noted(scope: dict[str, Any], name: str, value: Any) -> Any:
            hook = create(scope, name, value)
            self._hooks.append(hook)
            return hook

        return [(output_graph, "CleanupHook", types.SimpleNamespace(create=noted))]

    def function(self, output: Any, graph: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """What dynamo made of a forward, with ``run`` where it calls the ``graph`` of that name.

        Its globals are the forward's own, which it may set as the forward does. They do not hold ``run``, which would have them
        hold it, and what it holds, for ever.
        """
        names: dict[str, Any] = output.f_globals
        for alias, module in output.import_sources.items():
            names.setdefault(alias, importlib.import_module(module))
        names[graph] = _weakly(run)
        made = types.FunctionType(output.bytecode, names, closure=output.closure, argdefs=output.argdefs)
        made.__kwdefaults__ = output.kwdefaults
        made.__dict__["run"] = run
        return self.kept_by(made)

    def kept_by(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which looks these names up and holds them from now on."""
        function.__dict__["installed"] = self
        return function

    def forget(self, graph: str) -> None:
        """The ``graph`` of that name, until `function` puts something in its place."""
        for hook in self._hooks:
            if hook.name == graph:
                hook.scope[graph] = None


def _weakly(run: Callable[..., Any]) -> Callable[..., Any]:
    held = weakref.ref(run)

    def call(*args: Any) -> Any:
        function = held()
        assert function is not None  # it is there as long as the function that calls this
        return function(*args)

    return call


def _take_away(hooks: list[Any]) -> None:
    for hook in hooks:
        with contextlib.suppress(KeyError):
            hook()
