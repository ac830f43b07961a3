# SPDX-License-Identifier: Apache-2.0
"""A captured graph among those that may answer for a model."""

from __future__ import annotations

from collections.abc import Hashable

from slipstream.optimize.graph.capturing.capture import Capture
from slipstream.optimize.graph.program import Program, Race

OTHERWISE = 3
"""Calls for which values decide otherwise than in the capture, and as many more for each ten, before its graph is dropped."""


class Way:
    """A captured graph: for which calls it holds, and whether it is the faster answer for sizes like theirs."""

    def __init__(self, captured: Capture, program: Program) -> None:
        self.captured: Capture | None = captured  # until its graph is known to be right
        self.holds = captured.holds
        self.run = captured.wrap(program)
        self.program = program
        self.races: dict[Hashable, Race] = {}
        self.won: dict[Hashable, bool] = {}
        self.otherwise = 0

    def is_often_otherwise(self, calls: int) -> bool:
        """Told of one more of ``calls`` for which values decided otherwise: such a graph costs more than it saves."""
        self.otherwise += 1
        return self.otherwise > OTHERWISE + calls // 10
