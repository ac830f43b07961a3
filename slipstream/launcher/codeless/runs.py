# SPDX-License-Identifier: Apache-2.0
"""The same script again and again under one plan: plain or under the engine, its output kept.

Standard input is empty in these runs: it could be read once only.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from slipstream import env
from slipstream.errors import UsageError
from slipstream.launcher import environment, launch, report
from slipstream.launcher.observe.watch import CHECK_SECONDS, Watch
from slipstream.launcher.options import LaunchOptions
from slipstream.launcher.plan import LaunchPlan
from slipstream.launcher.process.output import STDOUT, Lines, Router
from slipstream.launcher.spawn import Supervisor, Tick

LAST_LINES = 12
"""Of standard error, shown where a run fails."""


@dataclass(frozen=True)
class Outcome:
    """What one run came to. ``stdout`` is by instance; ``interrupted`` the signal that ended it, or 0."""

    code: int
    seconds: float
    stdout: Mapping[int, bytes]
    last_words: tuple[str, ...]
    report: Mapping[str, Any]
    interrupted: int


class Runs:
    """Runs of ``options.program``. Raises UsageError for what cannot be run twice, PlanError for what does not fit."""

    def __init__(self, options: LaunchOptions, *, command: str, say: Callable[[str], None]) -> None:
        _refuse(options)
        quiet = replace(options.running, quiet=True, report="", live="off", log_dir="")
        optimization = replace(options.optimization, on=True)
        self._options = replace(options, running=quiet, optimization=optimization)
        self._command = command
        self._say = say
        self._environ = environment.callers_environment()
        topology = launch.machine(self._options, self._environ)
        preload = launch.libraries(self._options, self._environ, say)
        plain = replace(self._options, optimization=replace(optimization, on=False))
        self._plans: dict[bool, LaunchPlan] = {
            engine: launch.full_plan(one, topology, self._environ, say, preload=preload)
            for engine, one in ((True, self._options), (False, plain))
        }
        for warning in self._plans[True].warnings:
            say(f"warning: {warning}")
        _empty_stdin()

    def run(self, *, engine: bool, skip: str = "", tick: Callable[[], None] | None = None) -> Outcome:
        """One run to its end. ``skip``: patterns of modules to be left alone, beside the caller's own."""
        plan, running = self._plans[engine], self._options.running
        watch = Watch(plan, running, piped=True, say=self._say, command=self._command)
        kept = _Kept()
        skips = ",".join(filter(None, (self._environ.get(env.SKIP, ""), skip)))
        ticks = [Tick(CHECK_SECONDS, watch.check), Tick(0.5, watch.sample, 0.2)]
        if tick is not None:
            ticks.append(Tick(0.2, lambda jobs: tick()))
        with tempfile.TemporaryDirectory(prefix="slipstream-", ignore_cleanup_errors=True) as folder:
            variables = {env.REPORT_DIR: folder, **({env.SKIP: skips} if skips else {})}
            supervisor = Supervisor(
                plan.instances,
                running,
                environ={**self._environ, **variables},
                router=Router(kept, logs=None, listeners=(watch.metrics.listen,)),
                say=self._say,
                bind=launch.binds_itself(plan, self._options),
                ticks=ticks,
            )
            code = supervisor.run()
            ends = launch.ends(supervisor.jobs, plan)
            merged = report.merged_report(plan, folder, instances=ends, extra=watch.findings(supervisor.jobs))
        seconds = max(job.seconds for job in supervisor.jobs)
        return Outcome(code, seconds, kept.output(plan), kept.last_words(), merged, supervisor.interrupted)


class _Kept:
    """In the console's place: everything of standard output, the end of standard error."""

    def __init__(self) -> None:
        self._output: dict[int, bytearray] = {}
        self._lines = Lines()
        self._last: deque[bytes] = deque(maxlen=LAST_LINES)

    def write(self, index: int, stream: int, data: bytes) -> None:
        if stream == STDOUT:
            self._output.setdefault(index, bytearray()).extend(data)
        else:
            self._last.extend(self._lines.feed(data))

    def end(self, index: int, stream: int) -> None:
        if stream != STDOUT:
            self._last.extend(self._lines.end())

    def output(self, plan: LaunchPlan) -> dict[int, bytes]:
        return {one.index: bytes(self._output.get(one.index, b"")) for one in plan.instances}

    def last_words(self) -> tuple[str, ...]:
        return tuple(line.decode(errors="replace") for line in self._last)


def _refuse(options: LaunchOptions) -> None:
    if options.distributed.nnodes:
        raise UsageError(f"--nnodes {options.distributed.nnodes}: runs are compared on one machine; leave it out")
    if options.plan_from:
        raise UsageError(f"--plan-from {options.plan_from}: the engine is part of a finished plan; give the flags instead")


def _empty_stdin() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
