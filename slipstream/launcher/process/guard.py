# SPDX-License-Identifier: Apache-2.0
"""A process that outlives the launcher by a moment: if the launcher is killed, it kills all instances' groups.

The kernel's parent-death signal reaches the instances themselves, but not what they have started; SIGKILL
leaves the launcher no time to do anything. So a small forked process waits at a pipe for its end.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

HIGHEST_DESCRIPTOR = 1024
"""The usual limit of open files; only what the caller passed down is open when the guard starts."""


class Guard:
    """Fork before any pipe or child exists: ``watch`` a group, ``forget`` it, ``dismiss`` the guard at the end."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            os.close(self._writer)
            _wait_for_the_end(reader)
        os.close(reader)

    def watch(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def dismiss(self) -> None:
        self._tell("dismissed\n")
        os.close(self._writer)
        with suppress(ChildProcessError):
            os.waitpid(self._process, 0)

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):
            os.write(self._writer, line.encode())


def _wait_for_the_end(reader: int) -> None:
    """The guard's whole life; never returns."""
    try:
        os.setsid()  # a Ctrl-C or a hang-up is for the others
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)  # whoever reads the launcher's output must see its end
        os.closerange(3, reader)  # and so with any other pipe that came down from the caller
        os.closerange(reader + 1, HIGHEST_DESCRIPTOR)
        groups: set[int] = set()
        with os.fdopen(reader, "r") as lines:
            for line in lines:
                if line == "dismissed\n":
                    os._exit(0)
                group = int(line[1:])
                (groups.add if line[0] == "+" else groups.discard)(group)
        for group in groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(0)
