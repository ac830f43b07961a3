# SPDX-License-Identifier: Apache-2.0
"""How long a capture may take. A loop that is written out in Python, as over the steps of a state space model, takes dynamo
half a minute, and beside a script that is mostly Python itself each call takes ten times as long for all that while.
"""

from __future__ import annotations

import time
from typing import Any

from torch import nn

SECONDS_A_MODULE = 0.05
"""Of this thread's own time, for each leaf module: five times what is expected."""

LEAST_S = 10.0

STEPS = 64
"""Instructions of the script's code between two looks at the clock, which costs a microsecond."""


class Patience:
    """For one capture; ``over`` once it has taken too long."""

    def __init__(self, module: nn.Module) -> None:
        leaves = sum(not part._modules for part in module.modules())
        self.limit_s = max(LEAST_S, SECONDS_A_MODULE * leaves)
        self.over = False
        self._ends = time.thread_time() + self.limit_s
        self._steps = 0

    def instead(self) -> list[tuple[Any, str, Any]]:
        """Whose attribute of which name is what during the capture."""
        from torch._dynamo.symbolic_convert import InstructionTranslatorBase

        step = InstructionTranslatorBase.step

        def step_in_time(translator: Any) -> bool:
            self._steps += 1
            if self._steps % STEPS == 0 and time.thread_time() > self._ends:
                self.over = True
            if self.over:
                raise TimeoutError(self.why())
            return step(translator)

        return [(InstructionTranslatorBase, "step", step_in_time)]

    def why(self) -> str:
        """For the report."""
        return f"reading its code takes dynamo more than {self.limit_s:.0f} s"
