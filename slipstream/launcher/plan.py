# SPDX-License-Identifier: Apache-2.0
"""(Topology, Placement) -> LaunchPlan: which instance gets which CPUs, and why the others get none. Pure.

Which cores are in question: here. How they are cut into instances: `allotment.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter

from slipstream.decision import Decision
from slipstream.errors import PlanError
from slipstream.launcher import allotment
from slipstream.launcher.allotment import Core
from slipstream.launcher.options import Placement
from slipstream.runtime.cpu_list import format_cpu_list
from slipstream.runtime.topology import Cpu, LeftOut, Topology

CORES_OF_LATENCY_MODE = 4


@dataclass(frozen=True)
class Instance:
    """One copy of the program. ``environment``, ``reasons`` and ``argv`` are filled in by `environment.py`."""

    index: int
    cpus: tuple[int, ...]
    nodes: tuple[int, ...]
    threads: int
    memory_policy: str = "none"
    memory_nodes: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class LaunchPlan:
    """All instances, every CPU that none of them gets with its reason, and what the user should know.

    Where the instances are ranks of one job, ``command`` is what starts them.
    """

    instances: tuple[Instance, ...]
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()


def make_plan(topology: Topology, placement: Placement) -> LaunchPlan:
    """The one plan for this request, or a PlanError that says what would fit."""
    notes: list[str] = list(topology.notes)
    left_out = list(topology.left_out)
    cpus = _asked_for(topology, placement, left_out)
    if not placement.cores_list:
        cpus = _without_e_cores(cpus, placement, left_out, notes)
        cpus = _without_siblings(cpus, placement, left_out)
    cores = _within_quota(_cores(cpus), topology, placement, left_out, notes)
    placement = _mode_applied(cores, placement, notes)
    try:
        allotted = allotment.allot(cores, placement)
    except PlanError as error:
        raise PlanError(f"{error}{_what_is_out_of_reach(left_out)}") from error
    instances = [_instance(index, members, cpus, topology, placement) for index, members in enumerate(allotted)]
    _explain_rest(instances, cores, allotted, placement, left_out)
    notes += _crossings(instances, placement)
    return LaunchPlan(_only(instances, placement.instance_idx), tuple(left_out), tuple(notes))


def _what_is_out_of_reach(left_out: list[LeftOut]) -> str:
    """Why the machine is smaller than it looks, where it is."""
    limits = [item for item in left_out if item.reason.startswith(("outside", "beyond", "offline", "for the other"))]
    return "".join(f" (CPUs {format_cpu_list(item.cpus)}: {item.reason})" for item in limits)


def nodes_asked_for(topology: Topology, placement: Placement) -> tuple[int, ...]:
    """The NUMA nodes of the CPUs in question."""
    return tuple(sorted({cpu.node for cpu in _asked_for(topology, placement, [])}))


def _asked_for(topology: Topology, placement: Placement, left_out: list[LeftOut]) -> list[Cpu]:
    """The CPUs of --cores-list, --nodes-list or --sockets-list, else all; in order of their numbers."""
    if placement.cores_list:
        flag, wanted, place = "--cores-list", placement.cores_list, attrgetter("number")
    elif placement.nodes_list:
        flag, wanted, place = "--nodes-list", placement.nodes_list, attrgetter("node")
    elif placement.sockets_list:
        flag, wanted, place = "--sockets-list", placement.sockets_list, attrgetter("socket")
    else:
        return list(topology.cpus)
    kept = [cpu for cpu in topology.cpus if place(cpu) in wanted]
    missing = set(wanted) - {place(cpu) for cpu in kept}
    if missing:
        raise PlanError(f"{flag} {format_cpu_list(wanted)}: {_why_missing(flag, missing, topology)}")
    rest = tuple(sorted(set(topology.numbers()) - {cpu.number for cpu in kept}))
    if rest:
        left_out.append(LeftOut(rest, f"not in {flag}"))
    return kept


def _why_missing(flag: str, missing: set[int], topology: Topology) -> str:
    text = format_cpu_list(missing)
    if flag != "--cores-list":
        kind = "node" if flag == "--nodes-list" else "socket"
        usable = format_cpu_list(getattr(cpu, kind) for cpu in topology.cpus)
        return f"{kind} {text} has no CPU that may be used here; {kind}s with CPUs: {usable}"
    for dropped in topology.left_out:
        hit = missing.intersection(dropped.cpus)
        if hit:
            return f"CPU {format_cpu_list(hit)} is {dropped.reason}; usable: {format_cpu_list(topology.numbers())}"
    return f"no CPU {text} here; usable: {format_cpu_list(topology.numbers())}"


def _without_e_cores(cpus: list[Cpu], placement: Placement, left_out: list[LeftOut], notes: list[str]) -> list[Cpu]:
    efficient = tuple(cpu.number for cpu in cpus if cpu.efficient)
    if not efficient or placement.use_e_cores:
        return cpus
    if len(efficient) == len(cpus):
        notes.append(f"only efficient cores may be used here (CPUs {format_cpu_list(efficient)}): they are used")
        return cpus
    left_out.append(LeftOut(efficient, "efficient core; --use-e-cores uses it"))
    return [cpu for cpu in cpus if not cpu.efficient]


def _without_siblings(cpus: list[Cpu], placement: Placement, left_out: list[LeftOut]) -> list[Cpu]:
    if placement.use_logical_cores:
        return cpus
    first = {core.cpus[0] for core in _cores(cpus)}
    siblings = tuple(cpu.number for cpu in cpus if cpu.number not in first)
    if siblings:
        left_out.append(LeftOut(siblings, "SMT sibling of a core in use; --use-logical-cores uses it"))
    return [cpu for cpu in cpus if cpu.number in first]


def _cores(cpus: Iterable[Cpu]) -> list[Core]:
    """Physical cores with those of their CPUs that are in question, by node, then by core."""
    members: dict[tuple[int, int], list[Cpu]] = {}
    for cpu in cpus:
        members.setdefault((cpu.node, cpu.core), []).append(cpu)
    return [
        Core(tuple(sorted(cpu.number for cpu in group)), group[0].node, group[0].socket, group[0].l3)
        for _, group in sorted(members.items())
    ]


def _within_quota(
    cores: list[Core], topology: Topology, placement: Placement, left_out: list[LeftOut], notes: list[str]
) -> list[Core]:
    """As many cores as the quota pays for: more threads than that are stopped by the kernel at every period."""
    count = sum(len(core.cpus) for core in cores)
    if topology.quota is None or topology.quota >= count:
        return cores
    if placement.cores_list:
        notes.append(
            f"--cores-list names {count} CPUs, the control group's quota pays for {topology.quota:g}: "
            "expect throttling; name fewer, or raise cpu.max"
        )
        return cores
    paid = max(1, int(topology.quota))
    node = _fullest_fitting_node(cores, paid)
    ordered = sorted(cores, key=lambda core: core.node != node)
    kept: set[Core] = set()
    used = 0
    for core in ordered:
        if used + len(core.cpus) <= paid or not kept:
            kept.add(core)
            used += len(core.cpus)
    dropped = tuple(number for core in cores if core not in kept for number in core.cpus)
    left_out.append(LeftOut(dropped, f"beyond the control group's CPU quota of {topology.quota:g} CPUs (cpu.max)"))
    return [core for core in cores if core in kept]


def _fullest_fitting_node(cores: list[Core], paid: int) -> int:
    """The first node that holds all that is paid for, else the largest."""
    sizes: dict[int, int] = {}
    for core in cores:
        sizes[core.node] = sizes.get(core.node, 0) + len(core.cpus)
    fitting = [node for node, size in sizes.items() if size >= paid]
    return min(fitting) if fitting else max(sizes, key=lambda node: (sizes[node], -node))


def _mode_applied(cores: list[Core], placement: Placement, notes: list[str]) -> Placement:
    """--latency-mode and --throughput-mode as sizes."""
    per_node: dict[int, int] = {}
    for core in cores:
        per_node[core.node] = per_node.get(core.node, 0) + len(core.cpus)
    if placement.mode == "throughput":
        return replace(placement, ninstances=len(per_node))
    if placement.mode == "latency":
        size = min(CORES_OF_LATENCY_MODE, max(per_node.values()))
        if size < CORES_OF_LATENCY_MODE:
            notes.append(f"--latency-mode: no node has {CORES_OF_LATENCY_MODE} cores; instances of {size}")
        return replace(placement, ncores=size)
    return placement


def _instance(index: int, members: tuple[int, ...], cpus: list[Cpu], topology: Topology, placement: Placement) -> Instance:
    mine = set(members)
    nodes = tuple(sorted({cpu.node for cpu in cpus if cpu.number in mine}))
    policy, memory_nodes = _memory(nodes, topology, placement.memory_policy)
    return Instance(index, tuple(sorted(members)), nodes, len(members), policy, memory_nodes)


def _memory(nodes: tuple[int, ...], topology: Topology, asked: str) -> tuple[str, tuple[int, ...]]:
    """The policy by its kernel name and its nodes; `none` where there is nothing to choose."""
    with_memory = tuple(node.number for node in topology.nodes if node.has_memory)
    own = tuple(node for node in nodes if node in with_memory)
    if asked in {"none", "local"}:
        return asked, ()
    if asked == "hbm":
        fast = topology.fast_memory_near(nodes)
        if not fast:
            raise PlanError(
                "--memory-policy hbm: the firmware names no memory-only node that is faster than "
                f"node {format_cpu_list(nodes)}; use --memory-policy bind, preferred or interleave"
            )
        return "preferred", fast
    if asked == "auto":
        if len(with_memory) < 2 or not own:
            return "none", ()
        # Preferred, not bind: an instance that outgrows its node gets slower, not killed.
        return ("preferred" if len(own) == 1 else "interleave"), own
    return asked, own or with_memory


def _explain_rest(
    instances: list[Instance],
    cores: list[Core],
    allotted: list[tuple[int, ...]],
    placement: Placement,
    left_out: list[LeftOut],
) -> None:
    used = {number for members in allotted for number in members}
    shared = tuple(n for core in cores if used.intersection(core.cpus) for n in core.cpus if n not in used)
    if shared:
        left_out.append(LeftOut(shared, "its core belongs to an instance that takes no more CPUs"))
    rest = tuple(n for core in cores if not used.intersection(core.cpus) for n in core.cpus)
    if rest:
        size = len(instances[0].cpus)
        border = f" without crossing a {placement.group_by}" if placement.group_by != "none" else ""
        asked = placement.ncores > 0 and placement.ninstances > 0
        why = "not needed by the instances asked for" if asked else f"remainder: no further {size} CPUs{border}"
        if placement.ncores == 0:
            why = f"remainder of the even split{border}; --ncores-per-instance -1 hands it out"
        left_out.append(LeftOut(rest, why))


def _crossings(instances: list[Instance], placement: Placement) -> list[str]:
    if len(instances) < 2 or placement.group_by == "node":
        return []
    crossing = [instance for instance in instances if len(instance.nodes) > 1]
    return [
        f"instance {one.index} (CPUs {format_cpu_list(one.cpus)}) crosses NUMA nodes {format_cpu_list(one.nodes)}: "
        "no plan of these sizes avoids it; --bind-numa-node does with other sizes"
        for one in crossing
    ]


def _only(instances: list[Instance], indices: tuple[int, ...]) -> tuple[Instance, ...]:
    unknown = [index for index in indices if index >= len(instances)]
    if unknown:
        raise PlanError(f"--instance-idx {format_cpu_list(indices)}: the plan has instances 0 to {len(instances) - 1}")
    return tuple(one for one in instances if not indices or one.index in indices)
