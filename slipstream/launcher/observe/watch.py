# SPDX-License-Identifier: Apache-2.0
"""Everything that looks at a run while it goes on, tied together: lines, usage, checks, the live table, logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slipstream.decision import Decision
from slipstream.launcher.observe import verify
from slipstream.launcher.observe.metrics import Metrics
from slipstream.launcher.observe.usage import Sampler
from slipstream.launcher.options import Running
from slipstream.launcher.plan import LaunchPlan
from slipstream.launcher.process.output import (
    STDERR,
    Console,
    LogFiles,
    PlainConsole,
    PrefixConsole,
    Quiet,
    Router,
)

if TYPE_CHECKING:
    from slipstream.launcher.observe.live import LiveTable
    from slipstream.launcher.spawn import Job

CHECK_SECONDS = 1.0
"""Threads come and go; their masks are a few small files, read in well under a millisecond."""

PAGES_EVERY = 10
"""Every tenth check looks at pages too: the kernel walks the whole page table for that."""


WORTH_SAYING_AGAIN = 4.0
"""A difference is said again once it is so many times what was said of it last."""


class Watch:
    """One run's observers. ``piped``: output comes through the launcher."""

    def __init__(self, plan: LaunchPlan, running: Running, *, piped: bool, say: Callable[[str], None], command: str) -> None:
        self._command = command
        self.metrics = Metrics(running.metrics)
        self.sampler = Sampler()
        self.checks: dict[str, Decision] = {}
        self._said: dict[str, float] = {}
        self._narrowed: set[int] = set()
        self.logs = (
            LogFiles(running.log_dir, prefix=running.log_file_prefix, instances=plan.instances) if running.log_dir else None
        )
        self._several = len(plan.instances) > 1
        self._say = say
        self._round = 0
        self.live: LiveTable | None = None
        if piped and not running.quiet:
            self.live = self._live_table(running)
        self._piped = piped
        self._quiet = running.quiet

    def router(self) -> Router | None:
        """Where output goes; None: the instance has the launcher's own streams."""
        if not self._piped:
            return None
        return Router(self._console(), logs=self.logs, listeners=(self.metrics.listen,))

    def say(self, text: str) -> None:
        """A line of the launcher's own: to its log too, and above the live table."""
        if self.logs is not None:
            self.logs.note(text)
        if self.live is not None:
            self.live.write(STDERR, f"{self._command}: {text}\n".encode())
        else:
            self._say(text)

    def start(self) -> None:
        if self.live is not None:
            self.live.start()

    def stop(self, jobs: Sequence[Job]) -> None:
        if self.live is not None:
            if jobs:
                self.live.refresh(jobs)
            self.live.stop()
        if self.logs is not None:
            for job in jobs:
                self.logs.note(f"instance {job.instance.index}: exit code {job.code} after {job.seconds:.1f} s")
            self.logs.close()

    def sample(self, jobs: Sequence[Job]) -> None:
        try:
            self.sampler.sample([job.group for job in jobs if job.code is None])
        except OSError as error:  # a sandbox without /proc must not end the run
            self._note(Decision("use of the machine, read from /proc", False, str(error)))
        if self.live is not None:
            self.live.refresh(jobs)

    def check(self, jobs: Sequence[Job]) -> None:
        """Compare the running instances with the plan; say a difference once, and again when it has grown much."""
        for job in jobs:
            if job.code is not None:
                continue
            try:
                found = [self._check_threads(job)]
            except OSError as error:
                found = [Decision(f"instance {job.instance.index}: threads, read from /proc", False, str(error))]
            if self._round % PAGES_EVERY == 0:
                found.append(verify.check_pages(job.instance, job.process.pid))
            for decision in found:
                if decision is not None:
                    self._note(decision)
        self._round += 1

    def _check_threads(self, job: Job) -> Decision | None:
        """A main thread that is narrowed counts as that from the second look in a row on."""
        instance, pid = job.instance, job.process.pid
        was_narrowed = instance.index in self._narrowed
        self._narrowed.discard(instance.index)
        if verify.is_narrowed(instance, pid):
            self._narrowed.add(instance.index)
            if not was_narrowed:
                return None
        return verify.check_threads(instance, pid)

    def findings(self, jobs: Sequence[Job]) -> Mapping[str, Any]:
        """For the report."""
        courses = {job.instance.index: self.sampler.courses.get(job.group) for job in jobs}
        return {
            "metrics": self.metrics.as_dicts(),
            "checks": [decision.as_dict() for decision in self.checks.values()],
            "usage": {index: vars(course) for index, course in courses.items() if course is not None},
        }

    def _note(self, decision: Decision) -> None:
        """The last word on each check stays, but a difference gives way only to a larger one."""
        before = self.checks.get(decision.what)
        if before is None or before.taken:
            self.checks[decision.what] = decision
            if not decision.taken:
                self._warn(decision)
        elif not decision.taken and _amount(decision) > _amount(before):
            self.checks[decision.what] = decision
            if _amount(decision) >= WORTH_SAYING_AGAIN * self._said[decision.what]:
                self._warn(decision)

    def _warn(self, decision: Decision) -> None:
        self._said[decision.what] = _amount(decision)
        self.say(f"warning: {decision.what}: {decision.reason}")

    def _console(self) -> Console:
        if self._quiet:
            return Quiet()
        if not self._several:
            return PlainConsole()
        return PrefixConsole(self.live.write if self.live is not None else None)

    def _live_table(self, running: Running) -> LiveTable | None:
        wanted = running.live == "on" or (running.live == "auto" and self._several and os.isatty(2))
        if not wanted:
            return None
        try:
            from slipstream.launcher.observe.live import LiveTable
        except ImportError as error:
            self.say(f"warning: no live table, lines only ({error}): pip install rich, or --live off")
            return None
        return LiveTable(self.metrics, self.sampler, stdout_is_terminal=sys.stdout.isatty())


def _amount(difference: Decision) -> float:
    """How much of it there is: megabytes, threads."""
    return max(difference.figures.values(), default=0.0)
