# SPDX-License-Identifier: Apache-2.0
"""How much memory a process may still take: the machine's, and what its control groups leave."""

from __future__ import annotations

from pathlib import Path

from slipstream.runtime import cgroup


def available_bytes(*, proc: Path = Path("/proc"), mounts: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What can be taken without swapping, as the kernel estimates it, or less, as the tightest limit has it; None: unknown."""
    machine = read_sizes(proc / "meminfo").get("MemAvailable")
    sizes = cgroup.memory_left(proc=proc / "self", mounts=mounts)
    return min(sizes if machine is None else [machine, *sizes], default=None)


def read_sizes(path: Path) -> dict[str, int]:
    """The sizes in a meminfo file, in bytes: ``[Node 0] MemFree:  3297224 kB``; none where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.split() for line in text.splitlines())
    sized = (words for words in lines if len(words) >= 3 and words[-1] == "kB" and words[-2].isdigit())
    return {words[-3].rstrip(":"): int(words[-2]) * 1024 for words in sized}
