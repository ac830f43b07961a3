# SPDX-License-Identifier: Apache-2.0
"""What this machine and what is installed on it offer to a search: cores by node, SMT, allocators, OpenMP, bfloat16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from slipstream.decision import Decision
from slipstream.launcher import preload
from slipstream.launcher.options import LaunchOptions
from slipstream.launcher.plan import make_plan
from slipstream.runtime import isa
from slipstream.runtime.topology import Topology

BFLOAT16_LEVELS = {"avx512_bf16", "amx"}


@dataclass(frozen=True)
class Offer:
    """``cores_of_nodes``: physical cores by NUMA node; ``allocators``: those installed beside the system's."""

    cores_of_nodes: tuple[int, ...]
    smt: bool = False
    allocators: tuple[str, ...] = ()
    intel_openmp: bool = False
    optimizing: bool = False
    bfloat16: bool = False

    @property
    def cores(self) -> int:
        return sum(self.cores_of_nodes)


def read_offer(topology: Topology, options: LaunchOptions, environ: Mapping[str, str]) -> tuple[Offer, list[Decision]]:
    """The offer within what the fixed flags leave, and why some of it is not there."""
    decisions: list[Decision] = []
    usable = set(_planned(topology, options, logical=True))
    node_of_core = {cpu.core: cpu.node for cpu in topology.cpus if cpu.number in usable}
    per_core = Counter(cpu.core for cpu in topology.cpus if cpu.number in usable)
    return Offer(
        cores_of_nodes=tuple(Counter(sorted(node_of_core.values())).values()),
        smt=max(per_core.values()) > 1 and not options.placement.cores_list,
        allocators=tuple(_allocators(environ, decisions)),
        intel_openmp=_is_installed("intel", "openmp: intel", environ, decisions),
        optimizing=options.optimization.on,
        bfloat16=_has_bfloat16(decisions) if options.optimization.on else False,
    ), decisions


def _planned(topology: Topology, options: LaunchOptions, *, logical: bool) -> tuple[int, ...]:
    """The CPUs of one instance on all that the fixed flags leave."""
    placement = replace(options.placement, ninstances=1, ncores=0, mode="", group_by="none", instance_idx=())
    plan = make_plan(topology, replace(placement, use_logical_cores=logical))
    return plan.instances[0].cpus


def _allocators(environ: Mapping[str, str], decisions: list[Decision]) -> list[str]:
    names = ("tcmalloc", "jemalloc")
    for name in names:
        if preload.preloaded(name, environ):
            reason = f"LD_PRELOAD already holds {name}, which wins over --memory-allocator; unset it to have allocators tried"
            decisions.append(Decision("allocator: all but the one in place", False, reason))
            return []
    return [name for name in names if _is_installed(name, f"allocator: {name}", environ, decisions)]


def _is_installed(name: str, what: str, environ: Mapping[str, str], decisions: list[Decision]) -> bool:
    path = preload.preloaded(name, environ) or preload.find_library(name, environ)
    if path is None:
        decisions.append(Decision(what, False, f"not installed; {preload.INSTALL[name]}"))
    return path is not None


def _has_bfloat16(decisions: list[Decision]) -> bool:
    level = isa.chosen_level()
    if level.level not in BFLOAT16_LEVELS:
        decisions.append(Decision("dtype: bfloat16", False, f"the level in use is {level.level}, which has no bfloat16"))
    return level.level in BFLOAT16_LEVELS
