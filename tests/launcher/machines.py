# SPDX-License-Identifier: Apache-2.0
"""Machines as the text of `lscpu --all --extended`, and plans as sets of CPUs: what the planner's tests talk in."""

from slipstream.launcher.command_line import parse_command_line
from slipstream.launcher.options import launch_options
from slipstream.launcher.plan import make_plan
from slipstream.launcher.topology_file import parse_lscpu
from slipstream.runtime.cpu_list import parse_cpu_list


def table(rows, header="CPU CORE SOCKET NODE MAXMHZ"):
    return "\n".join([header, *(" ".join(map(str, row)) for row in sorted(rows))]) + "\n"


def lscpu(nodes, cores, *, smt=True, efficient=0, numbering="threads last", with_node=True):
    """``nodes`` sockets of ``cores`` P-cores (5000 MHz) and ``efficient`` E-cores (3800 MHz, one thread).

    CPU numbers: "threads last", first all nodes' cores, then their second threads (usual on Xeons);
    "node by node"; or "siblings adjacent" (usual in virtual machines).
    """
    threads = 2 if smt else 1

    def fast(node, thread):
        return [(node, core, thread) for core in range(cores)]

    def slow(node):
        return [(node, cores + core, 0) for core in range(efficient)]

    if numbering == "threads last":
        order = [cpu for thread in range(threads) for node in range(nodes) for cpu in fast(node, thread)]
        order += [cpu for node in range(nodes) for cpu in slow(node)]
    elif numbering == "node by node":
        order = [c for n in range(nodes) for c in [*(x for t in range(threads) for x in fast(n, t)), *slow(n)]]
    else:
        order = []
        for node in range(nodes):
            order += [(node, core, thread) for core in range(cores) for thread in range(threads)] + slow(node)
    rows = [
        (number, node * (cores + efficient) + core, node, node, 5000.0 if core < cores else 3800.0)
        for number, (node, core, _) in enumerate(order)
    ]
    if with_node:
        return table(rows)
    return table([(cpu, core, node, clock) for cpu, core, node, _, clock in rows], "CPU CORE SOCKET MAXMHZ")


T1 = lscpu(2, 28)
T0 = lscpu(2, 28, numbering="node by node")
T2 = lscpu(2, 28, numbering="siblings adjacent")
Q = lscpu(4, 14)
Q0 = lscpu(4, 14, numbering="node by node")
D = lscpu(2, 22)
HYBRID = lscpu(2, 28, efficient=4)
EIGHT = lscpu(8, 7, smt=False)
VM = table([(cpu, cpu // 2, 0, 0) for cpu in range(8)], "CPU CORE SOCKET NODE")
UNEVEN = table([(cpu, cpu, 0, int(cpu > 7)) for cpu in range(12)], "CPU CORE SOCKET NODE")
OFFLINE = "CPU CORE SOCKET NODE\n" + "".join(
    f"{cpu} - - -\n" if cpu in {2, 3} else f"{cpu} {cpu // 2} 0 0\n" for cpu in range(8)
)
# CPU i on node i % 2, CORE numbers alternate between the nodes: some vendors' firmware counts so
DELL = table([(cpu, cpu % 8, cpu % 2, cpu % 2) for cpu in range(16)], "CPU CORE SOCKET NODE")
# Sub-NUMA clustering: two sockets of two nodes of four cores
SNC = table([(cpu, cpu, cpu // 8, cpu // 4) for cpu in range(16)], "CPU CORE SOCKET NODE")
METEOR_LAKE = table(
    [(cpu, cpu // 2, 0, 0, 4800.0) for cpu in range(12)]
    + [(cpu, cpu - 6, 0, 0, 3800.0) for cpu in range(12, 20)]
    + [(cpu, cpu - 6, 0, 0, 2500.0) for cpu in range(20, 22)]
)
CLOSE_CLOCKS = table(
    [(cpu, cpu // 2, 0, 0, 5100.0) for cpu in range(8)] + [(cpu, cpu - 4, 0, 0, 4400.0) for cpu in range(8, 16)]
)
DENSE = table([(cpu, cpu // 2, 0, 0, 5100.0 if cpu < 8 else 3300.0) for cpu in range(24)])


def plan(machine, flags=""):
    line = parse_command_line([*flags.split(), "--dry-run", "--topology", "machine.txt", "script.py"], command="ipexrun")
    return make_plan(parse_lscpu(machine), launch_options(line).placement)


def cpus(a_plan):
    return [set(instance.cpus) for instance in a_plan.instances]


def sets(text):
    """`0-3 | 28-31` as a list of sets."""
    return [set(parse_cpu_list(part)) for part in text.split("|")]
