# SPDX-License-Identifier: Apache-2.0
"""Plans by worked example: those of older launchers that hold, and those where they were wrong and we differ."""

from dataclasses import replace

import pytest
from machines import (
    CLOSE_CLOCKS,
    DELL,
    DENSE,
    EIGHT,
    HYBRID,
    METEOR_LAKE,
    OFFLINE,
    Q0,
    SNC,
    T0,
    T1,
    T2,
    UNEVEN,
    VM,
    D,
    Q,
    cpus,
    lscpu,
    plan,
    sets,
    table,
)

from slipstream.errors import PlanError, UsageError
from slipstream.launcher.options import Placement
from slipstream.launcher.plan import make_plan
from slipstream.launcher.topology_file import parse_lscpu

KEPT = [
    (T1, "", "0-55"),
    (T1, "--ninstances 1", "0-55"),
    (T1, "--ncores-per-instance -1", "0-55"),
    (T1, "--ninstances 4", "0-13 | 14-27 | 28-41 | 42-55"),
    (T1, "--ncores-per-instance 14", "0-13 | 14-27 | 28-41 | 42-55"),
    (T1, "--ninstances 3 --ncores-per-instance -1", "0-18 | 19-37 | 38-55"),
    (T1, "--ncores-per-instance 10", "0-9 | 10-19 | 20-29 | 30-39 | 40-49"),
    (T1, "--ncores-per-instance 20 --bind-numa-node", "0-19 | 28-47"),
    (T1, "--ninstances 2 --ncores-per-instance 4", "0-3 | 28-31"),
    (T1, "--ninstances 2 --ncores-per-instance 4 --strategy close", "0-3 | 4-7"),
    (T1, "--ninstances 3 --ncores-per-instance 4 --bind-numa-node", "0-3 | 4-7 | 28-31"),
    (
        T1,
        "--ninstances 9 --ncores-per-instance 4 --bind-numa-node",
        "0-3 | 4-7 | 8-11 | 12-15 | 16-19 | 28-31 | 32-35 | 36-39 | 40-43",
    ),
    (T1, "--ninstances 3 --bind-numa-node", "0-27 | 28-41 | 42-55"),
    (T1, "--ninstances 5 --ncores-per-instance -1 --bind-numa-node", "0-13 | 14-27 | 28-37 | 38-46 | 47-55"),
    (T1, "--ninstances 2 --use-logical-cores", "0-27,56-83 | 28-55,84-111"),
    (
        T1,
        "--ninstances 7 --use-logical-cores --bind-numa-node",
        "0-8,56-64 | 9-17,65-73 | 18-26,74-82 | 28-34,84-90 | 35-41,91-97 | 42-48,98-104 | 49-55,105-111",
    ),
    (T1, "--cores-list 14-27,42-55 --ninstances 2", "14-27 | 42-55"),
    (T1, "--latency-mode", " | ".join(f"{core}-{core + 3}" for core in range(0, 56, 4))),
    (T1, "--throughput-mode", "0-27 | 28-55"),
    (T0, "--cores-list 14-27,42-55 --use-logical-cores", "14-27,42-55"),
    (T2, "--ninstances 4", " | ".join(",".join(map(str, range(start, start + 28, 2))) for start in range(0, 112, 28))),
    (T2, "--cores-list 14-27,98-111 --use-logical-cores --ninstances 2", "14-27 | 98-111"),
    (Q0, "--nodes-list 1,2", "28-41,56-69"),
    (Q, "--nodes-list 1,2 --ninstances 3 --use-logical-cores --bind-numa-node", "14-27,70-83 | 28-34,84-90 | 35-41,91-97"),
    (Q, "--ninstances 3 --bind-numa-node", "0-13 | 14-27 | 28-41"),
    (
        Q,
        "--ninstances 6 --ncores-per-instance 4 --bind-numa-node",
        "0-3 | 4-7 | 14-17 | 18-21 | 28-31 | 42-45",
    ),
    (Q, "--ncores-per-instance -1 --ninstances 5 --bind-numa-node", "0-13 | 14-27 | 28-41 | 42-48 | 49-55"),
    (HYBRID, "--ninstances 2", "0-27 | 28-55"),
    (HYBRID, "--ninstances 2 --use-e-cores", "0-27,112-115 | 28-55,116-119"),
    (VM, "", "0,2,4,6"),
    (VM, "--use-logical-cores", "0-7"),
    (VM, "--ninstances 2", "0,2 | 4,6"),
    (UNEVEN, "--ninstances 3 --bind-numa-node", "0-3 | 4-7 | 8-11"),
    (UNEVEN, "--ninstances 2 --bind-numa-node", "0-7 | 8-11"),
    (UNEVEN, "--ninstances 4 --bind-numa-node", "0-1 | 2-3 | 4-5 | 8-11"),
    (UNEVEN, "--ncores-per-instance 3 --bind-numa-node", "0-2 | 3-5 | 8-10"),
    (OFFLINE, "", "0,4,6"),
]


