# SPDX-License-Identifier: Apache-2.0
"""A search on a terminal: stage, budget, what runs now, the best so far. Without a terminal nothing is shown."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from slipstream.launcher.tune.comparison import Measurement
from slipstream.launcher.tune.search import Watch
from slipstream.launcher.tune.trial import Trial


class Progress(Watch, Protocol):
    """A watch with a beginning and an end; ``tick`` keeps its clock going while a run lasts."""

    def start(self) -> None: ...

    def tick(self) -> None: ...

    def stop(self) -> None: ...


def progress(*, budget: float, known: int) -> Progress:
    """The live display where standard error is a terminal. ``known`` is how many runs are on record."""
    return LiveProgress(budget=budget, known=known) if sys.stderr.isatty() else Silent()


class Silent:
    """Nobody looks on."""

    def start(self) -> None: ...

    def tick(self) -> None: ...

    def stop(self) -> None: ...

    def stage(self, text: str) -> None: ...

    def starting(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, measurement: Measurement | None, reason: str) -> None: ...


class LiveProgress:
    """Redrawn by ``tick`` alone: a thread of rich's own would be in the way of starting processes."""

    def __init__(self, *, budget: float, known: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=False)
        self._budget = budget
        self._begin = time.monotonic()
        self._stage = "start"
        self._now = ""
        self._runs = self._failed = 0
        self._known = known
        self._best: tuple[float, str] | None = None
        self._last_failure = ""

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def stage(self, text: str) -> None:
        self._stage = text
        self._best = None  # values of other lengths are no measure for these
        self.tick()

    def starting(self, trial: Trial) -> None:
        self._now = f"{trial.configuration}, run {trial.repeat + 1}"
        self.tick()

    def ended(self, trial: Trial, measurement: Measurement | None, reason: str) -> None:
        self._runs += 1
        if measurement is None:
            self._failed += 1
            self._last_failure = f"{trial.configuration}: {reason}"
        elif not any(measurement.excess) and (self._best is None or measurement.goals[0] > self._best[0]):
            self._best = (measurement.goals[0], str(trial.configuration))
        self.tick()

    def tick(self) -> None:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        elapsed = time.monotonic() - self._begin
        counts = f"{self._runs} runs" + (f", {self._failed} failed" if self._failed else "")
        counts += f", {self._known} on record" if self._known else ""
        lines: list[Text | ProgressBar] = [
            Text(f"{self._stage}: {counts}, {elapsed:.0f} of {self._budget:.0f} s", style="bold"),
            ProgressBar(total=self._budget, completed=min(elapsed, self._budget), width=60),
            Text(f"now   {self._now}", no_wrap=True, overflow="ellipsis"),
        ]
        if self._best is not None:
            lines.append(Text(f"best  {abs(self._best[0]):.6g}  {self._best[1]}", no_wrap=True, overflow="ellipsis"))
        if self._last_failure:
            lines.append(Text(f"out   {self._last_failure}", style="red", no_wrap=True, overflow="ellipsis"))
        rows = Table.grid()
        for line in lines:
            rows.add_row(line)
        self._live.update(rows, refresh=True)
