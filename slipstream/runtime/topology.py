# SPDX-License-Identifier: Apache-2.0
"""The machine's CPUs, caches and memory nodes as one frozen value, and what of it this process may use.

Read from /sys, or from a folder that holds a recorded copy of it. `lscpu` text: `launcher/topology_file.py`.
Which cores are efficient ones: `runtime/core_kind.py`. Who gets which CPU: `launcher/plan.py`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from slipstream.errors import UsageError
from slipstream.runtime import cgroup, core_kind
from slipstream.runtime.cpu_list import format_cpu_list, parse_cpu_list

SYS = Path("/sys")


@dataclass(frozen=True)
class Cpu:
    """One logical CPU. ``core`` is its physical core, numbered over the whole machine; so is ``l3``, its cache."""

    number: int
    core: int
    socket: int
    node: int
    l3: int
    efficient: bool = False


@dataclass(frozen=True)
class Node:
    """One memory node. ``read_bandwidth`` (MB/s) is what the firmware's table says, where it has one."""

    number: int
    has_cpu: bool = True
    has_memory: bool = True
    distances: tuple[int, ...] = ()
    read_bandwidth: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """CPUs that nobody gets, and why."""

    cpus: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Topology:
    """What may be used (``cpus``, ``nodes``, ``quota`` in CPUs of time), and what of the machine may not."""

    cpus: tuple[Cpu, ...]
    nodes: tuple[Node, ...]
    quota: float | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def numbers(self) -> tuple[int, ...]:
        return tuple(cpu.number for cpu in self.cpus)

    def fast_memory_near(self, nodes: Collection[int]) -> tuple[int, ...]:
        """The memory-only nodes whose published bandwidth beats that of ``nodes`` (HBM, not CXL), nearest ones only."""
        own = [node.read_bandwidth for node in self.nodes if node.number in nodes and node.read_bandwidth]
        fast = [
            node
            for node in self.nodes
            if node.has_memory and not node.has_cpu and own and (node.read_bandwidth or 0) > max(own)
        ]
        nearest = min((_distance(node, nodes) for node in fast), default=0)
        return tuple(node.number for node in fast if _distance(node, nodes) == nearest)


def read_topology() -> Topology:
    """This machine, cut to what the caller's affinity mask and control group allow."""
    limits = cgroup.read_limits()
    affinity = os.sched_getaffinity(0)
    topology = read_sys(SYS, known_cpus=affinity)
    if limits.cpus is not None:
        topology = restrict(topology, cpus=limits.cpus, reason="outside the control group's cpuset")
    topology = restrict(topology, cpus=affinity, reason="outside the caller's affinity mask (taskset, Slurm, container)")
    if limits.memory_nodes is not None:
        topology = replace(
            topology,
            nodes=tuple(
                replace(node, has_memory=node.has_memory and node.number in limits.memory_nodes) for node in topology.nodes
            ),
        )
    return replace(topology, quota=limits.quota)


def restrict(topology: Topology, *, cpus: Collection[int], reason: str) -> Topology:
    """The part of ``topology`` that lies within ``cpus``; the rest is left out for ``reason``."""
    dropped = tuple(cpu.number for cpu in topology.cpus if cpu.number not in cpus)
    if not dropped:
        return topology
    kept = tuple(cpu for cpu in topology.cpus if cpu.number in cpus)
    return replace(topology, cpus=kept, left_out=(*topology.left_out, LeftOut(dropped, reason)))


def read_sys(root: Path, *, known_cpus: Iterable[int] = ()) -> Topology:
    """Every CPU that is online under ``root`` (a /sys tree), with no cut.

    Where there is no CPU folder at all (some sandboxes), ``known_cpus`` become single cores of one node.
    """
    cpu_root = f"{root}/devices/system/cpu"
    online = _number_list(f"{cpu_root}/online") or _listed(cpu_root, "cpu")
    if not online:
        return _flat(known_cpus, root)
    facts = [_core_facts(cpu_root, number) for number in online]
    hybrid = {kind: frozenset(_number_list(f"{root}/devices/{kind}/cpus")) for kind in ("cpu_core", "cpu_atom")}
    nodes = _nodes(f"{root}/devices/system/node")
    node_of = {cpu: node.number for node, cpus in nodes for cpu in cpus}
    efficient, note = core_kind.efficient_cpus(facts, performance=hybrid["cpu_core"], atom=hybrid["cpu_atom"])
    cores = _ranks([(fact.socket, fact.die, fact.core_id, fact.siblings) for fact in facts])
    caches = _ranks([(fact.socket, _l3(cpu_root, fact.number)) for fact in facts])
    cpus = tuple(
        Cpu(fact.number, core, fact.socket, node_of.get(fact.number, 0), cache, fact.number in efficient)
        for fact, core, cache in zip(facts, cores, caches, strict=True)
    )
    offline = tuple(sorted(set(_number_list(f"{cpu_root}/present")) - set(online)))
    return Topology(
        cpus,
        tuple(node for node, _ in nodes) or (Node(0),),
        left_out=(LeftOut(offline, "offline"),) if offline else (),
        notes=(note,) if note else (),
    )


