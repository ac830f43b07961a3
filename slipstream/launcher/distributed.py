# SPDX-License-Identifier: Apache-2.0
"""The same plan as ranks of one job: this machine's ranks with cores of their own, and the command that starts them.

The engine is torch's elastic launcher, run on every machine; or `mpiexec`, which starts the others itself.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from slipstream.errors import PlanError, UsageError
from slipstream.launcher.options import Distributed, Placement
from slipstream.launcher.plan import Instance, LaunchPlan, make_plan, nodes_asked_for
from slipstream.runtime.cpu_list import format_mask
from slipstream.runtime.topology import Topology

CCL_WORKERS = 4
CCL_PACKAGES = ("oneccl_bindings_for_pytorch", "torch_ccl")
STARTER_READS = ("OMP_NUM_THREADS", "I_MPI_", "CCL_")
RANK_MODULE = "slipstream.launcher.process.rank"


@dataclass(frozen=True)
class RankPlan:
    """This machine's ranks. ``compute`` and ``ccl`` are the CPUs of each rank's threads and of oneCCL's workers."""

    plan: LaunchPlan
    compute: tuple[tuple[int, ...], ...]
    ccl: tuple[tuple[int, ...], ...]

    @property
    def variables(self) -> tuple[tuple[str, str, str], ...]:
        """(name, value, reason), the same for all ranks."""
        found = [
            (
                "I_MPI_PIN_DOMAIN",
                "[" + ",".join(format_mask(cpus) for cpus in self.compute) + "]",
                "Intel MPI keeps each rank on its own cores",
            )
        ]
        if self.ccl[0]:
            workers = ",".join(str(cpu) for cpus in self.ccl for cpu in cpus)
            found.append(("CCL_WORKER_COUNT", str(len(self.ccl[0])), "oneCCL's threads for communication in each rank"))
            found.append(("CCL_WORKER_AFFINITY", workers, "on cores that no computing thread uses"))
        return tuple(found)


def ccl_workers(wanted: Distributed) -> int:
    """As asked; else the usual four where oneCCL is installed, and none where nobody would use the cores."""
    if wanted.ccl_worker_count is not None:
        return wanted.ccl_worker_count
    installed = any(importlib.util.find_spec(name) for name in CCL_PACKAGES)
    return CCL_WORKERS if installed or wanted.logical_cores_for_ccl else 0


def make_rank_plan(topology: Topology, placement: Placement, wanted: Distributed, *, workers: int) -> RankPlan:
    """One instance for each rank: as many as asked, else one for each NUMA node with usable CPUs."""
    count = wanted.nprocs_per_node or placement.ninstances or len(nodes_asked_for(topology, placement))
    plan = make_plan(topology, replace(placement, ninstances=count, strategy="close", mode=""))
    notes = list(plan.warnings)
    siblings = wanted.logical_cores_for_ccl
    if siblings and placement.use_logical_cores:
        raise UsageError("--logical-cores-for-ccl: the ranks use these themselves; leave --use-logical-cores out")
    places = [_firsts_and_siblings(one, topology) for one in plan.instances]
    if siblings and any(len(others) < workers for _, others in places):
        notes.append(f"--logical-cores-for-ccl: a rank has fewer than {workers} SMT siblings; cores are kept instead")
        siblings = False
    if not siblings and any(len(firsts) <= workers for firsts, _ in places):
        smallest = min(len(firsts) for firsts, _ in places)
        raise PlanError(
            f"--ccl-worker-count {workers}: a rank has {smallest} cores; give at most {smallest - 1}, or fewer ranks"
        )
    reserved = 0 if siblings else workers
    compute = tuple(firsts[reserved:] for firsts, _ in places)
    ccl = tuple((others if siblings else firsts)[:workers] for firsts, others in places)
    threads = min(map(len, compute))
    ranks = tuple(
        replace(one, cpus=tuple(sorted((*one.cpus, *more))), threads=threads)
        for one, more in zip(plan.instances, ccl, strict=True)
    )
    return RankPlan(replace(plan, instances=ranks, warnings=tuple(notes)), compute, ccl)


def _firsts_and_siblings(one: Instance, topology: Topology) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first CPU of each of the rank's cores, and the other CPUs of these cores, in order of cores."""
    cores = {cpu.core for cpu in topology.cpus if cpu.number in one.cpus}
    firsts: dict[int, int] = {}
    for cpu in sorted(topology.cpus, key=lambda cpu: cpu.number):
        if cpu.core in cores and cpu.number in one.cpus:
            firsts.setdefault(cpu.core, cpu.number)
    ordered = tuple(sorted(firsts.values()))
    others = tuple(cpu.number for cpu in topology.cpus if cpu.core in cores and cpu.number not in ordered)
    return ordered, tuple(sorted(others))