@pytest.mark.parametrize(("machine", "flags", "expected"), KEPT, ids=lambda value: value if len(str(value)) < 99 else "")
def test_examples_of_older_launchers_hold(machine, flags, expected):
    assert cpus(plan(machine, flags)) == sets(expected)


DIFFERENT = [
    # nine were asked for: the older one started seven
    (
        T1,
        "--ninstances 9 --ncores-per-instance 4",
        "0-3 | 4-7 | 8-11 | 12-15 | 16-19 | 28-31 | 32-35 | 36-39 | 40-43",
    ),
    # six, none crossing: it started five, one of them over two nodes
    (Q, "--ninstances 6 --ncores-per-instance 4", "0-3 | 4-7 | 14-17 | 18-21 | 28-31 | 42-45"),
    # an explicit list is honoured though it names second threads only
    (T1, "--cores-list 56-83", "56-83"),
    # whole cores: it gave the two threads of core 18 to two instances
    (T1, "--ninstances 3 --use-logical-cores", "0-17,56-73 | 18-35,74-91 | 36-53,92-109"),
    # no instance of latency mode crosses a node
    (D, "--latency-mode", "0-3 | 4-7 | 8-11 | 12-15 | 16-19 | 22-25 | 26-29 | 30-33 | 34-37 | 38-41"),
    # node-local where a plan of the same sizes is
    (DELL, "--ninstances 2", "0,2,4,6 | 1,3,5,7"),
    # both slower clusters are efficient cores
    (METEOR_LAKE, "", "0,2,4,6,8,10"),
    # a gap in clocks of 14 % between cores of two kinds
    (CLOSE_CLOCKS, "", "0,2,4,6"),
    # one kind of core in two builds: all are used, and a note says so
    (DENSE, "", "0,2,4,6,8,10,12,14,16,18,20,22"),
    # modes keep to the nodes that were named
    (T1, "--throughput-mode --nodes-list 0", "0-27"),
    (T1, "--latency-mode --nodes-list 1", " | ".join(f"{core}-{core + 3}" for core in range(28, 56, 4))),
    # one on each node: it started seven
    (EIGHT, "--ninstances 8 --ncores-per-instance 2", " | ".join(f"{core}-{core + 1}" for core in range(0, 56, 7))),
]


@pytest.mark.parametrize(("machine", "flags", "expected"), DIFFERENT, ids=lambda value: value if len(str(value)) < 99 else "")
def test_where_older_launchers_were_wrong(machine, flags, expected):
    assert cpus(plan(machine, flags)) == sets(expected)


IMPOSSIBLE = [
    (T1, "--ninstances 57", "--ninstances 57: more than the 56"),
    (T1, "--ncores-per-instance 57", "--ncores-per-instance 57: more than the 56"),
    (EIGHT, "--ncores-per-instance 8 --bind-numa-node", "more than the 7 cores of one node"),
    (T1, "--ninstances 15 --ncores-per-instance 4", "fits 14 times"),
    (T1, "--nodes-list 2", "nodes with CPUs: 0-1"),
    (T1, "--cores-list 200", "no CPU 200 here"),
    (OFFLINE, "--cores-list 2", "CPU 2 is offline"),
    (T1, "--ninstances 2 --instance-idx 2", "the plan has instances 0 to 1"),
    (T1, "--memory-policy hbm", "names no memory-only node"),
]


@pytest.mark.parametrize(("machine", "flags", "sentence"), IMPOSSIBLE, ids=lambda value: value if len(str(value)) < 99 else "")
def test_what_cannot_be_held_is_refused_in_one_line(machine, flags, sentence):
    with pytest.raises(PlanError) as caught:
        plan(machine, flags)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flags", ["--cores-list 3-1", "--cores-list 0,,2", "--nodes-list x", "--latency-mode --throughput-mode"]
)
def test_contradictions_are_refused(flags):
    with pytest.raises(UsageError):
        plan(T1, flags)


@pytest.mark.parametrize(
    ("header", "row", "nodes"),
    [
        ("CPU CORE SOCKET NODE MAXMHZ", "{cpu} {cpu} 0 0 -", (0,)),  # no clock known
        ("CPU CORE SOCKET NODE", "{cpu} {cpu} 0 -", (0,)),
        ("CPU CORE SOCKET NODE", "{cpu} {cpu} - 0", (0,)),
        ("CPU CORE SOCKET", "{cpu} {cpu} 3", (3,)),
        ("CPU CORE SOCKET NODE MAXMHZ", "{cpu} {cpu} 0 0 3800,0", (0,)),  # written under a German locale
    ],
)
def test_dashes_and_missing_columns(header, row, nodes):
    machine = "\n".join([header, *(row.format(cpu=cpu) for cpu in range(4))])
    only = plan(machine).instances[0]
    assert (only.cpus, only.nodes) == ((0, 1, 2, 3), nodes)


