# SPDX-License-Identifier: Apache-2.0
"""The table of what is changed in torch once a script has imported it, and the two verbs on it: apply, undo.

Each patch is a pair of 'module:function' strings, so that this file, like all of autopatch, imports no torch.
`apply` runs them in order, `undo` in reverse; both may be called twice.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from slipstream.autopatch import activate, import_hook, own_failures
from slipstream.autopatch.settings import Settings


@dataclass(frozen=True)
class Patch:
    """``apply`` takes the Settings; ``undo`` takes none."""

    name: str
    apply: str
    undo: str


PATCHES = (
    Patch(
        "matmul precision",
        "slipstream.optimize.options:set_matmul_precision",
        "slipstream.optimize.options:restore_matmul_precision",
    ),
    Patch("accounts", "slipstream.optimize.accounts:install", "slipstream.optimize.accounts:uninstall"),
    Patch("leaf tier", "slipstream.optimize.leaf_tier:install", "slipstream.optimize.leaf_tier:uninstall"),
    Patch(
        "transformers' layers",
        "slipstream.autopatch.patches:await_transformers",
        "slipstream.autopatch.import_hook:forget",
    ),
    Patch(
        "exported programs",
        "slipstream.autopatch.patches:await_export",
        "slipstream.autopatch.import_hook:forget",
    ),
    Patch("attention", "slipstream.optimize.attention:install", "slipstream.optimize.attention:uninstall"),
)

_applied: list[Patch] = []


def apply(settings: Settings) -> None:
    """Apply every patch that is not yet applied; a failing one is noted and the others go on."""
    for patch in PATCHES:
        if patch in _applied:
            continue
        try:
            _resolve(patch.apply)(settings)
        except Exception as error:  # noqa: BLE001 - a patch that fails must leave the script as it was
            own_failures.note(f"patch: {patch.name}", error)
        else:
            _applied.append(patch)


def undo() -> None:
    """Take every applied patch back, the last one first."""
    while _applied:
        _resolve(_applied.pop().undo)()


def apply_activated() -> None:
    """Run by the import hook when torch has come: patch, and write a report when the process ends."""
    settings = activate.activated_settings()
    if settings is None:
        return
    from slipstream.autopatch import process_report

    process_report.write_at_exit(settings)
    apply(settings)


def await_transformers(_: Settings) -> None:
    """transformers has a linear layer of its own, which is known as soon as it is imported."""
    import_hook.after("transformers.pytorch_utils", "slipstream.optimize.leaf_tier:know_transformers")


def await_export(_: Settings) -> None:
    """Modules of exported programs have a class that torch imports with the first of them."""
    import_hook.after("torch.export._unlift", "slipstream.optimize.graph.torchscript.slot:know_exported")


def _resolve(function: str) -> Any:
    module, _, attribute = function.partition(":")
    return getattr(importlib.import_module(module), attribute)
