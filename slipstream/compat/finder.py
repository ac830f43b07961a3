# SPDX-License-Identifier: Apache-2.0
"""Answers imports of old package names out of the tables in `names/`, where the real package is not installed.

The finder stands at the end of `sys.meta_path`: whatever is really installed is found first. The modules that it
makes are empty; a name is looked up in the table when it is asked for, so nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

TABLES = {"intel_extension_for_pytorch": "slipstream.compat.names.intel_extension_for_pytorch"}
"""Old package -> the module with its table."""


def install() -> None:
    """Put the finder at the end of `sys.meta_path`, once."""
    if not any(isinstance(finder, OldNamesFinder) for finder in sys.meta_path):
        sys.meta_path.append(OldNamesFinder())  # type: ignore[arg-type]


def uninstall() -> None:
    """Take the finder away, and the modules that it made."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, OldNamesFinder)]
    for name in [name for name, module in sys.modules.items() if isinstance(module, OldModule)]:
        del sys.modules[name]


class OldModule(ModuleType):
    """A package of the old tree: its attributes come out of the table on first use."""

    def __getattr__(self, name: str) -> Any:
        table, below = _table(self.__name__), _below(self.__name__, name)
        target = table.SERVED.get(below)
        if target is not None:
            value = _resolve(target)
            self.__dict__[name] = value
            return value
        if _is_package(table, below):
            return importlib.import_module(f"{self.__name__}.{name}")
        raise AttributeError(_refusal(table, f"{self.__name__}.{name}", below))

    def __dir__(self) -> list[str]:
        table, below = _table(self.__name__), _below(self.__name__)
        packages = {name.rpartition(".")[2] for name in _packages(table) if name.rpartition(".")[0] == below}
        return sorted({*self.__dict__, *_names_at(table, below), *packages})


class OldNamesFinder:
    """A meta path finder and loader for the packages of `TABLES`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an old module; ImportError with reason and remedy for one that is not served."""
        package, _, below = fullname.partition(".")
        if package not in TABLES or (below and not isinstance(sys.modules.get(package), OldModule)):
            return None  # a real package is installed, and what it lacks is not for us to invent
        table = _table(package)
        program = below.removesuffix(".__main__")
        if _is_package(table, below) or (program != below and program in table.PROGRAMS):
            return ModuleSpec(fullname, self, origin="slipstream.compat", is_package=program == below)  # type: ignore[arg-type]
        if below in table.SERVED or below.endswith("__main__"):
            return None  # a name inside a package and no module: Python then says so itself
        raise ImportError(_refusal(table, fullname, below), name=fullname)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return OldModule(spec.name, f"{spec.name}, served by slipstream.compat.")

    def exec_module(self, module: ModuleType) -> None:
        if not module.__name__.endswith(".__main__"):
            module.__all__ = _names_at(_table(module.__name__), _below(module.__name__))  # type: ignore[attr-defined]

    def get_code(self, fullname: str) -> CodeType:
        """What `python -m` runs, for the programs of the table."""
        module, _, function = _table(fullname).PROGRAMS[_below(fullname).removesuffix(".__main__")].partition(":")
        return compile(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n", fullname, "exec")


def _table(fullname: str) -> Any:
    return importlib.import_module(TABLES[fullname.partition(".")[0]])


def _below(fullname: str, name: str = "") -> str:
    """The dotted name without the package."""
    return ".".join(part for part in (fullname.partition(".")[2], name) if part)


def _is_package(table: Any, below: str) -> bool:
    """Whether there is a module at this place: the package itself, or one above a name or a program."""
    return not below or below in _packages(table)


def _packages(table: Any) -> set[str]:
    """Every module below the package: those that hold a name or are a program, and those above them."""
    places = [*(name.rpartition(".")[0] for name in table.SERVED), *table.PROGRAMS]
    parts = [place.split(".") for place in places if place]
    return {".".join(names[:length]) for names in parts for length in range(1, len(names) + 1)}


def _names_at(table: Any, below: str) -> list[str]:
    """The names that are served directly in one module."""
    return sorted(name.rpartition(".")[2] for name in table.SERVED if name.rpartition(".")[0] == below)


def _refusal(table: Any, fullname: str, below: str) -> str:
    """One line: what was asked for, why it is not there, what to do. The closest entry of the table speaks."""
    name = below
    while name and name not in table.NOT_SERVED:
        name = name.rpartition(".")[0]
    return f"{fullname} is not served by slipstream.compat: {table.NOT_SERVED.get(name, table.OTHERWISE)}"


def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
