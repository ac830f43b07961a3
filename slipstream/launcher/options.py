# SPDX-License-Identifier: Apache-2.0
"""What the user asked for, checked against itself: `LaunchOptions`. What the machine can hold: `plan.py`."""

from __future__ import annotations

import os
import re
import shutil
from argparse import Namespace
from dataclasses import dataclass

from slipstream.errors import UsageError
from slipstream.launcher.command_line import CommandLine
from slipstream.runtime import isa
from slipstream.runtime.cpu_list import parse_cpu_list

HALF_FLAGS = frozenset({"avx512_fp16", "amx_fp16"})
"""What Linux calls arithmetic on float16 in /proc/cpuinfo; either will do."""


@dataclass(frozen=True)
class Program:
    """What to run: ``kind`` is script, module or executable; the arguments are kept byte for byte."""

    kind: str = "script"
    name: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """How cores are to be shared out. 0 and empty mean "not said"; ``ncores`` -1 spreads the remainder."""

    ninstances: int = 0
    ncores: int = 0
    cores_list: tuple[int, ...] = ()
    nodes_list: tuple[int, ...] = ()
    sockets_list: tuple[int, ...] = ()
    """At most one of the three lists is not empty."""
    use_logical_cores: bool = False
    use_e_cores: bool = False
    strategy: str = "scatter"
    group_by: str = "none"
    instance_idx: tuple[int, ...] = ()
    mode: str = ""
    memory_policy: str = "auto"


@dataclass(frozen=True)
class Libraries:
    """What to preload and how."""

    allocator: str = "auto"
    omp_runtime: str = "auto"
    benchmark: bool = False
    children: bool = False


@dataclass(frozen=True)
class Optimization:
    """The codeless engine; off unless asked for."""

    on: bool = False
    dtype: str = "float32"
    verbose: bool = False
    graph_mode: bool = True
    early_graphs: bool = False
    float32_matmul_precision: str | None = None
    setup_budget: float | None = None
    low_memory: bool = False
    children: bool = True
    decides_only: bool = False
    """Everything is planned, packed and checked, and the originals answer: `slipstream inspect`."""
    at_once: bool = False
    """No trials of speed, and no waiting: `slipstream bisect`."""


@dataclass(frozen=True)
class Running:
    """How the processes are looked after."""

    task_manager: str = "auto"
    environment: tuple[tuple[str, str], ...] = ()
    on_failure: str = "kill"
    timeout: float | None = None
    grace: float = 10.0
    log_dir: str = ""
    log_file_prefix: str = "run"
    quiet: bool = False
    live: str = "auto"
    metrics: tuple[str, ...] = ()
    report: str = ""


@dataclass(frozen=True)
class Distributed:
    """Ranks of one job, where ``nnodes`` is not 0."""

    nnodes: int = 0
    nprocs_per_node: int = 0
    launcher: str = "torchrun"
    node_rank: int = -1
    hostfile: str = "hostfile"
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    ccl_worker_count: int | None = None
    """None: not said."""
    logical_cores_for_ccl: bool = False
    extra_mpi_params: str = ""


@dataclass(frozen=True)
class LaunchOptions:
    """One validated request."""

    program: Program = Program()
    placement: Placement = Placement()
    libraries: Libraries = Libraries()
    optimization: Optimization = Optimization()
    running: Running = Running()
    distributed: Distributed = Distributed()
    compare: int = 0
    """Rounds of a plain and a codeless run; 0: just run."""
    tolerance: float | None = None
    plan_form: str = ""
    plan_from: str = ""
    topology: str = ""
    notes: tuple[str, ...] = ()


