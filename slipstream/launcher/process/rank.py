# SPDX-License-Identifier: Apache-2.0
"""What a starter of ranks (torchrun, mpiexec) starts for each: take this rank's own CPUs, become the program.

`python -m slipstream.launcher.process.rank RANKS PROGRAM…`; RANKS is JSON, one entry for each local rank.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

from slipstream import env
from slipstream.launcher.plan import Instance
from slipstream.launcher.process.child import PR_SET_PDEATHSIG, bind_cpus
from slipstream.launcher.process.rank_streams import take_pipes

LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_LOCAL_RANK")
"""torchrun; MPICH and Intel MPI; Open MPI; Slurm's PMI."""

RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


def main(words: list[str]) -> None:
    ranks: list[dict[str, Any]] = json.loads(words[0])
    local = int(first_set(LOCAL_RANK) or int(first_set(RANK) or 0) % len(ranks))
    mine = ranks[local]
    # The starter puts each rank into a session of its own: it is out of reach of whoever cleans up the starter.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    take_pipes(local)
    instance = Instance(local, tuple(mine["cpus"]), (), len(mine["cpus"]))
    decision = bind_cpus(instance)
    if not decision.taken:
        sys.stderr.write(f"rank {local}: {decision.what}: {decision.reason}\n")
    if mine["memory_policy"] != "none":
        from slipstream.runtime import memory_policy

        memory = memory_policy.apply(mine["memory_policy"], tuple(mine["memory_nodes"]))
        if not memory.taken:
            sys.stderr.write(f"rank {local}: {memory.what}: {memory.reason}\n")
    for name, value in mine["env"].items():
        env.write(name, value)
    # torch's env:// initialization reads these names; under MPI nobody has set them.
    for name, value in (("RANK", first_set(RANK)), ("WORLD_SIZE", first_set(SIZE)), ("LOCAL_RANK", str(local))):
        if value and env.read(name) is None:
            env.write(name, value)
    os.execvp(words[1], words[1:])


def first_set(names: tuple[str, ...]) -> str | None:
    """The value of the first of these variables that is set."""
    return next((value for name in names if (value := env.read(name))), None)


if __name__ == "__main__":
    main(sys.argv[1:])
