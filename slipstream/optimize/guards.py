# SPDX-License-Identifier: Apache-2.0
"""Two questions asked on live data before a fast implementation may answer: is it right, is it faster?

The first compares with the original on a sample of the input. The second times calls of the script as they come, answered
by the one way and by the other; its answer is shared by all pieces of one kind and size, and kept for other processes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from slipstream.optimize import choices
from slipstream.optimize.options import clocks, elapsed, set_up

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative error ‖fast − original‖ / ‖original‖ by the dtype that is multiplied.

A bfloat16 product of random data is off by 2.4e-3 to 4e-3 and a float32 one by 1e-6; beyond five times (a
hundred times) that, the data cancel so much that the dtype is not fit for them, or something is wrong.
"""

HIGH_LIMIT = 1e-3
"""The same for float32 products at float32 matmul precision "high". Ours are off by 5e-6 then, but the original may multiply in
TensorFloat32, which is off by 3e-4."""

COMPARED = 1 << 17
"""Elements of two results that are compared at a time."""

TRIAL_MACS = 8e6
"""Multiply-adds of a sample on which results are compared: a tenth of a millisecond on one core."""

SMALL_MACS = 3e4
"""Below this no kernel can repay the microsecond that the way to it takes: 30 k multiply-adds take one."""

SECONDS_A_MAC = 2e-11
"""What an original is taken for until one was timed: half of what a core can do in float32."""

GATE_S = 3e-6
"""What the checks around a fast call take; counted on the fast side of a trial."""

ROUNDS = 4
CLEAR_ROUNDS = 2

CLEAR = 1.25
"""With this between them after the second round, no other is needed for a win."""

HOPELESS = 0.5
"""Nor for a loss with this."""

UNLIKELY = 0.25
"""A loss by more than this says that a core was taken away while it was measured: no kernel of ours is four times as slow as
torch's. (Beside two compilers on two cores, one row through a linear layer was seen at 0.04.) Other processes measure again."""


def relative_error(fast: torch.Tensor, original: torch.Tensor) -> float | None:
    """In the norm of the whole; None where the original itself is not finite, so that nothing can be said."""
    fast, original = fast.detach(), original.detach()
    scale, distance = _norms(fast, original, torch.float32)
    if not math.isfinite(scale):
        if not bool(torch.isfinite(original).all()):
            return None
        scale, distance = _norms(fast, original, torch.float64)  # large numbers, whose squares are beyond float32
    if math.isnan(distance):
        return math.inf
    return distance / scale if scale > 0 else (0.0 if distance == 0 else math.inf)