def launch_options(line: CommandLine, *, program_needed: bool = True) -> LaunchOptions:
    """The request of a command line; anything that contradicts itself is a UsageError of one line."""
    values = line.values
    notes = list(line.notes)
    plan_form = values.plan if values.plan != "none" else ("text" if values.dry_run else "")
    program = _program(values, line.program, needed=program_needed and not values.plan_from)
    if not values.topology and program.name:
        _check_program_exists(program)
    if values.topology and not plan_form:
        raise UsageError(f"--topology {values.topology}: plans for another machine; add --dry-run")
    if values.plan_from and values.topology:
        raise UsageError(f"--plan-from {values.plan_from}: a finished plan needs no --topology")
    if "dtype" in line.given and not (values.auto_ipex or "compare" in line.given):
        notes.append(f"--dtype {values.dtype} has no effect without --auto-ipex")
    return LaunchOptions(
        program=program,
        placement=_placement(values, line.given, notes),
        libraries=Libraries(values.memory_allocator, values.omp_runtime, values.benchmark, values.preload_children),
        optimization=_optimization(values, elsewhere=bool(values.topology)),
        running=_running(values),
        distributed=_distributed(values, line.given),
        compare=_rounds(values, line.given),
        tolerance=tolerance_of(values.tolerance),
        plan_form=plan_form,
        plan_from=values.plan_from,
        topology=values.topology,
        notes=tuple(notes),
    )


def _program(values: Namespace, words: tuple[str, ...], *, needed: bool) -> Program:
    if values.module and values.no_python:
        raise UsageError("--module --no-python: a module is run by Python; give one of the two")
    kind = "module" if values.module else "executable" if values.no_python else "script"
    if not words:
        if needed:
            raise UsageError("PROGRAM: missing; give a script, -m MODULE or --no-python PROGRAM; see --help")
        return Program(kind)
    return Program(kind, words[0], words[1:])


def _check_program_exists(program: Program) -> None:
    if program.kind == "script" and not os.path.exists(program.name):
        remedy = "; for an executable add --no-python" if shutil.which(program.name) else ""
        raise UsageError(f"PROGRAM {program.name}: no such script{remedy}")
    if program.kind == "executable" and shutil.which(program.name) is None:
        raise UsageError(f"PROGRAM {program.name}: no such executable on PATH")


def _placement(values: Namespace, given: frozenset[str], notes: list[str]) -> Placement:
    if values.latency_mode and values.throughput_mode:
        raise UsageError("--latency-mode --throughput-mode: they exclude each other; give one of the two")
    mode = "latency" if values.latency_mode else "throughput" if values.throughput_mode else ""
    if values.ninstances < -1:
        raise UsageError(f"--ninstances {values.ninstances}: give a number above 0, or 0 to have it derived")
    if values.ncores_per_instance < -1:
        raise UsageError(
            f"--ncores-per-instance {values.ncores_per_instance}: give a number above 0, 0 (even split) or -1 (no core unused)"
        )
    if mode:
        for name in ("ninstances", "ncores-per-instance", "use-logical-cores", "strategy"):
            if name in given:
                notes.append(f"--{name} is ignored: --{mode}-mode decides it")
    if values.bind_numa_node and values.group_by not in {"none", "node"}:
        raise UsageError(f"--group-by {values.group_by}: --bind-numa-node is --group-by node; give one of the two")
    return Placement(
        ninstances=0 if mode else max(0, values.ninstances),
        ncores=0 if mode else values.ncores_per_instance,
        **_lists(values, notes),
        use_logical_cores=values.use_logical_cores and not mode,
        use_e_cores=values.use_e_cores,
        strategy="scatter" if mode else values.strategy,
        group_by="node" if mode or values.bind_numa_node else values.group_by,
        instance_idx=_indices(values.instance_idx),
        mode=mode,
        memory_policy=values.memory_policy,
    )


