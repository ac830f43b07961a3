# SPDX-License-Identifier: Apache-2.0
"""A lowered graph that has to prove itself: right on live data before it answers, faster than what it replaces after that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from slipstream.kernels.linear import asked_precision
from slipstream.optimize import guards
from slipstream.optimize.graph import results
from slipstream.optimize.graph.autocast import left_on_error
from slipstream.optimize.graph.capturing.branches import OtherBranch
from slipstream.optimize.graph.lower import Lowered
from slipstream.optimize.graph.settled import Settling

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative error of an output, ‖fast − reference‖ / ‖reference‖, by the dtype that is multiplied in.

Rounding adds up over the layers of a model: a bfloat16 ResNet-50 with random weights is off by 1.7e-2, BERT by 3e-3.
"""

PRECISION_LIMITS = {"highest": 0.0, "high": 2.5e-3, "medium": LIMITS[torch.bfloat16]}
"""The least that the limit is by the precisions that torch was asked for: float32 linear layers and convolutions obey them."""

UNDECIDED_CALLS = 4
"""Calls whose results are not finite, so that nothing can be compared, before the graph is dropped."""


class Program:
    """Runs a graph: the reference and the fast one the first time, then the fast one. ``broken`` says why no longer,
    ``is_wrong`` that its answers were too far off."""

    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        self.reference: Callable[..., Any] = lowered.reference.forward
        self.fast: Callable[..., Any] = lowered.fast.forward
        self.dtype = lowered.product
        self.error = 0.0
        self.broken: str | None = None
        self.is_right = self.is_wrong = False
        self.follows = False
        """Whether it lays results out as torch did, not as the capture told."""
        self.precisions = _asked_precisions()
        self.undecided = 0
        self.raised: Exception | None = None
        self.settling = Settling(lowered.fast)
        self._lock = threading.Lock()

    def __call__(self, *inputs: Any) -> Any:
        if self.broken is not None:
            return self._refer(inputs)
        precisions = _asked_precisions()
        if precisions != self.precisions:
            self.precisions, self.is_right = precisions, False
            self.settling.settled = None
        try:
            if self.is_right and not self.lowered.regions:
                return (self.settling.way(inputs) or self.fast)(*inputs)
            with left_on_error():
                return self.fast(*inputs) if self.is_right else self._prove(inputs)
        except OtherBranch:
            raise  # there is no answer
        except Exception as error:  # noqa: BLE001 - a failure of ours, or the script's own error, which the reference raises again
            result = self._refer(inputs)
            self.broken = f"slipstream failed: {type(error).__name__}: {error}"
            return result

    def _refer(self, inputs: tuple[Any, ...]) -> Any:
        """The script's own arithmetic; what that raises is the script's to see, and kept to be known by."""
        try:
            with left_on_error():
                return self.reference(*inputs)
        except Exception as error:
            self.raised = error
            raise

    def _prove(self, inputs: tuple[Any, ...]) -> Any:
        wanted = self.reference(*inputs)
        with self._lock:
            if not self.is_right and self.broken is None:
                got = self.fast(*inputs)
                if not self.follows and self._follow(inputs, got, wanted):
                    got = self.fast(*inputs)
                self._compare(got, wanted)
        return wanted

    def _follow(self, inputs: tuple[Any, ...], got: Any, wanted: Any) -> bool:
        """Where torch's own results lie otherwise in memory than the capture told, lay ours out so; whether it was so."""
        if not results.follow(self.lowered.fast, inputs, got, wanted):
            return False
        self.follows = True
        self.fast, self.settling = self.lowered.fast.forward, Settling(self.lowered.fast)
        return True

    def _compare(self, got: Any, wanted: Any) -> None:
        errors = [_difference(ours, theirs) for ours, theirs in zip(got, wanted, strict=True)]
        forms = [reason for reason in errors if isinstance(reason, str)]
        if forms:
            self.broken = forms[0]
        elif None in errors:
            self.undecided += 1
            if self.undecided >= UNDECIDED_CALLS:
                self.broken = "the results are not finite, so that nothing can be compared"
        else:
            self.error = max((error for error in errors if isinstance(error, float)), default=0.0)
            if self.error > max(LIMITS[self.dtype], *(PRECISION_LIMITS[asked] for asked in self.precisions)):
                self.broken, self.is_wrong = f"not accurate enough on live data: relative error {self.error:.1e}", True
            else:
                self.is_right = True


class Trial(Program):
    """Answers by the captured arithmetic, and proves and times the fast graph beside it: only to be looked at."""

    def __init__(self, lowered: Lowered) -> None:
        super().__init__(lowered)
        self.race = Race()

    def __call__(self, *inputs: Any) -> Any:
        self.is_right = False
        wanted = super().__call__(*inputs)
        if self.is_right:
            try:
                with left_on_error():
                    while self.race.speedup() is None:
                        which = self.race.next()
                        self.race.time(which, lambda way=self.fast if which else self.reference: way(*inputs))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - a failure of ours: the script has its answer
                self.broken = f"slipstream failed: {type(error).__name__}: {error}"
        return wanted


def _asked_precisions() -> tuple[str, str]:
    """Of matrix products and of convolutions."""
    return asked_precision(), asked_precision("conv")


def _difference(got: Any, wanted: Any) -> float | str | None:
    """The relative error; a text where the form differs; None where nothing can be said."""
    if not isinstance(wanted, torch.Tensor):
        return 0.0 if got == wanted else "a number in the result differs"
    if (got.dtype, got.shape, got.stride()) != (wanted.dtype, wanted.shape, wanted.stride()):
        return "the result has another dtype, shape or strides"
    if not wanted.is_floating_point():
        return float((got != wanted).float().mean()) if wanted.numel() else 0.0
    return guards.relative_error(got, wanted)


class Race:
    """Two ways of answering the same calls, taken in turn until one is known to be the faster: after two rounds each where
    that is clear, as in the trials of pieces."""

    ROUNDS = 3

    def __init__(self) -> None:
        self.seconds: tuple[list[float], list[float]] = ([], [])

    def next(self) -> int:
        """0 for the plain way, 1 for the fast one: whichever was timed less."""
        return int(len(self.seconds[1]) <= len(self.seconds[0]))

    def time(self, way: int, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        self.seconds[way].append(time.perf_counter() - start)
        return result

    def confirms(self, plain_s: float) -> bool:
        """Whether a call by the fast way was faster than this, a plain one from before the race."""
        return any(seconds < plain_s for seconds in self.seconds[1])

    def speedup(self) -> float | None:
        """Of the best runs, once each way has had its rounds; None before."""
        rounds = min(map(len, self.seconds))
        if rounds < min(self.ROUNDS, guards.CLEAR_ROUNDS):
            return None
        speedup = min(self.seconds[0]) / min(self.seconds[1])
        is_clear = speedup > guards.CLEAR or speedup < guards.HOPELESS
        return speedup if is_clear or rounds >= self.ROUNDS else None