def summary(topology: Topology) -> str:
    """One line: CPUs, physical cores, sockets, nodes, cache domains."""
    cpus = topology.cpus
    counts = {
        "CPU": len(cpus),
        "physical core": len({cpu.core for cpu in cpus}),
        "socket": len({cpu.socket for cpu in cpus}),
        "NUMA node": len({cpu.node for cpu in cpus}),
        "L3 domain": len({cpu.l3 for cpu in cpus}),
        "efficient core": len({cpu.core for cpu in cpus if cpu.efficient}),
    }
    parts = [f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items() if count]
    if topology.quota is not None:
        parts.append(f"CPU quota {topology.quota:g}")
    return ", ".join(parts) + f" (CPUs {format_cpu_list(topology.numbers())})"


def _core_facts(cpu_root: str, number: int) -> core_kind.CoreFacts:
    folder = f"{cpu_root}/cpu{number}"
    siblings = _number_list(f"{folder}/topology/core_cpus_list") or _number_list(f"{folder}/topology/thread_siblings_list")
    megahertz = _integer(f"{folder}/cpufreq/cpuinfo_max_freq", 0) // 1000
    core_id = _integer(f"{folder}/topology/core_id", number)
    return core_kind.CoreFacts(
        number=number,
        socket=max(0, _integer(f"{folder}/topology/physical_package_id", 0)),  # -1: unknown, on some ARM machines
        die=max(0, _integer(f"{folder}/topology/die_id", 0)),
        core_id=core_id,
        siblings=siblings or (number,),
        megahertz=float(megahertz) or None,
        capacity=_integer(f"{folder}/cpu_capacity", 0) or None,
    )


def _l3(cpu_root: str, number: int) -> tuple[int, ...]:
    """The CPUs that share this one's last-level cache (all of its socket where no L3 is told)."""
    folder = f"{cpu_root}/cpu{number}/cache"
    for index in _listed(folder, "index"):
        if _integer(f"{folder}/index{index}/level", 0) == 3:
            return _number_list(f"{folder}/index{index}/shared_cpu_list")
    return ()


def _nodes(node_root: str) -> list[tuple[Node, tuple[int, ...]]]:
    with_memory = set(_number_list(f"{node_root}/has_memory"))
    found = []
    for number in _number_list(f"{node_root}/online") or _listed(node_root, "node"):
        folder = f"{node_root}/node{number}"
        cpus = _number_list(f"{folder}/cpulist")
        distances = tuple(int(field) for field in (_text(f"{folder}/distance") or "").split())
        bandwidth = _integer(f"{folder}/access0/initiators/read_bandwidth", 0) or None
        has_memory = number in with_memory or not with_memory
        found.append((Node(number, bool(cpus), has_memory, distances, bandwidth), cpus))
    return found


def _flat(cpus: Iterable[int], root: Path) -> Topology:
    numbers = sorted(cpus)
    if not numbers:
        raise UsageError(f"{root}: no CPUs found; a recorded tree holds devices/system/cpu/online and cpu*/topology")
    note = f"{root}/devices/system/cpu cannot be read: each CPU is taken for a core of its own, on one node"
    return Topology(tuple(Cpu(number, number, 0, 0, 0) for number in numbers), (Node(0),), notes=(note,))


def _distance(node: Node, others: Collection[int]) -> int:
    return min((node.distances[other] for other in others if other < len(node.distances)), default=0)


def _ranks(keys: list[tuple[object, ...]]) -> list[int]:
    """For each key its place among the distinct keys in order."""
    order = {key: place for place, key in enumerate(sorted(set(keys)))}  # type: ignore[type-var]
    return [order[key] for key in keys]


def _listed(folder: str, prefix: str) -> tuple[int, ...]:
    """The numbers of the entries of a folder that are named ``prefix`` plus a number."""
    try:
        names = os.listdir(folder)
    except OSError:
        return ()
    tails = (name[len(prefix) :] for name in names if name.startswith(prefix))
    return tuple(sorted(int(tail) for tail in tails if tail.isdigit()))


def _number_list(path: str) -> tuple[int, ...]:
    text = _text(path)
    return parse_cpu_list(text, argument=path) if text else ()


def _integer(path: str, default: int) -> int:
    text = _text(path)
    try:
        return int(text) if text else default
    except ValueError:
        return default


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip() or None
    except OSError:
        return None