def _lists(values: Namespace, notes: list[str]) -> dict[str, tuple[int, ...]]:
    """The narrowest of the lists of CPUs, nodes and sockets; the others are ignored and a note says so."""
    deciding = ""
    for name in ("cores-list", "nodes-list", "sockets-list"):
        text = getattr(values, name.replace("-", "_"))
        if text and deciding:
            notes.append(f"--{name} {text} is ignored: --{deciding} decides")
        elif text:
            deciding = name
    if not deciding:
        return {}
    key = deciding.replace("-", "_")
    return {key: parse_cpu_list(getattr(values, key), argument=f"--{deciding}")}


def _indices(text: str) -> tuple[int, ...]:
    return () if text.strip() == "-1" else parse_cpu_list(text, argument="--instance-idx")


def _optimization(values: Namespace, *, elsewhere: bool) -> Optimization:
    if values.dtype == "float16" and not elsewhere and not isa.cpu_flags() & HALF_FLAGS:
        raise UsageError(f"--dtype float16: this CPU has none of {', '.join(sorted(HALF_FLAGS))}; give bfloat16 or float32")
    precision = values.float32_matmul_precision
    return Optimization(
        on=values.auto_ipex,
        dtype=values.dtype,
        verbose=values.auto_ipex_verbose,
        graph_mode=not values.disable_ipex_graph_mode,
        early_graphs=values.early_graphs,
        float32_matmul_precision=None if precision == "script" else precision,
        setup_budget=values.budget,
        low_memory=values.low_memory,
        children=not values.no_children,
    )


def _rounds(values: Namespace, given: frozenset[str]) -> int:
    if "compare" in given and values.compare < 1:
        raise UsageError(f"--compare {values.compare}: give the number of rounds, from 1")
    return int(values.compare)


def tolerance_of(text: str) -> float | None:
    """A relative difference from 0 up to below 1; None for empty text."""
    try:
        value = float(text or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"--tolerance {text}: not a relative difference from 0 to below 1, such as 1e-3")
    return value if text else None


def _running(values: Namespace) -> Running:
    environment = []
    for item in values.env:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise UsageError(f"--env {item}: not of the form NAME=VALUE")
        environment.append((name, value))
    for pattern in values.metric:
        _check_metric(pattern)
    if values.report and values.report != "-":
        _check_report(values.report)
    return Running(
        task_manager=values.multi_task_manager,
        environment=tuple(environment),
        on_failure=values.on_failure,
        timeout=values.timeout,
        grace=values.grace,
        log_dir=values.log_dir,
        log_file_prefix=values.log_file_prefix,
        quiet=values.quiet,
        live=values.live,
        metrics=tuple(values.metric),
        report=values.report,
    )


def _check_metric(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise UsageError(f"--metric {pattern}: not a regular expression ({error})") from error
    if "value" not in groups:
        raise UsageError(f"--metric {pattern}: it has no group (?P<value>…) for the number")


def _check_report(path: str) -> None:
    ending = os.path.splitext(path)[1]
    if ending not in {".json", ".html", ".txt"}:
        raise UsageError(f"--report {path}: not one of - (text on stdout), FILE.json, FILE.html, FILE.txt")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"--report {path}: the folder {folder} does not exist")


def _distributed(values: Namespace, given: frozenset[str]) -> Distributed:
    for name in ("nnodes", "nprocs-per-node", "ccl-worker-count"):
        number = getattr(values, name.replace("-", "_"))
        if number < 0:
            raise UsageError(f"--{name} {number}: give 0 or more")
    if not 0 < values.master_port < 65536:
        raise UsageError(f"--master-port {values.master_port}: give a port from 1 to 65535")
    return Distributed(
        nnodes=values.nnodes,
        nprocs_per_node=values.nprocs_per_node,
        launcher=values.launcher,
        node_rank=values.node_rank,
        hostfile=values.hostfile,
        master_addr=values.master_addr,
        master_port=values.master_port,
        ccl_worker_count=values.ccl_worker_count if "ccl-worker-count" in given else None,
        logical_cores_for_ccl=values.logical_cores_for_ccl,
        extra_mpi_params=values.extra_mpi_params,
    )
