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
from slipstream.kernels import native
from slipstream.optimize.allowance import Allowance


def clocks() -> tuple[float, float]:
    """Wall and this thread's own, in seconds."""
    return time.perf_counter(), time.thread_time()


def elapsed(start: tuple[float, float]) -> tuple[float, float]:
    wall, own = clocks()
    return wall - start[0], own - start[1]


def fair(spent: tuple[float, float]) -> float:
    """The one of both clocks to go by: with one thread its own, because where others are busy the wall says little."""
    return spent[1] if torch.get_num_threads() == 1 else spent[0]


@dataclass(frozen=True)
class Options:
    """``dtype``: float32 weights are packed in it. ``low_memory``: one copy of a weight in memory.
    ``decides_only``: plan, pack and check, and let the original answer. ``graph``: with the graph tier;
    ``early``: at the third call, and not only where it can be expected to pay for itself.
    ``autocast``: for calls inside the script's own autocast to bfloat16, with results as that gives them."""

    dtype: torch.dtype = torch.float32
    low_memory: bool = False
    decides_only: bool = False
    graph: bool = False
    early: bool = False
    autocast: bool = False


def compute_dtype(settings: Any) -> torch.dtype:
    """What weights may be packed in for these settings: autopatch's Settings."""
    if settings.dtype == "float16":
        taken = _precision_for(settings) == "medium" and native.active_level() == native.FLOAT16
        how = "linear layers multiply in float16" if taken else "linear layers are not multiplied in float16"
        log.note("dtype float16", taken, f"{how}, all else is float32: {native.reason()}")
        return torch.float32
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


@dataclass
class SetUp:
    """Seconds spent on packing and guarding in this process, against a budget if there is one.

    Without a budget nothing but the allowance bounds them: a share of what the script's own operators took.
    While ``wanted`` is positive, some piece waits for it.
    """

    budget_s: float | None = None
    spent_s: float = 0.0
    packed_bytes: int = 0
    most_packed_bytes: int = 0
    wanted: int = 0
    allowance: Allowance = field(default_factory=Allowance)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_spent(self) -> bool:
        return self.budget_s is not None and self.spent_s >= self.budget_s

    def affords(self, seconds: float) -> bool:
        """Whether this thread may begin a step of about this length now."""
        return self.allowance.affords(seconds) and not self.is_spent()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what is done meanwhile as set-up of this thread. Not to be nested."""
        start = clocks()
        try:
            yield
        finally:
            spent = elapsed(start)
            self.allowance.spend(fair(spent))
            with self._lock:
                self.spent_s += spent[0]


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
    wanted = _precision_for(settings)
    if wanted is None:
        return
    _before.append(torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision(wanted)
    why = "as asked" if settings.float32_matmul_precision else "for dtype float16"
    log.note("float32 matmul precision", True, f"set to {wanted} {why}")


def _precision_for(settings: Any) -> str | None:
    """float16 is how `medium` multiplies at the level that has fast float16; elsewhere it would be bfloat16."""
    asked: str | None = settings.float32_matmul_precision
    if asked is None and settings.dtype == "float16" and native.active_level() == native.FLOAT16:
        return "medium"
    return asked


def restore_matmul_precision() -> None:
    while _before:
        torch.set_float32_matmul_precision(_before.pop())
