# SPDX-License-Identifier: Apache-2.0
"""PyTorch on CPU at the hardware's limit, without touching the script.

The public verbs are loaded on first use, so that importing this package imports no torch.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing's own, which takes 20 ms to import: this file is read at the start of every script
if TYPE_CHECKING:
    from typing import Any

    from slipstream.optimize.optimize_model import optimize_model

__version__ = "0.1.0"
__all__ = ["__version__", "optimize_model"]

_VERBS = {"optimize_model": "slipstream.optimize.optimize_model"}


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'slipstream' has no attribute '{name}'")
