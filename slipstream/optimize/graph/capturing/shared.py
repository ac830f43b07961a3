# SPDX-License-Identifier: Apache-2.0
"""Lists and dictionaries among a call's arguments that the model holds as well, as a cache that hooks fill.

A capture is made with others in their place (`arguments.alike`), and so would never learn that what it writes to the one it
reads from the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from slipstream.optimize.graph.capturing.arguments import containers_in
from slipstream.optimize.graph.capturing.capture import Capture
from slipstream.optimize.graph.capturing.refusals import CaptureRefused


def is_shared(module: nn.Module, arguments: Any) -> bool:
    """Whether a list or dictionary among the arguments is also found in an attribute of the model or of its parts (in one of
    its lists or dictionaries, too), in what their hooks and methods close over, or among their files' globals."""
    given = {id(container) for container in containers_in(arguments)}
    return bool(given) and any(id(held) in given for held in _held_by(module))


def refused_as_shared() -> Capture:
    """In the place of such a capture."""
    raise CaptureRefused("a list or dictionary among its arguments is one that the model holds as well")


def _held_by(module: nn.Module) -> Iterator[Any]:
    files: dict[int, dict[str, Any]] = {}
    for part in module.modules():
        for value in part.__dict__.values():
            yield value
            if type(value) in (tuple, list, dict):
                yield from list(value.values()) if isinstance(value, dict) else list(value)
        method = getattr(getattr(part, "forward", None), "__func__", None)
        for function in (*part._forward_pre_hooks.values(), *part._forward_hooks.values(), method):
            yield from _closed_over(function)
            names = getattr(function, "__globals__", {})
            files[id(names)] = names
    for names in files.values():
        yield from list(names.values())


def _closed_over(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing was put into it yet
            continue
