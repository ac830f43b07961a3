# SPDX-License-Identifier: Apache-2.0
"""The checks on the machine with a third node, of memory alone and four times as fast (as HBM is beside DDR)."""

from __future__ import annotations

from pathlib import Path

from launching import expect, expect_instances, launch, plan, planned_cpus

NODE = Path("/sys/devices/system/node")


def the_machine_itself() -> None:
    expect("machine: nodes with memory", "0-2", (NODE / "has_memory").read_text().strip())
    expect("machine: CPUs of node 2", "", (NODE / "node2/cpulist").read_text().strip())
    speeds = [int((NODE / f"node{node}/access0/initiators/read_bandwidth").read_text()) for node in (0, 1, 2)]
    ratios = " ".join(f"{speed / speeds[0]:g}" for speed in speeds)
    expect("machine: speeds of the nodes by the firmware's table", "1 1 4", ratios)


def memory_alone_runs_nothing() -> None:
    expect("plan", "0,2,4,6", planned_cpus(plan()))
    expect("plan --throughput-mode", "0,2 | 4,6", planned_cpus(plan("--throughput-mode")))


def memory_only_where_asked_for() -> None:
    expect_instances("no flags", launch(), ["CPUs 0,2,4,6, 4 threads, interleave:0-1, pages on nodes 0,1 evenly"])
    texts = ["CPUs 0,2, 2 threads, prefer:2, pages on node 2", "CPUs 4,6, 2 threads, prefer:2, pages on node 2"]
    expect_instances("--memory-policy hbm --ninstances 2", launch("--memory-policy", "hbm", "--ninstances", "2"), texts)


CHECKS = (the_machine_itself, memory_alone_runs_nothing, memory_only_where_asked_for)
