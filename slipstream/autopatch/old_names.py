# SPDX-License-Identifier: Apache-2.0
"""Brings `compat` in when a script imports one of the old packages and the real one is not installed; not before."""

from __future__ import annotations

import importlib
import sys

PACKAGES = ("intel_extension_for_pytorch",)
"""What slipstream.compat.finder.TABLES serves."""


class OldNames:
    """Stands at the end of `sys.meta_path`: whatever is really installed is found before it is asked."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.partition(".")[0] in PACKAGES:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            importlib.import_module("slipstream.compat")  # puts its own finder at the end
            return importlib.import_module("slipstream.compat.finder").OldNamesFinder().find_spec(fullname, path)  # type: ignore[no-any-return]
        return None


def watch() -> None:
    """Put the watcher at the end of `sys.meta_path`, once."""
    if not any(type(finder) is OldNames for finder in sys.meta_path):
        sys.meta_path.append(OldNames())  # type: ignore[arg-type]
