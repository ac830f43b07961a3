# SPDX-License-Identifier: Apache-2.0
"""Which modules get a graph: the outermost ones of a script's calls, met when one of their layers is."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.optimize import names
from slipstream.optimize.graph.root import RootCall
from slipstream.optimize.options import Options, say_once

SLOT = "_compiled_call_impl"

_passed_over: list[str] = torch.jit._recursive.ignored_attributes
"""What torch.jit.script does not look at in a module. It lacks the call slot, and trips over what is put there."""

_answering: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def notice(root: nn.Module, name: str, options: Options, inner: Callable[..., Any] | None = None) -> None:
    """Let a `RootCall` answer for this module from its next call on; ``inner`` is what answered until now, if anything."""
    if not options.graph or root in _answering:
        return
    if not root._modules or isinstance(root, torch.jit.ScriptModule):
        return
    if root.__dict__.get(SLOT) is not None or type(root).__call__ is not nn.Module.__call__:
        return  # compiled by the script itself, or called in a way of its own
    if not names.whole_is_wanted(root, name):
        return
    if not native.available():
        say_once("graph tier", f"it lowers to native kernels: {native.reason()}")
        return
    if options.decides_only:
        log.note(f"{name}.graph: whole model", False, "not captured: that takes a second call")
    try:
        root.__dict__[SLOT] = RootCall(root, name, options, inner)
        if SLOT not in _passed_over:
            _passed_over.append(SLOT)
    except Exception as error:  # noqa: BLE001 - a failure of ours: the layers have their pieces all the same
        log.note(f"{name}.graph: whole model", False, f"slipstream failed: {error!r}")
        return
    _answering.add(root)


def root_call(root: nn.Module) -> RootCall | None:
    """What answers for this module, if a `RootCall` does."""
    found = root.__dict__.get(SLOT)
    return found if isinstance(found, RootCall) else None


def let_go() -> None:
    """Undo every `notice`."""
    for root in list(_answering):
        if isinstance(root.__dict__.get(SLOT), RootCall):
            del root.__dict__[SLOT]
    if SLOT in _passed_over:
        _passed_over.remove(SLOT)
    _answering.clear()
