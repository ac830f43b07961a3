# SPDX-License-Identifier: Apache-2.0
"""`slipstream doctor`: what this machine is, what this process may use of it, what is installed, what to improve.

Facts are read and nothing is changed; torch is looked for, not imported. A fact that cannot be read is None
in the JSON form and "not readable" in the table.
"""

from __future__ import annotations

import argparse
import glob
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import slipstream
from slipstream import env
from slipstream.errors import UsageError
from slipstream.launcher import environment, preload
from slipstream.runtime import cache_folder, cgroup, choice_file, isa, memory_policy, topology
from slipstream.runtime.available_memory import read_sizes
from slipstream.runtime.cpu_list import format_cpu_list
from slipstream.runtime.topology import Topology

OLDEST_TORCH = (2, 10)

OPENMP_RUNTIMES = ("libgomp*.so*", "libiomp5*.so*", "libomp*.so*")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *environment.COLLAPSING)

SMT_CONTROL = "/sys/devices/system/cpu/smt/control"

ABSENT = {
    "cpuset": "no limit",
    "memory_nodes": "no limit",
    "cpu_quota": "no limit",
    "problem": "none",
    "torch": "not installed",
    "transformers": "not installed",
    "brought_by_torch": "not found",
    "intel": "not found",
    "tcmalloc": "not found",
    "jemalloc": "not found",
}
"""What None means in the table, where it does not mean that the fact cannot be read."""

Facts = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the facts and the advice, as a table or with ``--json``; 0. Raises UsageError for bad arguments."""
    parser = _Parser(prog="slipstream doctor", description="Print what this machine is and what could be better.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    wants_json = parser.parse_args(argv).json
    facts = examine(environment.callers_environment())
    counsel = advice(facts)
    if wants_json:
        sys.stdout.write(json.dumps({**facts, "advice": counsel}, indent=2) + "\n")
    else:
        _print_table(facts, counsel)
    return 0


def examine(environ: Mapping[str, str]) -> Facts:
    """All facts, section by section; plain values that JSON can hold."""
    usable = topology.read_topology()
    whole = topology.read_sys(topology.SYS, known_cpus=usable.numbers())
    return {
        "cpu": _cpu(whole),
        "allowed": _allowed(usable),
        "numa": _numa(whole),
        "instruction_sets": _instruction_sets(),
        "memory": _memory(),
        "software": _software(),
        "openmp": _openmp(environ),
        "allocators": {name: preload.find_library(name, environ) for name in ("tcmalloc", "jemalloc")}
        | {"preloaded": environ.get("LD_PRELOAD") or "nothing"},
        "kept_measurements": _kept_measurements(),
    }


def advice(facts: Facts) -> list[str]:
    """What could be better here, each with what to do; empty where nothing is known to be wrong."""
    return [sentence for holds, sentence in _rules(facts) if holds]


def _rules(facts: Facts) -> Iterator[tuple[bool, str]]:
    """(condition, sentence): the whole of what the doctor knows."""
    cpu, allowed, software, openmp = facts["cpu"], facts["allowed"], facts["software"], facts["openmp"]
    quota, count = allowed["cpu_quota"], allowed["cpus_usable"]
    yield (
        quota is not None and quota < count,
        f"the control group gives {quota} CPUs of time for {count} CPUs: more threads than that are stopped in the "
        "middle of their work; raise the quota, or run with --ncores-per-instance at that number",
    )
    yield (
        count < cpu["cpus"],
        f"{cpu['cpus'] - count} of {cpu['cpus']} CPUs are not for this process: {_in_words(allowed['left_out'])}",
    )
    yield (
        facts["numa"]["balancing"] is True,
        "NUMA balancing moves pages while programs run; for bound instances: sysctl kernel.numa_balancing=0",
    )
    governors = cpu["governor"] or []
    yield (
        any(governor not in {"performance", "schedutil"} for governor in governors),
        f"the frequency governor is {', '.join(governors)}: cpupower frequency-set -g performance",
    )
    yield (
        facts["memory"]["transparent_huge_pages"] == "never",
        "transparent huge pages are off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )
    yield (software["torch"] is None, "torch is not installed for this Python: pip install torch")
    yield (
        software["torch"] is not None and _release(software["torch"]) < OLDEST_TORCH,
        f"torch {software['torch']} is older than {'.'.join(map(str, OLDEST_TORCH))}: pip install --upgrade torch",
    )
    yield (
        not software["native_extension"].startswith("built"),
        f"no native kernels: {software['native_extension']}",
    )
    yield facts["instruction_sets"]["problem"] is not None, str(facts["instruction_sets"]["problem"])
    collapsing = [name for name in environment.COLLAPSING if name in openmp["variables"]]
    yield (
        bool(collapsing),
        f"{', '.join(collapsing)} may put the main thread, and all it starts, on one CPU: unset, unless it is meant",
    )
    yield (
        facts["allocators"]["tcmalloc"] is None and facts["allocators"]["jemalloc"] is None,
        f"no fast allocator is installed: {preload.INSTALL['tcmalloc']}",
    )


def _cpu(whole: Topology) -> dict[str, Any]:
    cores = {cpu.core for cpu in whole.cpus}
    numbers = whole.numbers()
    isolated = _text("/sys/devices/system/cpu/isolated")
    governors = {_text(f"/sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor") for number in numbers}
    offline = [number for part in whole.left_out if part.reason == "offline" for number in part.cpus]
    return {
        "model": isa.cpu_model(),
        "architecture": platform.machine(),
        "cpus": len(numbers),
        "physical_cores": len(cores),
        "sockets": len({cpu.socket for cpu in whole.cpus}),
        "l3_domains": len({cpu.l3 for cpu in whole.cpus}),
        "efficient_cores": len({cpu.core for cpu in whole.cpus if cpu.efficient}),
        "smt": "on" if len(cores) < len(numbers) else f"off ({_text(SMT_CONTROL) or 'not told why'})",
        "offline": format_cpu_list(offline) or "none",
        "isolated": isolated or "none",
        "virtual_machine": "hypervisor" in isa.cpu_flags(),
        "governor": sorted(governor for governor in governors if governor) or None,
    }


def _allowed(usable: Topology) -> dict[str, Any]:
    limits = cgroup.read_limits()
    return {
        "affinity": format_cpu_list(os.sched_getaffinity(0)),
        "cpuset": None if limits.cpus is None else format_cpu_list(limits.cpus),
        "memory_nodes": None if limits.memory_nodes is None else format_cpu_list(limits.memory_nodes),
        "cpu_quota": limits.quota,
        "cpus_usable": len(usable.cpus),
        "left_out": [f"{format_cpu_list(part.cpus)}: {part.reason}" for part in usable.left_out],
    }


def _numa(whole: Topology) -> dict[str, Any]:
    policy = memory_policy.current()
    balancing = _text("/proc/sys/kernel/numa_balancing")
    nodes = {f"node_{node.number}": _node(whole, node.number) for node in whole.nodes}
    return {
        "nodes": len(whole.nodes),
        "balancing": None if balancing is None else balancing != "0" and len(whole.nodes) > 1,
        "memory_policy": policy.policy or policy.reason,
        **nodes,
    }


def _node(whole: Topology, number: int) -> dict[str, Any]:
    sizes = _sizes(f"/sys/devices/system/node/node{number}/meminfo")
    return {
        "cpus": format_cpu_list(cpu.number for cpu in whole.cpus if cpu.node == number) or "none",
        "memory_mb": sizes.get("MemTotal"),
        "free_mb": sizes.get("MemFree"),
    }


def _instruction_sets() -> dict[str, Any]:
    try:
        chosen, problem = isa.chosen_level(), None
    except UsageError as error:
        chosen, problem = None, str(error)
    return {
        "in_use": chosen.level if chosen else None,
        "because": chosen.reason if chosen else None,
        "available": list(isa.available_levels()),
        "not_available": [why for level in isa.LEVELS if (why := isa.why_not(level))],
        "problem": problem,
    }


def _memory() -> dict[str, Any]:
    sizes = _sizes("/proc/meminfo")
    return {
        "total_mb": sizes.get("MemTotal"),
        "available_mb": sizes.get("MemAvailable"),
        "transparent_huge_pages": _selected("/sys/kernel/mm/transparent_hugepage/enabled"),
        "huge_page_defragmentation": _selected("/sys/kernel/mm/transparent_hugepage/defrag"),
        "reserved_huge_pages_mb": sizes.get("Hugetlb"),
    }


def _software() -> dict[str, Any]:
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "kernel": platform.release(),
        "slipstream": slipstream.__version__,
        "torch": _version("torch"),
        "native_extension": _native_extension(),
        "transformers": _version("transformers"),
    }


def _native_extension() -> str:
    """Whether the extension's file is there and may be loaded; whether it does load, only torch can tell."""
    found = sorted(Path(slipstream.__file__).parent.glob("_native*.so"))
    if not env.is_on(env.NATIVE, default=True):
        return f"switched off by {env.NATIVE}"
    if found:
        return f"built ({found[0].name})"
    if shutil.which("g++") is None:
        return "not built, and no g++ to build it: install g++, then make build"
    return "not built: make build"


