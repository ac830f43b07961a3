# SPDX-License-Identifier: Apache-2.0
"""The kernel's own view of a running instance against its plan: each thread's CPUs, each page's node."""

from __future__ import annotations

import re
from collections.abc import Iterable

from slipstream.decision import Decision
from slipstream.launcher.plan import Instance
from slipstream.runtime import affinity
from slipstream.runtime.cpu_list import format_cpu_list

TOLERATED_PART_ELSEWHERE = 0.05
"""Pages of libraries that other processes loaded first lie where those ran; they are few."""

LEAST_TOTAL = 32_000_000
"""Bytes below which it costs nothing where pages lie: an interpreter that has imported little."""

_ANONYMOUS = re.compile(r"\banon=(\d+)")
_ON_NODE = re.compile(r"\bN(\d+)=(\d+)")
_PAGE_SIZE = re.compile(r"\bkernelpagesize_kB=(\d+)")


def check_threads(instance: Instance, pid: int) -> Decision | None:
    """Whether the threads run where the plan says; None when the process is gone."""
    what = f"instance {instance.index}: threads on CPUs {format_cpu_list(instance.cpus)}"
    try:
        masks = affinity.cpus_by_thread(pid)
    except ProcessLookupError:
        return None
    if not masks:
        return None
    planned = frozenset(instance.cpus)
    escaped = {thread: mask for thread, mask in masks.items() if not mask <= planned}
    if escaped:
        thread, mask = next(iter(escaped.items()))
        return Decision(
            what,
            False,
            f"{len(escaped)} of {len(masks)} threads may leave the plan, as thread {thread} on {format_cpu_list(mask)}: "
            "the script or a library sets affinity itself; take that out, or plan with --cores-list",
            {"threads_outside": len(escaped)},
        )
    main = masks.get(pid, planned)
    if main != planned:
        return Decision(
            what,
            False,
            f"the main thread was narrowed to CPU {format_cpu_list(main)}, and what it starts (DataLoader workers) is too: "
            "unset OMP_PROC_BIND, GOMP_CPU_AFFINITY and KMP_AFFINITY",
        )
    inside = f"all {len(masks)} threads are" if len(masks) > 1 else "its one thread is"
    return Decision(what, True, f"{inside} inside, the main thread may use every one of these CPUs")


def is_narrowed(instance: Instance, pid: int) -> bool:
    """Whether the main thread may use fewer CPUs than planned, which libraries do to it for milliseconds while they are loaded
    and count cores: torch's does."""
    try:
        return affinity.allowed_cpus(pid) < frozenset(instance.cpus)
    except ProcessLookupError:
        return False


def check_pages(instance: Instance, pid: int) -> Decision | None:
    """Whether the process's own pages lie on the nodes of its policy; None where there is nothing to compare."""
    if instance.memory_policy not in {"bind", "preferred", "interleave"}:
        return None
    nodes = format_cpu_list(instance.memory_nodes)
    what = f"instance {instance.index}: memory on node {nodes} ({instance.memory_policy})"
    try:
        with open(f"/proc/{pid}/numa_maps", encoding="ascii", errors="replace") as file:
            by_node = bytes_by_node(file)
    except FileNotFoundError:
        return Decision(what, False, "this kernel keeps no numa_maps: where pages lie cannot be seen")
    except OSError:
        return None
    total = sum(by_node.values())
    if not total:
        return None
    elsewhere = total - sum(by_node.get(node, 0) for node in instance.memory_nodes)
    shares = ", ".join(f"node {node} {size / 1e6:.0f} MB" for node, size in sorted(by_node.items()))
    if elsewhere > TOLERATED_PART_ELSEWHERE * total:
        if total < LEAST_TOTAL:
            return None
        remedy = f"node {nodes} is full or was left; fewer instances, or --memory-policy interleave or bind"
        reason = f"{100 * elsewhere / total:.0f} % lies elsewhere ({shares}): {remedy}"
        return Decision(what, False, reason, {"elsewhere_mb": elsewhere / 1e6})
    return Decision(what, True, shares)


def bytes_by_node(lines: Iterable[str]) -> dict[int, int]:
    """The anonymous memory of a numa_maps text, by node; files' pages belong to the page cache.

    A privately mapped file of which some pages were written has both kinds in one line, and its counts by node
    do not tell them apart: only lines all of whose pages are anonymous count.
    """
    sizes: dict[int, int] = {}
    for line in lines:
        anonymous = _ANONYMOUS.search(line)
        pages = {int(node): int(count) for node, count in _ON_NODE.findall(line)}
        if anonymous is None or int(anonymous.group(1)) != sum(pages.values()):
            continue
        page = _PAGE_SIZE.search(line)
        unit = 1024 * int(page.group(1)) if page else 4096
        for node, count in pages.items():
            sizes[node] = sizes.get(node, 0) + count * unit
    return sizes