def _norms(fast: torch.Tensor, original: torch.Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """‖original‖ and ‖fast − original‖, in parts that stay in the cache: new memory takes longer than the arithmetic."""
    parts = [(fast, original)]
    if original.numel() > COMPARED and fast.shape == original.shape:
        order = sorted(range(original.dim()), key=original.stride().__getitem__, reverse=True)
        lying = fast.permute(order), original.permute(order)
        if all(tensor.is_contiguous() for tensor in lying):
            parts = list(zip(*(tensor.view(-1).split(COMPARED) for tensor in lying), strict=True))
    scales, distances = [], []
    for got, wanted in parts:
        right = wanted.to(dtype)
        scales.append(float(right.norm()))
        distances.append(float((got.to(dtype) - right).norm()))
    return math.hypot(*scales), math.hypot(*distances)


@dataclass(frozen=True)
class Verdict:
    fast: bool
    speedup_x: float
    earlier: bool = False
    """Whether an earlier process measured it."""

    def when(self) -> str:
        """For the end of a reason."""
        return ", measured earlier" if self.earlier else ""


TRUST = Verdict(True, 1.0)


def credit(verdict: Verdict | None, plain_s: float) -> float:
    """Seconds of set-up that a call may take in advance: what its fast answer will earn and save, where that is known from
    before. Whoever draws on it pays back from just that call."""
    if verdict is None or not verdict.earlier or not verdict.fast:
        return 0.0
    return plain_s * (set_up.allowance.share + 1 - 1 / verdict.speedup_x)


@dataclass
class Trial:
    """Least seconds a multiply-add seen of the original and of the fast way, by wall and thread's own; rounds of each."""

    best: list[list[float]] = field(default_factory=lambda: [[math.inf] * 2, [math.inf] * 2])
    rounds: list[int] = field(default_factory=lambda: [0, 0])
    verdict: Verdict | None = None

    def speedup_x(self) -> float:
        """With one thread by that thread's own time, because where others are busy the wall says nothing about
        either. With several by both clocks, and the better counts: a kernel that is turned down stays down."""
        chosen = (1,) if torch.get_num_threads() == 1 else (0, 1)
        return max(self.best[0][clock] / self.best[1][clock] for clock in chosen)

    def judge(self, margin: float) -> None:
        """A clear win takes two rounds each and another win four; a loss takes four, or two of less than half speed."""
        rounds = min(self.rounds)
        if rounds < CLEAR_ROUNDS:
            return
        speedup = self.speedup_x()
        if rounds >= ROUNDS or speedup > margin * CLEAR or speedup < HOPELESS:
            self.verdict = Verdict(speedup > margin, speedup)


class SpeedGuard:
    """Trials by kind of piece and size of input. The calls of the script are the rounds: a call that is answered by the
    original is a round of the original's, and so on in turn, amid the model and on its data. Equal layers share a trial."""

    def __init__(self, memory: choices.Memory | None = None) -> None:
        """``memory``: of what other processes found; without one nothing is recalled or kept."""
        self.memory = memory
        self._trials: dict[Hashable, Trial] = {}
        self._lock = threading.Lock()
        self.trusting = False
        """Every trial counts as won: for who wants runs that repeat, whatever the clock says."""

    def known(self, question: Hashable) -> Verdict | None:
        """What was found, once it was: here, or in an earlier process."""
        if self.trusting:
            return TRUST
        trial = self._trials.get(question)
        if trial is None and self.memory is not None:
            trial = self._recalled(question, self.memory)
        return None if trial is None else trial.verdict

    def _recalled(self, question: Hashable, memory: choices.Memory) -> Trial:
        """The trial as an earlier process ended it, or one that is still to be held: memory is asked but once."""
        with set_up.timed():
            choice = memory.recall(question)
        trial = Trial()
        if choice is not None and choice.speedup_x > UNLIKELY:
            trial.best[0] = [choice.original_s] * 2
            trial.verdict = Verdict(choice.way == choices.OURS, choice.speedup_x, earlier=True)
        with self._lock:
            return self._trials.setdefault(question, trial)

    def is_fasts_turn(self, question: Hashable) -> bool:
        """The original begins."""
        trial = self._trials.get(question)
        return trial is not None and trial.rounds[1] < trial.rounds[0]

    def expected_s(self, question: Hashable, macs: float) -> float:
        """What the original takes for so many multiply-adds."""
        trial = self._trials.get(question)
        best = math.inf if trial is None else min(trial.best[0])
        return macs * (best if best < math.inf else SECONDS_A_MAC)

    def saw(self, question: Hashable, fast: bool, spent: tuple[float, float], macs: float, margin: float = 1.0) -> None:
        """One round: wall and thread's own seconds. ``margin`` is how many times faster the fast way has to be."""
        extra = GATE_S if fast else 0.0
        with self._lock:
            trial = self._trials.setdefault(question, Trial())
            trial.rounds[fast] += 1
            trial.best[fast] = [min(had, (now + extra) / macs) for had, now in zip(trial.best[fast], spent, strict=True)]
            if trial.verdict is not None:
                return
            trial.judge(margin)
        if trial.verdict is not None and self.memory is not None:
            verdict, rounds = trial.verdict, min(trial.rounds)
            with set_up.timed():
                self.memory.keep(question, verdict.fast, verdict.speedup_x, margin, rounds, min(trial.best[0]))

    def settle(
        self, question: Hashable, fast: Callable[[], object], original: Callable[[], object], macs: float, margin: float = 1.0
    ) -> Verdict:
        """Decide now, by running both in turn: for who wants to know what would be done, and does not mind the time."""
        while (verdict := self.known(question)) is None:
            is_fast = self.is_fasts_turn(question)
            start = clocks()
            (fast if is_fast else original)()
            self.saw(question, is_fast, elapsed(start), macs, margin)
        return verdict

    def clear(self) -> None:
        self.trusting = False
        if self.memory is not None:
            self.memory.close()
        with self._lock:
            self._trials.clear()


speed = SpeedGuard(choices.memory)
"""That of this process."""
