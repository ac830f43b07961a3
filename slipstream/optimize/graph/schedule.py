# SPDX-License-Identifier: Apache-2.0
"""When a model is worth capturing: pure arithmetic on the times of its calls.

A capture is a second or more of Python beside the script. Its gain is not known before, so it is made once the model has
been run for several times as long as the capture will take: a script that ends sooner never pays for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

CAPTURE_S_PER_MODULE = 0.012
"""Dynamo's time for a leaf module, measured: 1.9 s for BERT-base's 160, 1.9 s for ResNet-50's 160."""

TIMES_AS_LONG = 4
"""How many times a capture's own time has to have been spent in the model before."""

CALLS = 3
"""Calls before a capture, so that one-off uses and first calls say nothing."""

SMALL_S = 3e-4
"""A model whose calls are shorter gains nothing: checking a capture's guards takes up to a third of this."""

MOST_CAPTURES = 3
"""Of one model: for other sizes, modes or branches."""


@dataclass
class Schedule:
    """The calls that no capture answers, and what they say about making one."""

    modules: int
    captures: int = 0
    seconds: float = 0.0
    calls: int = 0
    sizes: Counter[Hashable] = field(default_factory=Counter)

    def note(self, seconds: float, sizes: Hashable) -> None:
        """A call took this long; ``sizes`` are its tensors' shapes."""
        self.calls += 1
        self.seconds += seconds
        if len(self.sizes) < 64:
            self.sizes[sizes] += 1

    def is_due(self) -> bool:
        """Whether to capture now."""
        if self.captures >= MOST_CAPTURES or self.calls < CALLS:
            return False
        if self.seconds / self.calls < SMALL_S:
            return False
        return self.seconds >= TIMES_AS_LONG * CAPTURE_S_PER_MODULE * max(1, self.modules) * (1 + self.captures)

    def is_varied(self) -> bool:
        """Whether sizes change from call to call, so that the capture should hold for all of them."""
        return self.captures > 0 or len(self.sizes) > 1

    def begin(self) -> None:
        """A capture begins; what was noted has been used up."""
        self.captures += 1
        self.seconds, self.calls = 0.0, 0
        self.sizes.clear()
