# SPDX-License-Identifier: Apache-2.0
"""Which ScriptModules and exported programs get a graph: in a process that is covered, or made from a model that is.

As with leaf classes, a descriptor stands in nn.Module's own call slot, here of torch.jit's and torch.export's classes. What
TorchScript knows of a module lies behind ``_c`` and does not change: saving, copying and freezing see what there was.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.optimize import names
from slipstream.optimize.graph.root import RootCall
from slipstream.optimize.graph.torchscript import walk
from slipstream.optimize.graph.torchscript.call import ScriptCall
from slipstream.optimize.graph.torchscript.exported import MAKER, ExportedCall
from slipstream.optimize.options import Options, say_once, set_up

SLOT = "_compiled_call_impl"

_everywhere: list[Options] = []
_asked: dict[int, tuple[StorageWeakRef, Options]] = {}
_asked_values: dict[Hashable, Options] = {}
_answering: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


class _Slot:
    """The class attribute; what a module's own dictionary holds goes before it."""

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        return None if module is None else _meet(module)


def open_slots() -> None:
    """Put the descriptor into torch.jit's class, and torch.export's once that is there; twice does no harm."""
    for kind in _classes():
        if SLOT not in kind.__dict__:
            setattr(kind, SLOT, _Slot())


def know_exported() -> None:
    """torch.export has its class now."""
    if _everywhere or _asked:
        open_slots()


def is_graph(module: nn.Module) -> bool:
    """Whether a module is one of those."""
    return isinstance(module, tuple(_classes()))


def _classes() -> list[type[nn.Module]]:
    exported = getattr(sys.modules.get(MAKER), "_StatefulGraphModule", None)
    return [torch.jit.ScriptModule] if exported is None else [torch.jit.ScriptModule, exported]


def cover_all(options: Options) -> None:
    """Every ScriptModule of the process from now on."""
    _everywhere[:] = [options]


def cover_copies_of(model: nn.Module, options: Options) -> None:
    """What is traced or scripted from this model holds the same weights in the same memory, also once it is frozen.

    What is traced in a region of autocast holds them rounded.
    """
    for number in [number for number, (storage, _) in _asked.items() if storage.expired()]:
        del _asked[number]
    for weight in model.parameters():
        if weight.is_cpu and weight.layout is torch.strided:
            storage = StorageWeakRef(weight.untyped_storage())
            _asked[storage.cdata] = storage, options
            if weight.dim() > 1:
                _asked_values[_likeness(weight)] = options


def let_go() -> None:
    """Undo all of the above."""
    for kind in _classes():
        if isinstance(kind.__dict__.get(SLOT), _Slot):
            delattr(kind, SLOT)
    for module in list(_answering.values()):
        if isinstance(module.__dict__.get(SLOT), RootCall):
            del module.__dict__[SLOT]
    _everywhere.clear()
    _asked.clear()
    _asked_values.clear()
    _answering.clear()


def call_of(module: nn.Module) -> RootCall | None:
    """What answers for this module, if a graph may."""
    found = module.__dict__.get(SLOT)
    return found if isinstance(found, RootCall) else None


def notice(module: nn.Module, name: str, options: Options) -> Any:
    """Let a graph answer for this module from some call on. Returns what waits for that, or None; it stands in the slot."""
    made: RootCall | None = None
    if not options.graph or not names.whole_is_wanted(module, name):
        pass
    elif not native.available():
        say_once("graph tier", f"it lowers to native kernels: {native.reason()}")
    elif (kind := _foreign_kind(module)) is not None:
        log.note(f"{name}.graph: whole model", False, f"not captured: {kind} is in it")
    else:
        made = (ScriptCall if isinstance(module, torch.jit.ScriptModule) else ExportedCall)(module, name, options)
    if made is not None:
        _answering[id(module)] = module
    module.__dict__[SLOT] = made
    return made


def _foreign_kind(module: nn.Module) -> str | None:
    """What is in it that no capture can hold, as far as that shows without the second that one takes."""
    graph = getattr(getattr(module, "forward", None), "inlined_graph", None)  # a ScriptModule's
    return None if graph is None else walk.foreign_kind(graph)


def _meet(module: nn.Module) -> Any:
    """First call of such a module. Whatever fails here is ours, and the original runs."""
    if torch.utils.data.get_worker_info() is not None or module.__dict__.get("_initializing"):
        return None
    try:
        with set_up.timed():
            options = _everywhere[0] if _everywhere else _asked_for(module)
            if options is not None:
                return notice(module, names.of(module), options)
            module.__dict__[SLOT] = None
    except Exception as error:  # noqa: BLE001 - a failure of ours: the module is left alone and the report says so
        log.note(f"{type(module).__name__}: meet", False, f"slipstream failed: {error!r}")
        module.__dict__[SLOT] = None
    return None


def _asked_for(module: nn.Module) -> Options | None:
    """The options of the model that this one was made from; parameters may have become constants of the graph."""
    if not _asked:
        return None
    method: Any = module.forward
    graph = getattr(method, "inlined_graph", None)
    nodes = () if graph is None else graph.nodes()
    constants = (node.output() for node in nodes if node.kind() == "prim::Constant")
    values = (value.toIValue() for value in constants if value.type().kind() == "TensorType")
    for weight in (*module.parameters(), *values):
        if isinstance(weight, torch.Tensor) and weight.layout is torch.strided and weight.is_cpu:
            found = _asked.get(weight.untyped_storage()._cdata)
            if found is not None:
                return found[1]
            if weight.dtype is torch.bfloat16 and weight.dim() > 1 and _likeness(weight) in _asked_values:
                return _asked_values[_likeness(weight)]
    return None


def _likeness(weight: torch.Tensor) -> Hashable:
    """Its shape and a few of its values, as autocast rounds them."""
    some = weight.detach()[(0,) * (weight.dim() - 1)][:8] if weight.numel() else weight.detach().reshape(-1)
    return tuple(weight.shape), tuple(some.bfloat16().tolist())
