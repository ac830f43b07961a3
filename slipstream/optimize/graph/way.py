# SPDX-License-Identifier: Apache-2.0
"""A captured graph among those that may answer for a model."""

from __future__ import annotations

from collections.abc import Hashable

from slipstream.optimize.graph.capturing.capture import Capture
from slipstream.optimize.graph.program import Program, Race


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
