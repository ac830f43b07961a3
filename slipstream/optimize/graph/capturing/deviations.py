# SPDX-License-Identifier: Apache-2.0
"""Where dynamo reads a script otherwise than Python runs it: put right, or refused.

- It tells who asks that all is being compiled, and a script that keeps statistics or checks its inputs only where it is not
  would be captured without them. Nobody compiles it, and that is what it is told. Where the answer decides how something is
  written for dynamo to read, and not what is computed, it stays yes: in PyTorch's own files, in ours, and in transformers'
  (masks without branches on values), whose models' answers are compared.
- A deque that the script made has a longest length, which dynamo forgets (2.13): it would read one element too many.
- What numpy makes of no dimension is a number there, and an array of no dimension here.
"""

from __future__ import annotations

import collections
from typing import Any

import torch

from slipstream.optimize.graph.capturing.refusals import CaptureRefused

_ASKED = ("compiler.is_compiling", "compiler.is_dynamo_compiling", "_utils.is_compiling", "_dynamo.external_utils.is_compiling")

_TOLD = frozenset({"torch", "transformers", __name__.partition(".")[0]})
"""The packages whose files may know that dynamo reads them."""


def instead() -> list[tuple[Any, str, Any]]:
    """Whose attribute of which name is what during a capture."""
    from torch._dynamo.codegen import PyCodegen
    from torch._dynamo.side_effects import SideEffects
    from torch._dynamo.variables import ConstantVariable, NumpyNdarrayVariable
    from torch._dynamo.variables.torch import TorchInGraphFunctionVariable

    call, track, hand_on = TorchInGraphFunctionVariable.call_function, SideEffects.track_mutable, PyCodegen.add_graph_output
    asked = [function for name in _ASKED if (function := named(name)) is not None]

    def call_function(called: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if any(called.value is function for function in asked) and not _is_told(tx):
            return ConstantVariable.create(False)
        return call(called, tx, args, kwargs)

    def track_mutable(effects: Any, value: Any, variable: Any) -> Any:
        if isinstance(value, collections.deque):
            variable.maxlen = ConstantVariable.create(value.maxlen)
        return track(effects, value, variable)

    def add_graph_output(codegen: Any, value: Any) -> Any:
        if isinstance(value, NumpyNdarrayVariable) and value.as_proxy().node.meta["example_value"].ndim == 0:
            raise CaptureRefused("it hands on a number of numpy's")
        return hand_on(codegen, value)

    return [
        (TorchInGraphFunctionVariable, "call_function", call_function),
        (SideEffects, "track_mutable", track_mutable),
        (PyCodegen, "add_graph_output", add_graph_output),
    ]


def named(name: str) -> Any:
    """What stands in torch under this name now, dots and all; None where nothing does."""
    found: Any = torch
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _is_told(tx: Any) -> bool:
    """By the file that is being read; where that is a package's own ``is_...``, by who calls it."""
    while tx.f_code.co_name.startswith("is_") and getattr(tx, "parent", None) is not None:
        tx = tx.parent
    return str(tx.f_globals.get("__name__")).partition(".")[0] in _TOLD
