# SPDX-License-Identifier: Apache-2.0
"""Two questions asked on live data before a fast implementation may answer: is it right, is it faster?

Both compare with the original on a bounded sample of the input. The answer on speed is shared by all pieces
of one kind and size, so that a model of seventy equal layers asks once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative error ‖fast − original‖ / ‖original‖ by the dtype that is multiplied.

A bfloat16 product of random data is off by 2.4e-3 to 4e-3 and a float32 one by 1e-6; beyond five times (a
hundred times) that, the data cancel so much that the dtype is not fit for them, or something is wrong.
"""

TRIAL_MACS = 2e7
"""Multiply-adds of a sample: about half a millisecond on one core, so a trial of eight takes a few."""

SMALL_MACS = 3e4
"""Below this no kernel can repay the microsecond that the way to it takes: 30 k multiply-adds take one."""

GATE_S = 3e-6
"""What the checks around a fast call take; counted on the fast side of a trial."""

ROUNDS = 4

CLEAR = 1.25
"""With this between them after the second round, no other is needed."""


def relative_error(fast: torch.Tensor, original: torch.Tensor) -> float | None:
    """In the norm of the whole; None where the original itself is not finite, so that nothing can be said."""
    fast, original = fast.detach(), original.detach()
    scale = float(original.float().norm())
    if math.isfinite(scale):
        distance = float((fast.float() - original.float()).norm())
    elif bool(torch.isfinite(original).all()):  # large numbers, whose squares are beyond float32
        scale = float(original.double().norm())
        distance = float((fast.double() - original.double()).norm())
    else:
        return None
    if math.isnan(distance):
        return math.inf
    return distance / scale if scale > 0 else (0.0 if distance == 0 else math.inf)


@dataclass
class Verdict:
    """``fast`` is None while one trial was lost and the second opinion is still to come."""

    fast: bool | None
    speedup_x: float


class SpeedGuard:
    """Trials by kind of piece and size of input. Losing takes two: the first may have met a busy core."""

    def __init__(self) -> None:
        self._verdicts: dict[Hashable, Verdict] = {}
        self._lock = threading.Lock()

    def verdict(
        self, question: Hashable, fast: Callable[[], object], original: Callable[[], object], margin: float = 1.0
    ) -> Verdict:
        """``margin`` is how many times faster it has to be."""
        known = self._verdicts.get(question)
        if known is not None and known.fast is not None:
            return known
        speedup = time_both(fast, original)
        won = speedup > margin
        verdict = Verdict(True if won else (False if known is not None else None), speedup)
        with self._lock:
            self._verdicts[question] = verdict
        return verdict

    def clear(self) -> None:
        with self._lock:
            self._verdicts.clear()


def time_both(fast: Callable[[], object], original: Callable[[], object]) -> float:
    """How many times faster ``fast`` is: the best of two to four rounds each, both warm, each first in turn.

    With one thread, by that thread's own time, because where others are busy the wall says nothing about
    either. With several, by both clocks, and the better counts: a kernel that is turned down stays down.
    """
    ways = (original, fast)
    best = [[math.inf] * 2, [math.inf] * 2]
    speedup = 1.0
    for number in range(ROUNDS):
        for which in (number % 2, 1 - number % 2):
            start = _clocks()
            ways[which]()
            spent = [now - then for now, then in zip(_clocks(), start, strict=True)]
            best[which] = [min(pair) for pair in zip(best[which], spent, strict=True)]
        clocks = (1,) if torch.get_num_threads() == 1 else (0, 1)
        speedup = max(best[0][clock] / (best[1][clock] + GATE_S) for clock in clocks)
        if number and not 1 / CLEAR < speedup < CLEAR:
            break
    return speedup


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


speed = SpeedGuard()
"""That of this process."""