def test_every_cpu_is_given_or_left_out_with_a_reason():
    made = plan(HYBRID, "--ninstances 3 --nodes-list 0")
    given = set().union(*cpus(made))
    left = [set(item.cpus) for item in made.left_out]
    assert given | set().union(*left) == set(range(120))
    assert sum(map(len, left)) + len(given) == 120
    assert {item.reason.split(";")[0] for item in made.left_out} == {
        "not in --nodes-list",
        "efficient core",
        "SMT sibling of a core in use",
        "remainder of the even split",
    }


def test_a_crossing_is_said():
    assert any(
        "instance 2 (CPUs 20-29) crosses NUMA nodes 0-1" in text for text in plan(T1, "--ncores-per-instance 10").warnings
    )
    assert plan(T1, "--ninstances 4").warnings == ()


def test_policy_on_dense_cores_is_said():
    assert "8-23" in plan(DENSE).warnings[0]


def test_without_node_column_a_node_is_a_socket():
    assert [one.nodes for one in plan(lscpu(2, 4, with_node=False), "--ninstances 2").instances] == [(0,), (1,)]


def test_memory_is_preferred_on_the_own_node_and_interleaved_over_several():
    assert [(one.memory_policy, one.memory_nodes) for one in plan(T1, "--ninstances 2").instances] == [
        ("preferred", (0,)),
        ("preferred", (1,)),
    ]
    assert plan(T1).instances[0].memory_policy == "interleave"
    assert plan(VM).instances[0].memory_policy == "none"


def test_an_instance_does_not_cross_a_cache_when_asked():
    rows = [(cpu, cpu, 0, 0, f"{cpu}:{cpu}:{cpu}:{cpu // 3}") for cpu in range(9)]
    machine = table(rows, "CPU CORE SOCKET NODE L1d:L1i:L2:L3")
    assert cpus(plan(machine, "--ncores-per-instance 2 --group-by l3")) == sets("0-1 | 3-4 | 6-7")
    # without being asked, as many as fit
    assert cpus(plan(machine, "--ncores-per-instance 2")) == sets("0-1 | 2-3 | 4-5 | 6-7")
    # and inside caches where the same sizes fit there
    assert cpus(plan(machine, "--ncores-per-instance 2 --ninstances 3")) == sets("0-1 | 3-4 | 6-7")
    assert cpus(plan(machine, "--ncores-per-instance 1 --ninstances 3")) == sets("0 | 3 | 6")
    assert cpus(plan(machine, "--ncores-per-instance 1 --ninstances 4 --strategy close")) == sets("0 | 1 | 2 | 3")


def test_a_quota_takes_whole_cores_of_one_node_and_says_so():
    topology = replace(parse_lscpu(T1), quota=6.5)
    made = make_plan(topology, Placement(nodes_list=(1,)))
    assert cpus(made) == sets("28-33")
    assert any("CPU quota of 6.5" in item.reason for item in made.left_out)
    assert cpus(make_plan(topology, Placement(use_logical_cores=True))) == sets("0-2,56-58")
    with pytest.raises(PlanError, match=r"at most 6 .*CPU quota of 6.5"):
        make_plan(topology, Placement(ninstances=7))
    listed = make_plan(topology, Placement(cores_list=tuple(range(10))))
    assert cpus(listed) == sets("0-9")
    assert "expect throttling" in listed.warnings[0]


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        (SNC, "--sockets-list 1", "8-15"),
        (SNC, "--socket_id 1", "8-15"),
        (SNC, "--socket_id 1 --throughput-mode", "8-11 | 12-15"),
        (SNC, "--socket_id -1", "0-15"),
        (SNC, "--node_id 1", "4-7"),
        (SNC, "--nodes-list 1 --socket_id 1", "4-7"),
        (SNC, "--cores-list 2,3 --sockets-list 1", "2,3"),
        (T1, "--socket_id 1", "28-55"),
        (lscpu(2, 4, with_node=False), "--socket_id 1", "4-7"),  # the kernel knows one node only
    ],
)
def test_a_socket_is_all_of_its_nodes(machine, flags, expected):
    assert cpus(plan(machine, flags)) == sets(expected)


def test_a_socket_that_is_not_there():
    with pytest.raises(PlanError, match="--sockets-list 2: socket 2 has no CPU that may be used here; sockets with CPUs: 0-1"):
        plan(SNC, "--socket_id 2")
