# SPDX-License-Identifier: Apache-2.0
"""How much memory a process may still take: the machine's, and what its control groups leave."""

from __future__ import annotations

from pathlib import Path

from slipstream.runtime import cgroup


def available_bytes(*, proc: Path = Path("/proc"), mounts: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What can be taken without swapping, as the kernel estimates it, or less, as the tightest limit has it; None: unknown."""
    sizes = [*_of_machine(proc / "meminfo"), *cgroup.memory_left(proc=proc / "self", mounts=mounts)]
    return min(sizes, default=None)


def _of_machine(path: Path) -> list[int]:
    """[MemAvailable] of /proc/meminfo: ``MemAvailable:   23592540 kB``."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    fields = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return [int(words[1]) * 1024 for words in fields if len(words) == 3 and words[1].isdigit()]
