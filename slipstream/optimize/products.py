# SPDX-License-Identifier: Apache-2.0
"""In how many parts of bfloat16 tiles multiply float32 activations with each other: as many as torch's float32 matmul precision
asks for, where a race finds that faster than our own float32 kernel. How weights are held is `kernels.linear.best_held`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from slipstream.decision import log
from slipstream.optimize import guards
from slipstream.optimize.options import set_up

MARGIN = 1.03
"""How many times faster parts have to be."""


def race(what: str, parts: int, run: Callable[[int], object], question: tuple[Hashable, ...], macs: float) -> int:
    """``parts``, or 1 where ``run(parts)`` is no faster than ``run(1)``; found once for a question, and noted of ``what``."""
    if parts == 1 or macs == 0:
        return 1
    with set_up.timed():
        verdict = guards.speed.settle((*question, parts), lambda: run(parts), lambda: run(1), macs, MARGIN)
    reason = f"raced against our float32 kernel on tensors like these{verdict.when()}"
    log.note(f"{what}: {parts} parts of bfloat16", verdict.fast, reason, speedup_x=verdict.speedup_x)
    return parts if verdict.fast else 1
