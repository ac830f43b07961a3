# SPDX-License-Identifier: Apache-2.0
"""The output of ranks, which the launcher does not start itself: a named pipe for each rank and stream.

The rank module opens its own before it becomes the program. A rank on another machine finds no such file
there and keeps the streams that its starter gave it.
"""

from __future__ import annotations

import os
from io import FileIO

from slipstream import env

STREAMS = (1, 2)


def open_pipes(folder: str, ranks: int) -> list[tuple[FileIO, int, int]]:
    """Make the pipes; (reading end, rank, stream) of each.

    Opened for writing too, so that a rank's end is not taken for the end of the pipe: it may be started again.
    """
    found = []
    for rank in range(ranks):
        for stream in STREAMS:
            path = _path(folder, rank, stream)
            os.mkfifo(path, 0o600)
            found.append((FileIO(os.open(path, os.O_RDWR | os.O_NONBLOCK), "r"), rank, stream))
    return found


def take_pipes(rank: int) -> None:
    """In the rank's process: write into its pipes from here on, if there are any."""
    folder = env.read(env.RANK_STREAMS)
    env.remove(env.RANK_STREAMS)
    for stream in STREAMS:
        path = _path(folder, rank, stream) if folder else ""
        if path and os.path.exists(path):
            pipe = os.open(path, os.O_WRONLY)
            os.dup2(pipe, stream)
            os.close(pipe)


def _path(folder: str, rank: int, stream: int) -> str:
    return os.path.join(folder, f"rank{rank}.{stream}")