def start_command(plan: LaunchPlan, wanted: Distributed) -> tuple[str, ...]:
    """What starts this machine's ranks. The instances must be equipped: their command and variables go along."""
    ranks = [
        {
            "cpus": one.cpus,
            "memory_policy": one.memory_policy,
            "memory_nodes": one.memory_nodes,
            "env": dict(one.environment),
        }
        for one in plan.instances
    ]
    rank = (sys.executable, "-m", RANK_MODULE, json.dumps(ranks), *plan.instances[0].argv)
    hosts = read_hostfile(wanted) if wanted.nnodes > 1 else []
    if wanted.launcher == "mpi":
        return (*_mpiexec(wanted, len(ranks), hosts), *rank)
    return (*_torchrun(wanted, len(ranks), hosts), "--no-python", *rank)


def read_hostfile(wanted: Distributed) -> list[str]:
    """The first word of each line; blank lines and comments do not count. Empty where none is needed."""
    try:
        with open(wanted.hostfile, encoding="utf-8") as file:
            lines = [line.split("#")[0].split() for line in file]
    except OSError as error:
        if wanted.launcher == "torchrun" and wanted.node_rank >= 0:
            return []
        raise UsageError(
            f"--hostfile {wanted.hostfile}: {error.strerror}; --nnodes {wanted.nnodes} needs a host on each line, "
            "or --node-rank and --master-addr"
        ) from error
    hosts = [words[0].partition(":")[0] for words in lines if words]
    if len(hosts) < wanted.nnodes:
        raise UsageError(f"--hostfile {wanted.hostfile}: {len(hosts)} hosts, --nnodes {wanted.nnodes} needs as many")
    return hosts[: wanted.nnodes]


def is_this_machine(host: str) -> bool:
    """Whether an address of ``host`` is one of ours: only then can a socket be bound to it."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        try:
            with closing(socket.socket(family, kind, protocol)) as trial:
                trial.bind(address)
                return True
        except OSError:
            continue
    return False


def _torchrun(wanted: Distributed, ranks: int, hosts: Sequence[str]) -> tuple[str, ...]:
    master = hosts[0] if hosts else wanted.master_addr
    words = ["--nnodes", wanted.nnodes, "--nproc-per-node", ranks, "--node-rank", _node_rank(wanted, hosts)]
    words += ["--master-addr", master, "--master-port", wanted.master_port]
    return (sys.executable, "-m", "torch.distributed.run", *map(str, words))


def _node_rank(wanted: Distributed, hosts: Sequence[str]) -> int:
    if wanted.node_rank >= wanted.nnodes:
        raise UsageError(f"--node-rank {wanted.node_rank}: give 0 to {wanted.nnodes - 1}")
    if wanted.node_rank >= 0 or wanted.nnodes == 1:
        return max(0, wanted.node_rank)
    for place, host in enumerate(hosts):
        if is_this_machine(host):
            return place
    raise UsageError(f"--hostfile {wanted.hostfile}: none of {', '.join(hosts)} is this machine; give --node-rank")


def _mpiexec(wanted: Distributed, ranks: int, hosts: Sequence[str]) -> tuple[str, ...]:
    path = shutil.which("mpiexec.hydra") or shutil.which("mpiexec")
    if path is None:
        raise UsageError("--launcher mpi: no mpiexec on PATH; apt install mpich, or --launcher torchrun")
    if hosts and not is_this_machine(hosts[0]):
        raise UsageError(f"--hostfile {wanted.hostfile}: its first host {hosts[0]} must be this machine")
    total = str(ranks * wanted.nnodes)
    master = hosts[0] if hosts else wanted.master_addr
    variables = {"MASTER_ADDR": master, "MASTER_PORT": str(wanted.master_port)}
    extra = shlex.split(wanted.extra_mpi_params)
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" in version or "OpenRTE" in version:
        named = [word for name, value in variables.items() for word in ("-x", f"{name}={value}")]
        where = ["--host", ",".join(f"{host}:{ranks}" for host in hosts)] if hosts else []
        return (path, "-np", total, *where, "--bind-to", "none", *named, *extra)
    named = [word for name, value in variables.items() for word in ("-genv", name, value)]
    where = ["-hosts", ",".join(hosts)] if hosts else []
    return (path, "-np", total, "-ppn", str(ranks), *where, *named, *extra)


def as_one_instance(plan: LaunchPlan) -> Instance:
    """The starting command as something that can be run: on all ranks' CPUs, so that each rank can take its own.

    Of the ranks' variables it has those that the starter itself reads. The rest each rank sets for itself:
    nothing is preloaded into the starter, and no engine armed in it.
    """
    cpus = tuple(sorted({cpu for one in plan.instances for cpu in one.cpus}))
    nodes = tuple(sorted({node for one in plan.instances for node in one.nodes}))
    first = plan.instances[0].environment
    mine = {name: value for name, value in first.items() if name.startswith(STARTER_READS)}
    return Instance(0, cpus, nodes, len(cpus), argv=plan.command, environment=mine)
