# SPDX-License-Identifier: Apache-2.0
"""The live table on a terminal: one row an instance, redrawn between the lines that the instances print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slipstream.launcher.observe.metrics import Metrics
from slipstream.launcher.observe.usage import Sampler
from slipstream.launcher.process.output import STDERR, write_all
from slipstream.runtime.cpu_list import format_cpu_list

if TYPE_CHECKING:
    from slipstream.launcher.spawn import Job

STATES = {"R": "running", "S": "running", "D": "waiting for disk", "T": "stopped", "t": "traced", "Z": "ending"}


class LiveTable:
    """On stderr. ``write`` takes whole lines for either stream and keeps the table below them."""

    def __init__(self, metrics: Metrics, sampler: Sampler, *, stdout_is_terminal: bool) -> None:
        self._metrics = metrics
        self._sampler = sampler
        self._both = stdout_is_terminal
        self._live = Live(console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def write(self, stream: int, line: bytes) -> None:
        if stream == STDERR or self._both:
            text = Text.from_ansi(line.decode(errors="replace").rstrip("\n"))
            self._live.console.print(text, soft_wrap=True)
        else:
            write_all(stream, line)

    def refresh(self, jobs: Sequence[Job]) -> None:
        self._live.update(self._table(jobs), refresh=True)

    def _table(self, jobs: Sequence[Job]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("instance", "CPUs", "state", "CPU %", "memory", "elapsed", "last figure"):
            table.add_column(name, justify="right" if name in {"CPU %", "memory", "elapsed"} else "left", no_wrap=True)
        for job in jobs:
            index = job.instance.index
            course = self._sampler.courses.get(job.group)
            percent = f"{course.cpu_percent[-1]:.0f}" if course and job.code is None else "-"
            memory = f"{course.resident_mb[-1]:.0f} MB" if course else "-"
            cells = (
                str(index),
                format_cpu_list(job.instance.cpus),
                self._state(job),
                percent,
                memory,
                f"{job.seconds:.0f} s",
                self._metrics.last_line.get(index, ""),
            )
            table.add_row(*(Text(cell) for cell in cells))
        return table

    def _state(self, job: Job) -> str:
        if job.code is not None:
            return "done" if job.code == 0 else f"exit {job.code}"
        return STATES.get(self._sampler.states.get(job.group, "S"), "running")
