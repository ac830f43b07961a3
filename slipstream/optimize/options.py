# SPDX-License-Identifier: Apache-2.0
"""What the optimizer was asked for, as values of torch, and the seconds that it may still spend on set-up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from slipstream.decision import log


@dataclass(frozen=True)
class Options:
    """``dtype``: float32 weights are packed in it. ``low_memory``: no second float32 copy of a weight.
    ``decides_only``: plan, pack and check, and let the original answer."""

    dtype: torch.dtype = torch.float32
    low_memory: bool = False
    decides_only: bool = False


def compute_dtype(settings: Any) -> torch.dtype:
    """What weights may be packed in for these settings: autopatch's Settings."""
    if settings.dtype == "float16":
        log.note("dtype float16", False, "there are no float16 kernels yet; float32 is computed in float32")
        return torch.float32
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


@dataclass
class SetUp:
    """Seconds spent on packing and guarding in this process, against a budget if there is one."""

    budget_s: float | None = None
    spent_s: float = 0.0
    packed_bytes: int = 0
    most_packed_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_spent(self) -> bool:
        return self.budget_s is not None and self.spent_s >= self.budget_s

    @contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.spent_s += time.perf_counter() - start


_said: set[str] = set()


def say_once(what: str, reason: str) -> None:
    """Note what the script could do better, the first time that it is met."""
    if what not in _said:
        _said.add(what)
        log.note(what, False, reason)


def forget_what_was_said() -> None:
    _said.clear()


set_up = SetUp()
"""That of this process."""

_before: list[str] = []


def set_matmul_precision(settings: Any) -> None:
    """Set torch's own float32 precision process-wide; a script that sets it itself comes later and wins."""
    wanted = settings.float32_matmul_precision
    if wanted is None:
        return
    _before.append(torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision(wanted)
    log.note("float32 matmul precision", True, f"set to {wanted} as asked")


def restore_matmul_precision() -> None:
    while _before:
        torch.set_float32_matmul_precision(_before.pop())
