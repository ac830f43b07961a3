# SPDX-License-Identifier: Apache-2.0
"""Delta debugging: which of many things spoil a whole that is good without them. Pure; runs nothing itself.

After Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (2002), in the form of a sieve: a
growing set that is known to be good is tried with one more group at a time, and a group that spoils it is
halved. k culprits among n take about 2 k log2(n / k) trials, and what remains has been tried as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Sieve:
    """``works(items)``: whether the whole is good with just these. ``most`` trials are made, then the rest is left out."""

    works: Callable[[Sequence[str]], bool]
    most: int
    settled: Callable[[int, int], None] = lambda good, culprits: None
    """Told how many are known to be good, and how many culprits there are."""
    good: list[str] = field(default_factory=list)
    culprits: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    trials: int = 0

    def sift(self, items: Sequence[str], *, known_bad: bool = False) -> bool:
        """Sort ``items`` into good and culprits; True where all are good. ``known_bad``: with all of them, it fails."""
        if not items:
            return True
        if not known_bad:
            if self.trials >= self.most:
                self.untried.extend(items)
                return False
            self.trials += 1
            if self.works([*self.good, *items]):
                self.good.extend(items)
                self.settled(len(self.good), len(self.culprits))
                return True
        if len(items) == 1:
            self.culprits.extend(items)
            self.settled(len(self.good), len(self.culprits))
            return False
        middle = len(items) // 2
        left_is_good = self.sift(items[:middle])
        # with the left half good, the right half beside it is the whole that is known to fail
        self.sift(items[middle:], known_bad=left_is_good)
        return False
