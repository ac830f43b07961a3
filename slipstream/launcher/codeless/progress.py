# SPDX-License-Identifier: Apache-2.0
"""A bisection on its way: a bar where standard error is a terminal, else a line a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


class Progress:
    """``settled`` of ``total`` modules are known to be good or culprits. ``say`` writes a line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.runs = 0
        self._say = say
        self._label = ""
        self._state = (0, 0, 0)
        self._start = time.monotonic()
        self._live = _live()

    def starting(self, label: str) -> None:
        self._label = label
        self.tick()

    def ended(self) -> None:
        self.runs += 1
        if self._live is None:
            self._say(f"run {self.runs}: {self._label}")

    def settled(self, number: int, total: int, culprits: int) -> None:
        self._state = (number, total, culprits)
        self.tick()

    def note(self, text: str) -> None:
        if self._live is None:
            self._say(text)
        else:
            self._live.console.print(text, highlight=False, markup=False)

    def tick(self) -> None:
        """Redraw; called while a run lasts."""
        if self._live is None:
            return
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        number, total, culprits = self._state
        rows = Table.grid()
        seconds = time.monotonic() - self._start
        rows.add_row(Text(f"run {self.runs + 1}: {self._label} ({seconds:.0f} s)", style="bold"))
        if total:
            rows.add_row(ProgressBar(total=total, completed=number, width=60))
            rows.add_row(Text(f"{number} of {total} pieces settled, {culprits} of them change the answer"))
        self._live.update(rows, refresh=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _live() -> Any:
    """rich's display, started; None without a terminal or without rich."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    live = Live(console=Console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=False)
    live.start()
    return live
