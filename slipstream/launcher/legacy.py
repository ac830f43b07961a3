# SPDX-License-Identifier: Apache-2.0
"""Spellings of older launchers (ipexrun since 1.2, torch.backends.xeon.run_cpu) as rows: old name, new words.

The words that take their place are today's flags; a note on stderr says so once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Legacy:
    """``words(value, given)`` are today's words for one old flag; ``given`` are today's names also on the line."""

    takes_value: bool
    words: Callable[[str, Collection[str]], list[str]]
    unset: str = ""
    """The value that meant "not given": the flag is dropped."""
    note: str = ""
    """Said where the flag was dropped, in place of its new spelling."""


def renamed(name: str, *, unset: str = "") -> Legacy:
    """The same value under another name."""
    return Legacy(True, lambda value, given: [f"--{name}", value], unset)


def now(*words: str) -> Legacy:
    """A switch that became other words."""
    return Legacy(False, lambda value, given: list(words))


def _unless(name: str, *words: str) -> Callable[[str, Collection[str]], list[str]]:
    return lambda value, given: [] if name in given else list(words)


def _allocator(name: str, *stronger: str) -> Legacy:
    """tcmalloc before jemalloc before default, as in releases 2.0.100 to 2.3 (the older ones refused two)."""
    return Legacy(
        False,
        lambda value, given: [] if any(other in given for other in stronger) else ["--memory-allocator", name],
        note="a stronger allocator flag is on the line",
    )


def _multi_instance(value: str, given: Collection[str]) -> list[str]:
    sized = {"ninstances", "ncores-per-instance", "latency-mode", "throughput-mode"}
    return [] if sized.intersection(given) else ["--throughput-mode"]


def _disable_numactl(value: str, given: Collection[str]) -> list[str]:
    return ["--multi-task-manager", "none" if "disable-taskset" in given else "taskset"]


def _disable_taskset(value: str, given: Collection[str]) -> list[str]:
    return [] if "disable-numactl" in given else ["--multi-task-manager", "numactl"]


LEGACY: dict[str, Legacy] = {
    "ncore-per-instance": renamed("ncores-per-instance", unset="-1"),
    "ninstance": renamed("ninstances", unset="-1"),
    "socket-id": renamed("sockets-list", unset="-1"),
    "node-id": renamed("nodes-list", unset="-1"),
    "core-list": renamed("cores-list"),
    "use-logical-core": now("--use-logical-cores"),
    "latency-performance": now("--latency-mode"),
    "throughput-performance": now("--throughput-mode"),
    "multi-instance": Legacy(False, _multi_instance, note="the sizes on the line say it all"),
    "distributed": Legacy(False, _unless("nnodes", "--nnodes", "1"), note="--nnodes is on the line"),
    "nproc-per-node": renamed("nprocs-per-node"),
    "more-mpi-parms": renamed("extra-mpi-params"),
    "more-mpi-params": renamed("extra-mpi-params"),
    "logical-core-for-ccl": now("--logical-cores-for-ccl"),
    "enable-tcmalloc": _allocator("tcmalloc"),
    "enable-jemalloc": _allocator("jemalloc", "enable-tcmalloc"),
    "use-default-allocator": _allocator("default", "enable-tcmalloc", "enable-jemalloc"),
    "enable-iomp": now("--omp-runtime", "intel"),
    "disable-iomp": now("--omp-runtime", "default"),
    "kmp-affinity": Legacy(True, lambda value, given: ["--env", f"KMP_AFFINITY={value}"]),
    "disable-numactl": Legacy(False, _disable_numactl),
    "disable-taskset": Legacy(False, _disable_taskset, note="--disable-numactl is on the line"),
    "skip-cross-node-cores": now("--bind-numa-node"),
    "rank": renamed("instance-idx", unset="-1"),
    "log-path": renamed("log-dir"),
    "silent": now("--quiet"),
}
