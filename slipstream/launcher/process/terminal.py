# SPDX-License-Identifier: Apache-2.0
"""The terminal belongs to one process group at a time: hand it to a single instance, take it back.

Without this, an instance in a group of its own would be stopped at its first read (a debugger's prompt, say).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

STDIN = 0


def is_ours() -> bool:
    """Whether standard input is a terminal and this process is in its foreground."""
    try:
        return os.tcgetpgrp(STDIN) == os.getpgrp()
    except OSError:
        return False


def give_to(group: int) -> None:
    """Make ``group`` the foreground group; works from the background too."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):  # the terminal hung up
            os.tcsetpgrp(STDIN, group)
    finally:
        signal.signal(signal.SIGTTOU, before)


def give_to_this_process() -> None:
    """For the child, between fork and exec."""
    give_to(os.getpgrp())
