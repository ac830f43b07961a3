# SPDX-License-Identifier: Apache-2.0
"""How much set-up a thread may do now: a share of what the script's own operators took, so that no call pays for all of it.

Packing, checking and reading sources are set-up. While a piece is undecided the original answers its calls, and each second
that it takes earns `SHARE` of a second for set-up. A call of a model thus takes at most 1 + SHARE of a plain one, the first
one too, and set-up that does not fit waits for the next. Time that a fast answer saved may be spent as well.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

SHARE = 0.3
"""Of the originals' time. The promise is a first call of at most 1.5 × plain; the rest is for estimates that are off."""

FIXED_S = 5e-5
"""What a step of set-up takes whatever its size: tens of small calls in Python."""

START = 1e-9
"""Seconds for a byte of weights, until a first pack was timed: 0.3e-9 in the cache, 1.6e-9 with fresh pages."""


class _Own(threading.local):
    balance = 0.0


class Allowance:
    """One balance a thread: a call must not spend what another thread earned. Seconds."""

    def __init__(self, share: float = SHARE) -> None:
        """``share`` may be infinite: then everything is afforded."""
        self.share = share
        self._own = _Own()

    @property
    def balance(self) -> float:
        return self._own.balance

    def earn(self, plain_s: float) -> None:
        """An original ran for so long."""
        self._own.balance += plain_s * self.share if self.share < math.inf else 0.0

    def save(self, saved_s: float) -> None:
        """A fast answer took so much less than the original would have; or more, if negative."""
        self._own.balance += saved_s

    def spend(self, seconds: float) -> None:
        """Set-up took so long. A wrong estimate leaves a debt, which later calls earn back."""
        self._own.balance -= seconds

    def affords(self, seconds: float) -> bool:
        """Whether a step of about this length may begin."""
        return self.share == math.inf or self.balance >= seconds


@dataclass
class Costs:
    """What steps of set-up take, learnt from those that were timed: seconds for a byte, by what is done."""

    rates: dict[str, float] = field(default_factory=dict)

    def expected_s(self, what: str, size: int) -> float:
        return FIXED_S + size * self.rates.get(what, START)

    def saw(self, what: str, size: int, seconds: float) -> None:
        """Half old, half new: a busy core must not spoil the estimate for good."""
        if size > 0:
            rate = max(0.0, seconds - FIXED_S) / size
            self.rates[what] = (self.rates[what] + rate) / 2 if what in self.rates else rate


costs = Costs()
"""Those of this process."""
