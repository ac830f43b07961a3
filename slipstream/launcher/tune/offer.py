# SPDX-License-Identifier: Apache-2.0
"""What this machine and what is installed on it offer to a search: cores by node, SMT, allocators, OpenMP, bfloat16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from slipstream.decision import Decision
from slipstream.launcher import preload
from slipstream.launcher.options import LaunchOptions, Libraries
from slipstream.launcher.plan import make_plan
from slipstream.runtime import isa
from slipstream.runtime.topology import Topology

BFLOAT16_LEVELS = {"avx2", "avx512_vnni", "avx512_bf16_widened", "avx512_bf16", "avx512_fp16", "amx"}


@dataclass(frozen=True)
class Offer:
    """``cores_of_nodes``: physical cores by NUMA node; ``allocators``: first the one that a plain start would take."""

    cores_of_nodes: tuple[int, ...]
    smt: bool = False
    allocators: tuple[str, ...] = ()
    intel_openmp: bool = False
    optimizing: bool = False
    bfloat16: bool = False

    @property
    def cores(self) -> int:
        return sum(self.cores_of_nodes)


def read_offer(
    topology: Topology, options: LaunchOptions, environ: Mapping[str, str], *, best_allocator: preload.BestAllocator
) -> tuple[Offer, list[Decision]]:
    """The offer within what the fixed flags leave, and why some of it is not there.

    ``best_allocator`` is what the launcher's own choice is made by; no reason: nothing was measured.
    """
    decisions: list[Decision] = []
    usable = set(_cpus_of_one_instance(topology, options))
    node_of_core = {cpu.core: cpu.node for cpu in topology.cpus if cpu.number in usable}
    per_core = Counter(cpu.core for cpu in topology.cpus if cpu.number in usable)
    return Offer(
        cores_of_nodes=tuple(Counter(sorted(node_of_core.values())).values()),
        smt=max(per_core.values()) > 1 and not options.placement.cores_list,
        allocators=tuple(_allocators(environ, best_allocator, decisions)),
        intel_openmp=_is_installed("intel", "openmp: intel", environ, decisions),
        optimizing=options.optimization.on,
        bfloat16=_has_bfloat16(decisions) if options.optimization.on else False,
    ), decisions


def _cpus_of_one_instance(topology: Topology, options: LaunchOptions) -> tuple[int, ...]:
    """On all that the fixed flags leave, SMT siblings included."""
    placement = replace(options.placement, ninstances=1, ncores=0, mode="", group_by="none", instance_idx=())
    return make_plan(topology, replace(placement, use_logical_cores=True)).instances[0].cpus


def _allocators(environ: Mapping[str, str], best: preload.BestAllocator, decisions: list[Decision]) -> list[str]:
    for name in ("tcmalloc", "jemalloc"):
        if preload.preloaded(name, environ):
            reason = f"LD_PRELOAD already holds {name}, which wins over --memory-allocator; unset it to have allocators tried"
            decisions.append(Decision("allocator: all but the one in place", False, reason))
            return []
    names: list[str] = []

    def keep_candidates(candidates: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
        name, reason = best(candidates)
        names.extend((name, *(other for other in candidates if other != name)))
        if reason:
            decisions.append(Decision(f"allocator: the search starts with {name}", True, reason))
        return name, reason

    preload.choose_preload(Libraries(), environ, best_allocator=keep_candidates)
    for name in ("tcmalloc", "jemalloc"):
        if name not in names:
            decisions.append(Decision(f"allocator: {name}", False, f"not installed; {preload.INSTALL[name]}"))
    return names


def _is_installed(name: str, what: str, environ: Mapping[str, str], decisions: list[Decision]) -> bool:
    path = preload.preloaded(name, environ) or preload.find_library(name, environ)
    if path is None:
        decisions.append(Decision(what, False, f"not installed; {preload.INSTALL[name]}"))
    return path is not None


def _has_bfloat16(decisions: list[Decision]) -> bool:
    level = isa.chosen_level().level
    if level not in BFLOAT16_LEVELS:
        decisions.append(Decision("dtype: bfloat16", False, f"level {level} multiplies it no faster than float32"))
    return level in BFLOAT16_LEVELS
