# SPDX-License-Identifier: Apache-2.0
"""Run 'module:function' once a module has been imported, without ever making that import fail.

One finder at the head of `sys.meta_path` knows the awaited names. It asks the other finders for the real
spec and wraps `exec_module` on that one loader object, so that type, source and path of the loader stay what
they are. `importlib.util.find_spec("torch")`, by which many libraries see whether torch is there, triggers
nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_awaited: dict[str, list[str]] = {}


def after(module: str, function: str) -> None:
    """Call ``function`` ('module:function') after the import of ``module``; at once where that is past."""
    loaded = sys.modules.get(module)
    if loaded is not None and not _is_being_imported(loaded):
        _call(function)
        return
    _awaited.setdefault(module, []).append(function)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def forget() -> None:
    """Wait for nothing any more."""
    _awaited.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder:
    """Finds nothing itself; marks the loaders of the modules that are awaited."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _awaited:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                _mark(spec)
                return spec
        return None


_finder = _Finder()


def _mark(spec: ModuleSpec) -> None:
    loader = spec.loader
    original = getattr(loader, "exec_module", None)
    if loader is None or original is None:
        return

    def exec_module(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)
        original(module)
        _fire(spec.name)

    try:
        loader.exec_module = exec_module  # type: ignore[method-assign]
    except AttributeError as error:  # a loader with slots or built in: it is left as it is
        _report(error)


def _fire(name: str) -> None:
    for function in _awaited.pop(name, []):
        _call(function)
    if not _awaited:
        forget()


def _call(function: str) -> None:
    """Our own failure must not become a failure of the user's import."""
    try:
        module, _, attribute = function.partition(":")
        getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong here is ours alone; it is logged
        _report(error)


def _report(error: Exception) -> None:
    from slipstream.autopatch import own_failures

    own_failures.note("import hook", error)


def _is_being_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