def _openmp(environ: Mapping[str, str]) -> dict[str, Any]:
    spec = importlib.util.find_spec("torch")
    folders = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    places = [place for folder in folders for place in (folder / "lib", folder.with_name("torch.libs"))]
    found = [path for place in places for name in OPENMP_RUNTIMES for path in glob.glob(f"{place}/{name}")]
    return {
        "brought_by_torch": ", ".join(sorted(os.path.basename(path) for path in found)) or None,
        "intel": preload.find_library("intel", environ),
        "variables": {name: environ[name] for name in THREAD_VARIABLES if environ.get(name)},
    }


def _kept_measurements() -> dict[str, Any]:
    """What earlier runs found out about speed here, of every version and instruction-set level."""
    folder = cache_folder.folder()
    found = [] if folder is None else choice_file.files(folder)
    return {
        "folder": folder if folder is not None else f"none: {cache_folder.why_none()}",
        "kernel_choices": sum(choice_file.count(path) for path in found),
        "files": len(found),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: ``2.13.0+cpu`` is (2, 13)."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _sizes(path: str) -> dict[str, int]:
    """The sizes in a meminfo file, in MB."""
    return {name: size >> 20 for name, size in read_sizes(Path(path)).items()}


def _selected(path: str) -> str | None:
    """The word in brackets of a kernel switch: ``always [madvise] never``."""
    text = _text(path)
    return None if text is None else next((word[1:-1] for word in text.split() if word.startswith("[")), text)


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _print_table(facts: Facts, counsel: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for section, rows in facts.items():
        table.add_row(Text(_spaced(section), style="bold"), "", "")
        for name, value in rows.items():
            words = ABSENT.get(name, "not readable") if value is None else _in_words(value)
            table.add_row("", _spaced(name), Text(words))
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)
    console.print(table)
    console.print(Text("\nadvice", style="bold"))
    for sentence in counsel or ["nothing to improve is known"]:
        console.print(Text(f"  - {sentence}"))


def _spaced(name: str) -> str:
    return name.replace("_", " ") if name.islower() else name


def _in_words(value: Any) -> str:
    if value is None:
        return "not readable"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{_spaced(name)} {_in_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message)


if __name__ == "__main__":
    sys.exit(main())
