# SPDX-License-Identifier: Apache-2.0
"""Machine: what this process runs on, and where in it. No torch at import.

The names below are loaded on first use; `multi_stream` is the one that imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.runtime.cpu_pool import CPUPool, get_core_list_of_node_id, is_runtime_ext_enabled, pin
    from slipstream.runtime.multi_stream import (
        MultiStreamModule,
        _MultiStreamBenchmarkModule,
        get_default_num_streams,
    )
    from slipstream.runtime.stream_hint import MultiStreamModuleHint
    from slipstream.runtime.task import Task

__all__ = [
    "CPUPool",
    "MultiStreamModule",
    "MultiStreamModuleHint",
    "Task",
    "_MultiStreamBenchmarkModule",
    "get_core_list_of_node_id",
    "get_default_num_streams",
    "is_runtime_ext_enabled",
    "pin",
]

_HOMES = {
    "CPUPool": "cpu_pool",
    "MultiStreamModule": "multi_stream",
    "MultiStreamModuleHint": "stream_hint",
    "Task": "task",
    "_MultiStreamBenchmarkModule": "multi_stream",
    "get_core_list_of_node_id": "cpu_pool",
    "get_default_num_streams": "multi_stream",
    "is_runtime_ext_enabled": "cpu_pool",
    "pin": "cpu_pool",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"slipstream.runtime.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'slipstream.runtime' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
