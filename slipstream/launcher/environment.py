# SPDX-License-Identifier: Apache-2.0
"""One instance -> its environment and its argv, with a reason for each variable. What the user set wins.

The only part of the launcher that reads `os.environ`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slipstream import env
from slipstream.launcher.options import LaunchOptions, Optimization, Program
from slipstream.launcher.plan import Instance
from slipstream.launcher.preload import Preload
from slipstream.runtime.cpu_list import format_cpu_list

ON_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_path")
"""A folder for PYTHONPATH whose sitecustomize takes LD_PRELOAD away again once the process runs."""

COLLAPSING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables with which an OpenMP runtime may put the main thread, and so all it starts later, on one CPU."""


@dataclass(frozen=True)
class Surroundings:
    """What all instances share: the caller's environment, the libraries to preload, who binds."""

    environ: Mapping[str, str]
    preload: Preload
    binder: Sequence[str] = ()
    """Words of an external binder with `{cpus}` and `{nodes}` in them; empty: system calls."""
    buffered: bool = True


def callers_environment() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)


def equip(instance: Instance, options: LaunchOptions, around: Surroundings) -> Instance:
    """The instance with argv and with those variables that differ from the caller's, each with a reason."""
    environ = dict(around.environ)
    reasons: dict[str, str] = {}
    _set_threads(instance, environ, reasons)
    for name, value, reason in around.preload.variables:
        _set(environ, reasons, name, value, reason)
    if options.optimization.on:
        environ = _with_engine(options.optimization, environ, reasons)
    _set_preload(around.preload, options, environ, reasons)
    if not around.buffered and options.program.kind != "executable":
        _set(environ, reasons, "PYTHONUNBUFFERED", "1", "lines appear when they are printed, not at the end")
    environ[env.PLAN] = json.dumps(
        {"index": instance.index, "cpus": instance.cpus, "nodes": instance.nodes, "threads": instance.threads}
    )
    reasons[env.PLAN] = "tells the process which instance it is"
    for name, value in options.running.environment:
        environ[name] = value
        reasons[name] = "--env"
    changed = {name: value for name, value in environ.items() if around.environ.get(name) != value}
    kept = {name: reason for name, reason in reasons.items() if name in changed}
    argv = (*_binder(around.binder, instance), *command(options.program))
    return replace(instance, environment=changed, reasons=kept, argv=argv)


def overridden(instance: Instance, environ: Mapping[str, str]) -> list[str]:
    """Sentences about settings of the caller's own that win over the plan or spoil it."""
    found = []
    preset = environ.get("OMP_NUM_THREADS")
    if preset and preset != str(instance.threads):
        found.append(
            f"OMP_NUM_THREADS={preset} is set and wins over the plan's {instance.threads}; unset it to follow the plan"
        )
    for name in COLLAPSING:
        value = environ.get(name, "")
        if value and value.lower() not in {"false", "none", "disabled"} and instance.threads > 1:
            found.append(
                f"{name}={value} is set: OpenMP may put the main thread on one CPU, and with it every process that "
                "it starts (DataLoader workers); unset it"
            )
    return found


def command(program: Program) -> tuple[str, ...]:
    """The program as a list of words, nothing of it changed."""
    if not program.name:
        return ()
    if program.kind == "executable":
        return (program.name, *program.arguments)
    flag = ("-m",) if program.kind == "module" else ()
    return (sys.executable, *flag, program.name, *program.arguments)


def _set(environ: dict[str, str], reasons: dict[str, str], name: str, value: str, reason: str) -> None:
    """Set a variable unless the user has."""
    if not environ.get(name):
        environ[name] = value
        reasons[name] = reason


def _set_threads(instance: Instance, environ: dict[str, str], reasons: dict[str, str]) -> None:
    """One thread for each CPU, and no more: OpenMP's, and of MKL and others that follow it.

    Nothing is said about places. The mask of the process is what binds; any OpenMP setting beyond it
    would put the main thread on one CPU.
    """
    cpus = format_cpu_list(instance.cpus)
    _set(environ, reasons, "OMP_NUM_THREADS", str(instance.threads), f"one thread for each of the CPUs {cpus}")


def _set_preload(preload: Preload, options: LaunchOptions, environ: dict[str, str], reasons: dict[str, str]) -> None:
    if not preload.libraries:
        return
    before = environ.get("LD_PRELOAD", "")
    environ["LD_PRELOAD"] = ":".join([*preload.libraries, *([before] if before else [])])
    reasons["LD_PRELOAD"] = "; ".join(f"{one.what}: {one.reason}" for one in preload.decisions if one.taken)
    if options.libraries.children or options.program.kind == "executable":
        return
    environ[env.PRELOAD_BEFORE] = before
    reasons[env.PRELOAD_BEFORE] = "LD_PRELOAD as it was; put back once the process runs, for the programs that it starts"
    path = environ.get("PYTHONPATH", "")
    environ["PYTHONPATH"] = f"{ON_PATH}{os.pathsep}{path}" if path else ON_PATH
    reasons["PYTHONPATH"] = "finds the few lines that put LD_PRELOAD back"


def _with_engine(optimization: Optimization, environ: dict[str, str], reasons: dict[str, str]) -> dict[str, str]:
    from slipstream.autopatch.activate import child_environment
    from slipstream.autopatch.settings import Settings

    settings = Settings(
        dtype=optimization.dtype,
        graph_mode=optimization.graph_mode,
        early_graphs=optimization.early_graphs,
        verbose=optimization.verbose,
        float32_matmul_precision=optimization.float32_matmul_precision,
        budget_s=optimization.setup_budget,
        low_memory=optimization.low_memory,
        children=optimization.children,
        decides_only=optimization.decides_only,
        at_once=optimization.at_once,
    )
    child = child_environment(settings, environ)
    for name in child:
        if child[name] != environ.get(name):
            reasons[name] = "--auto-ipex"
    return child


def _binder(words: Sequence[str], instance: Instance) -> list[str]:
    cpus, nodes = format_cpu_list(instance.cpus), format_cpu_list(instance.memory_nodes or instance.nodes)
    return [word.format(cpus=cpus, nodes=nodes) for word in words]
