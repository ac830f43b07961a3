# SPDX-License-Identifier: Apache-2.0
"""Start the instances of a plan, pass signals and output on, stop what must be stopped, wait.

One thread, one loop. It decides nothing about CPUs: `plan.py` did. How one child is started: `process/child.py`.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO

from slipstream.decision import Decision
from slipstream.launcher.options import Running
from slipstream.launcher.plan import Instance
from slipstream.launcher.process import child, terminal
from slipstream.launcher.process.guard import Guard
from slipstream.launcher.process.output import Router

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)
TIMED_OUT = 124  # timeout(1) ends so
STDIN, STDOUT, STDERR = 0, 1, 2
READ_SIZE = 1 << 16
MOST_READS_AT_END = 32
"""Times READ_SIZE: twice the 1 MB that a pipe may hold. What a process left behind goes on to write is not waited for."""


@dataclass
class Job:
    """One started instance."""

    instance: Instance
    process: subprocess.Popen[bytes]
    started: float
    decisions: list[Decision] = field(default_factory=list)
    ended: float | None = None
    code: int | None = None

    @property
    def group(self) -> int:
        return self.process.pid

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started


@dataclass(frozen=True)
class Tick:
    """Something to be called now and then while the instances run."""

    every: float
    call: Callable[[Sequence[Job]], None]
    first: float = 0.5


def shell_code(returncode: int) -> int:
    """The exit code that a shell would show: 128 + n for a death by signal n."""
    return 128 - returncode if returncode < 0 else returncode


class Supervisor:
    """One run of a plan. ``router`` None: the single instance has the launcher's own streams.

    ``sources`` are further pipes to be read, as (file, index, stream): then what is started here keeps the
    launcher's own streams, and the output proper comes through these.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        running: Running,
        *,
        environ: Mapping[str, str],
        router: Router | None,
        say: Callable[[str], None],
        bind: bool = True,
        ticks: Sequence[Tick] = (),
        sources: Sequence[tuple[FileIO, int, int]] = (),
    ) -> None:
        self.jobs: list[Job] = []
        self._instances = instances
        self._running = running
        self._environ = environ
        self._router = router
        self._say = say
        self._bind = bind
        self._ticks = [(tick, time.monotonic() + tick.first) for tick in ticks]
        self._selector = selectors.DefaultSelector()
        self._sources = sources
        for file, index, stream in sources:
            self._selector.register(file, selectors.EVENT_READ, (index, stream))
        self._kill_at: float | None = None
        self._stopping = False
        self._first_failure = 0
        self.interrupted = 0
        """The signal by which somebody asked all of it to end."""
        self._owns_terminal = False

    def run(self) -> int:
        """The exit code of the whole: the first failure's, or 0."""
        guard = Guard()
        wakeup, handlers = self._listen()
        try:
            self._start_all(guard)
            deadline = time.monotonic() + self._running.timeout if self._running.timeout else None
            while any(job.code is None for job in self.jobs):
                if deadline is not None and time.monotonic() >= deadline:
                    deadline = None
                    self._first_failure = self._first_failure or TIMED_OUT
                    self._stop(signal.SIGTERM, f"--timeout {self._running.timeout:g} s is over")
                self._wait(wakeup, deadline)
                self._kill_overdue()
                self._tick()
                self._reap(guard)
            self._drain()
        finally:
            self._abandon()
            self._unlisten(handlers)
            guard.dismiss()
        return self._first_failure

    def _start_all(self, guard: Guard) -> None:
        several = len(self._instances) > 1
        self._owns_terminal = not several and terminal.is_ours()
        for instance in self._instances:
            pipe = subprocess.PIPE if self._router is not None and not self._sources else None
            stdin = subprocess.DEVNULL if several and os.isatty(STDIN) else None
            process, decisions = child.start(
                instance,
                environ=self._environ,
                streams=child.Streams(stdin, pipe, pipe),
                bind=self._bind,
                foreground=terminal.give_to_this_process if self._owns_terminal else None,
            )
            guard.watch(process.pid)
            self.jobs.append(Job(instance, process, time.monotonic(), decisions))
            for stream, source in ((STDOUT, process.stdout), (STDERR, process.stderr)):
                if source is not None:
                    os.set_blocking(source.fileno(), False)
                    self._selector.register(source, selectors.EVENT_READ, (instance.index, stream))
            for decision in decisions:
                if not decision.taken:
                    self._say(f"{decision.what}: {decision.reason}")

    def _listen(self) -> tuple[int, dict[int, object]]:
        """Signals become bytes in a pipe, so that the one loop sees them like everything else."""
        reader, writer = os.pipe()
        for end in (reader, writer):
            os.set_blocking(end, False)
        self._selector.register(reader, selectors.EVENT_READ)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handlers: dict[int, object] = {}
        for number in (*STOPPING, *PASSED_ON, signal.SIGTSTP, signal.SIGCHLD):
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGCHLD:  # nohup stays nohup
                handlers[number] = signal.signal(number, lambda number, frame: None)
        self._wakeup_ends = (reader, writer)
        return reader, handlers

    def _unlisten(self, handlers: dict[int, object]) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._selector.close()
        for end in self._wakeup_ends:
            os.close(end)

    def _wait(self, wakeup: int, deadline: float | None) -> None:
        moments = [moment for moment in (deadline, self._kill_at) if moment is not None]
        moments += [moment for _, moment in self._ticks]
        timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
        for key, _ in self._selector.select(timeout):
            if key.fd == wakeup:
                for number in os.read(wakeup, 4096):
                    self._on_signal(number)
            else:
                self._forward(key)

    def _forward(self, key: selectors.SelectorKey) -> bool:
        """Pass on what one pipe holds; False once nothing is to be had from it now."""
        index, stream = key.data
        assert self._router is not None
        try:
            data = os.read(key.fd, READ_SIZE)
        except BlockingIOError:
            return False
        if data:
            try:
                self._router.write(index, stream, data)
                return True
            except BrokenPipeError:
                pass  # nobody reads our output any more: the writer shall feel it as it would without us
        self._close(key)
        return False

    def _close(self, key: selectors.SelectorKey) -> None:
        assert self._router is not None
        self._selector.unregister(key.fileobj)
        self._router.end(*key.data)
        key.fileobj.close()  # type: ignore[union-attr]

    def _drain(self) -> None:
        """What is still in the pipes once all instances have ended. Their own children may hold them open."""
        for key in [key for key in self._selector.get_map().values() if key.data]:
            for _ in range(MOST_READS_AT_END):
                if not self._forward(key):
                    break
        for key in [key for key in self._selector.get_map().values() if key.data]:
            self._close(key)

    def _on_signal(self, number: int) -> None:
        if number in STOPPING:
            self.interrupted = number
            name = signal.Signals(number).name
            if self._stopping:
                self._kill_all()
            else:
                self._stop(number, "" if len(self.jobs) < 2 else f"{name}: stopping all instances")
        elif number in PASSED_ON:
            self._send(number)
        elif number == signal.SIGTSTP:
            self._send(signal.SIGTSTP)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._send(signal.SIGCONT)

    def _stop(self, number: int, why: str) -> None:
        """Ask every instance to end; after the grace period `_kill_overdue` makes it."""
        if why:
            self._say(why)
        self._stopping = True
        self._kill_at = time.monotonic() + self._running.grace
        self._send(number)

    def _send(self, number: int) -> None:
        for job in self.jobs:
            if job.code is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(job.group, number)

    def _kill_overdue(self) -> None:
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            late = [str(job.instance.index) for job in self.jobs if job.code is None]
            self._say(f"instance {', '.join(late)}: still running {self._running.grace:g} s later; killed")
            self._kill_all()

    def _kill_all(self) -> None:
        self._kill_at = None
        self._send(signal.SIGKILL)

    def _abandon(self) -> None:
        """Where starting failed half way: nothing that was started stays."""
        self._kill_all()
        for job in self.jobs:
            if job.code is None:
                job.process.wait()

    def _tick(self) -> None:
        now = time.monotonic()
        for place, (tick, moment) in enumerate(self._ticks):
            if now >= moment:
                tick.call(self.jobs)
                self._ticks[place] = (tick, now + tick.every)

    def _reap(self, guard: Guard) -> None:
        for job in self.jobs:
            if job.code is None and self._has_ended(job):
                if self._stopping:  # what it started must not outlive it; its pid is still its own here
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(job.group, signal.SIGKILL)
                job.code = shell_code(job.process.wait())
                job.ended = time.monotonic()
                guard.forget(job.group)
                self._after(job)

    def _has_ended(self, job: Job) -> bool:
        flags = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        state = os.waitid(os.P_PID, job.process.pid, flags)
        if state is None:
            return False
        if state.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, job.process.pid, os.WSTOPPED | os.WNOHANG)
            self._stop_with(job)
            return False
        return True

    def _stop_with(self, job: Job) -> None:
        """The instance in the foreground was stopped (Ctrl-Z): so is the launcher, and both go on together."""
        if not self._owns_terminal:
            return
        terminal.give_to(os.getpgrp())
        os.kill(os.getpid(), signal.SIGSTOP)
        terminal.give_to(job.group)
        os.killpg(job.group, signal.SIGCONT)

    def _after(self, job: Job) -> None:
        if self._owns_terminal:
            terminal.give_to(os.getpgrp())
        if not job.code:
            return
        self._first_failure = self._first_failure or job.code
        others = any(other.code is None for other in self.jobs)
        if others and not self._stopping and self._running.on_failure == "kill":
            self._stop(
                signal.SIGTERM,
                f"instance {job.instance.index} failed with exit code {job.code}: stopping the others "
                "(--on-failure continue lets them end)",
            )
