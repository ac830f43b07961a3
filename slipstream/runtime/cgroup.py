# SPDX-License-Identifier: Apache-2.0
"""What the control groups of this process leave of the machine: CPUs, memory nodes, CPU time.

Both versions, also mixed ("hybrid"), seen from the host and from inside a container.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slipstream.errors import UsageError
from slipstream.runtime.cpu_list import parse_cpu_list


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest limits over the group and its ancestors; None where there is none.

    ``quota`` is CPU time in CPUs: 250 ms of every 100 ms are 2.5.
    """

    cpus: frozenset[int] | None = None
    memory_nodes: frozenset[int] | None = None
    quota: float | None = None


def read_limits(*, proc: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> CgroupLimits:
    """The limits of the process whose /proc folder is given; what cannot be read limits nothing."""
    cpus: frozenset[int] | None = None
    nodes: frozenset[int] | None = None
    quotas: list[float] = []
    for controllers, group in _memberships(proc / "cgroup"):
        if not controllers:
            for folder in _lineage(mounts, group) + _lineage(mounts / "unified", group):
                quotas += _quota_v2(folder)
            cpus = cpus or _numbers(mounts, group, "cpuset.cpus.effective")
            nodes = nodes or _numbers(mounts, group, "cpuset.mems.effective")
        if "cpuset" in controllers:
            cpus = _numbers(mounts / "cpuset", group, "cpuset.cpus") or cpus
            nodes = _numbers(mounts / "cpuset", group, "cpuset.mems") or nodes
        if "cpu" in controllers:
            for name in ("cpu", "cpu,cpuacct"):
                for folder in _lineage(mounts / name, group):
                    quotas += _quota_v1(folder)
    return CgroupLimits(cpus, nodes, min(quotas, default=None))


def memory_left(*, proc: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes between what each limited group above the process holds and its limit; page cache counts as held."""
    left: list[int] = []
    for controllers, group in _memberships(proc / "cgroup"):
        if not controllers:
            for folder in _lineage(mounts, group) + _lineage(mounts / "unified", group):
                left += _memory_left(folder, "memory.max", "memory.current")
        if "memory" in controllers:
            for folder in _lineage(mounts / "memory", group):
                left += _memory_left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return left


def _memory_left(folder: Path, limit: str, used: str) -> list[int]:
    texts = _text(folder / limit) or "", _text(folder / used) or ""
    return [max(0, int(texts[0]) - int(texts[1]))] if all(text.isdigit() for text in texts) else []


def _memberships(path: Path) -> Iterator[tuple[list[str], str]]:
    """(controllers, group) of each line of /proc/self/cgroup; version 2 has no controllers."""
    for line in (_text(path) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, group = rest.partition(":")
        if colon:
            yield [name for name in controllers.split(",") if name], group


def _lineage(mount: Path, group: str) -> list[Path]:
    """The group's folder and all above it up to the mount.

    Inside a container the group's path is often the host's, and the mount shows only its own part:
    then the folders do not exist, and the mount itself holds the limits.
    """
    parts = [part for part in group.split("/") if part not in {"", ".."}]
    return [mount.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


def _numbers(mount: Path, group: str, name: str) -> frozenset[int] | None:
    for folder in _lineage(mount, group):
        text = _text(folder / name)
        if text:
            try:
                return frozenset(parse_cpu_list(text))
            except UsageError:
                return None
    return None


def _quota_v2(folder: Path) -> list[float]:
    fields = (_text(folder / "cpu.max") or "").split()
    return _ratio(*fields) if len(fields) == 2 else []


def _quota_v1(folder: Path) -> list[float]:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return _ratio(quota, period) if quota and period else []


def _ratio(quota: str, period: str) -> list[float]:
    """[quota / period]; empty where there is no limit ("max" in version 2, -1 in version 1)."""
    try:
        allowed, every = int(quota), int(period)
    except ValueError:
        return []
    return [allowed / every] if allowed > 0 and every > 0 else []


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
