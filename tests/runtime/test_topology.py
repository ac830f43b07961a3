# SPDX-License-Identifier: Apache-2.0
"""Topology from /sys trees as the kernel lays them out, and what affinity and control groups leave of it."""

import os

import pytest

from slipstream.errors import UsageError
from slipstream.runtime import cgroup, core_kind
from slipstream.runtime.topology import read_sys, read_topology, restrict, summary


def write(root, files):
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{content}\n")
    return root


def cpu(number, *, core, socket=0, siblings=None, l3=None, die=None):
    folder = f"devices/system/cpu/cpu{number}"
    files = {
        f"{folder}/topology/core_id": core,
        f"{folder}/topology/physical_package_id": socket,
        f"{folder}/topology/thread_siblings_list": siblings or number,
    }
    if die is not None:
        files[f"{folder}/topology/die_id"] = die
    if l3 is not None:
        files |= {f"{folder}/cache/index3/level": 3, f"{folder}/cache/index3/shared_cpu_list": l3}
    return files


def two_sockets_with_smt(root):
    """CPU i and i + 4 are one core; sockets 0-1,4-5 and 2-3,6-7; node 2 is memory only, node 3 slower memory."""
    files = {
        "devices/system/cpu/online": "0-7",
        "devices/system/cpu/present": "0-8",
        "devices/system/node/online": "0-3",
        "devices/system/node/has_memory": "0-3",
    }
    for number in range(8):
        # the kernel's core numbers start anew in each socket
        socket, core = (number % 4) // 2, number % 2
        shared = "0-1,4-5" if socket == 0 else "2-3,6-7"
        files |= cpu(number, core=core, socket=socket, siblings=f"{number % 4},{number % 4 + 4}", l3=shared)
    bandwidth = {0: 200_000, 1: 200_000, 2: 800_000, 3: 20_000}
    cpus = {0: "0-1,4-5", 1: "2-3,6-7", 2: "", 3: ""}
    distance = {0: "10 21 13 14", 1: "21 10 23 24", 2: "13 23 10 30", 3: "14 24 30 10"}
    for node in range(4):
        folder = f"devices/system/node/node{node}"
        files |= {f"{folder}/cpulist": cpus[node], f"{folder}/distance": distance[node]}
        files[f"{folder}/access0/initiators/read_bandwidth"] = bandwidth[node]
    return write(root, files)


def test_siblings_sockets_nodes_caches_offline(tmp_path):
    found = read_sys(two_sockets_with_smt(tmp_path))
    assert [(one.core, one.socket, one.node, one.l3) for one in found.cpus] == [
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (2, 1, 1, 1),
        (3, 1, 1, 1),
    ] * 2
    assert [(item.cpus, item.reason) for item in found.left_out] == [((8,), "offline")]
    assert [(node.number, node.has_cpu) for node in found.nodes] == [(0, True), (1, True), (2, False), (3, False)]
    assert "8 CPUs, 4 physical cores, 2 sockets, 2 NUMA nodes, 2 L3 domains" in summary(found)


def test_fast_memory_is_told_from_slow_by_bandwidth(tmp_path):
    found = read_sys(two_sockets_with_smt(tmp_path))
    assert found.fast_memory_near((0,)) == (2,)
    assert found.fast_memory_near((2,)) == ()


def test_hybrid_as_the_kernel_says(tmp_path):
    files = {"devices/system/cpu/online": "0-3", "devices/cpu_core/cpus": "0-1", "devices/cpu_atom/cpus": "2-3"}
    for number in range(4):
        files |= cpu(number, core=number)
        files[f"devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq"] = 4_000_000
    assert [one.efficient for one in read_sys(write(tmp_path, files)).cpus] == [False, False, True, True]


def test_big_and_little_by_capacity(tmp_path):
    files = {"devices/system/cpu/online": "0-3"}
    for number, capacity in enumerate((1024, 1000, 400, 250)):
        files |= cpu(number, core=number) | {f"devices/system/cpu/cpu{number}/cpu_capacity": capacity}
    assert [one.efficient for one in read_sys(write(tmp_path, files)).cpus] == [False, False, True, True]


def facts(*clocks, siblings=1):
    return [
        core_kind.CoreFacts(number, 0, number, tuple(range(siblings)), megahertz=clock) for number, clock in enumerate(clocks)
    ]


@pytest.mark.parametrize(
    ("clocks", "efficient"),
    [
        ((3500.0, 3500.0), set()),
        ((3800.0, 3600.0, 3500.0), set()),  # favoured cores of one kind
        ((5000.0, 3800.0), {1}),
        ((5000.0, None), set()),  # a clock is missing: nothing is compared
    ],
)
def test_clock_alone(clocks, efficient):
    assert core_kind.efficient_cpus(facts(*clocks)) == (efficient, "")


def test_no_cpu_folder_gives_single_cores_and_says_so(tmp_path):
    found = read_sys(tmp_path, known_cpus={3, 1})
    assert [one.number for one in found.cpus] == [1, 3]
    assert "cannot be read" in found.notes[0]
    with pytest.raises(UsageError, match="no CPUs found"):
        read_sys(tmp_path)


def test_restrict_keeps_the_reason(tmp_path):
    cut = restrict(read_sys(two_sockets_with_smt(tmp_path)), cpus={1, 5}, reason="test")
    assert cut.numbers() == (1, 5)
    assert cut.left_out[-1].cpus == (0, 2, 3, 4, 6, 7)
    assert restrict(cut, cpus=range(9), reason="nothing to cut") is cut


def test_this_machine_lies_within_the_mask():
    assert set(read_topology().numbers()) == os.sched_getaffinity(0)


def test_cgroup_version_2_takes_the_tightest_ancestor(tmp_path):
    write(
        tmp_path,
        {
            "proc/cgroup": "0::/slice/job",
            "cg/slice/cpu.max": "150000 100000",
            "cg/slice/job/cpu.max": "max 100000",
            "cg/slice/cpuset.cpus.effective": "0-3",
            "cg/slice/job/cpuset.cpus.effective": "1-2",
            "cg/slice/job/cpuset.mems.effective": "0",
        },
    )
    assert cgroup.read_limits(proc=tmp_path / "proc", mounts=tmp_path / "cg") == cgroup.CgroupLimits(
        frozenset({1, 2}), frozenset({0}), 1.5
    )


def test_cgroup_version_1_inside_a_container(tmp_path):
    """The path is the host's and does not exist here; the mount itself is the container's group."""
    write(
        tmp_path,
        {
            "proc/cgroup": "4:cpuset:/docker/abc\n3:cpu,cpuacct:/docker/abc",
            "cg/cpu/cpu.cfs_quota_us": "250000",
            "cg/cpu/cpu.cfs_period_us": "100000",
            "cg/cpuset/cpuset.cpus": "4-7",
        },
    )
    found = cgroup.read_limits(proc=tmp_path / "proc", mounts=tmp_path / "cg")
    assert found == cgroup.CgroupLimits(frozenset({4, 5, 6, 7}), None, 2.5)


@pytest.mark.parametrize("quota", ["-1", "0", "junk"])
def test_no_quota(tmp_path, quota):
    write(tmp_path, {"proc/cgroup": "3:cpu:/", "cg/cpu/cpu.cfs_quota_us": quota, "cg/cpu/cpu.cfs_period_us": "100000"})
    assert cgroup.read_limits(proc=tmp_path / "proc", mounts=tmp_path / "cg") == cgroup.CgroupLimits()


def test_unreadable_groups_limit_nothing(tmp_path):
    assert cgroup.read_limits(proc=tmp_path, mounts=tmp_path) == cgroup.CgroupLimits()
