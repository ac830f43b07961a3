# SPDX-License-Identifier: Apache-2.0
"""A plan as text or JSON, and one report out of the plan, the instances' ends and what each process wrote.

The page with plots: `observe/html_page.py`. rich is imported only where a table is printed.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from slipstream.errors import MissingDependency, UsageError
from slipstream.launcher.plan import Instance, LaunchPlan
from slipstream.runtime.cpu_list import format_cpu_list
from slipstream.runtime.topology import LeftOut, Topology, summary

Report = dict[str, Any]


def plan_as_dict(plan: LaunchPlan) -> dict[str, Any]:
    """The plan in the form that --plan json prints and --plan-from reads."""
    starter: dict[str, Any] = {"command": list(plan.command)} if plan.command else {}
    return {
        "instances": [
            {
                "index": one.index,
                "cpus": list(one.cpus),
                "nodes": list(one.nodes),
                "threads": one.threads,
                "memory_policy": one.memory_policy,
                "memory_nodes": list(one.memory_nodes),
                "env": dict(one.environment),
                "reasons": dict(one.reasons),
                "argv": list(one.argv),
            }
            for one in plan.instances
        ],
        "left_out": [{"cpus": list(item.cpus), "reason": item.reason} for item in plan.left_out],
        "warnings": list(plan.warnings),
        **starter,
    }


def plan_as_text(plan: LaunchPlan, topology: Topology | None) -> str:
    """The machine map, each instance with its environment and the reasons, every CPU left out with why."""
    lines: list[str] = []
    if topology is not None:
        legend = "  (for each core, the instances that its CPUs belong to; . is left out)"
        lines += [f"machine: {summary(topology)}", *_machine_map(plan, topology), legend, ""]
    for one in plan.instances:
        lines.append(
            f"instance {one.index}: CPUs {format_cpu_list(one.cpus)}, "
            f"node{'s' if len(one.nodes) != 1 else ''} {format_cpu_list(one.nodes)}, {one.threads} threads, {_memory(one)}"
        )
        for name, value in one.environment.items():
            lines.append(f"  {name}={shlex.quote(value)}  # {one.reasons.get(name, 'from the plan file')}")
        if one.argv:
            lines.append(f"  $ {shlex.join(one.argv)}")
    if plan.command:
        lines.append(f"these are ranks, started by\n  $ {shlex.join(plan.command)}")
    lines += [f"{'chosen' if one.taken else 'not chosen'}: {one.what}: {one.reason}" for one in plan.decisions]
    lines += [f"left out: CPUs {format_cpu_list(item.cpus)}: {item.reason}" for item in plan.left_out]
    lines += [f"warning: {text}" for text in plan.warnings]
    return "\n".join(lines) + "\n"


def _memory(instance: Instance) -> str:
    if instance.memory_policy == "none":
        return "memory as the system places it"
    nodes = format_cpu_list(instance.memory_nodes)
    return f"memory: {instance.memory_policy}{' ' + nodes if nodes else ''}"


def _machine_map(plan: LaunchPlan, topology: Topology) -> list[str]:
    """One line a node: each core's CPUs, and under which instance they are; `.` is left out."""
    owner = {cpu: str(one.index) for one in plan.instances for cpu in one.cpus}
    lines = []
    for node in topology.nodes:
        cores: dict[int, list[int]] = {}
        for cpu in topology.cpus:
            if cpu.node == node.number:
                cores.setdefault(cpu.core, []).append(cpu.number)
        marks = [",".join(owner.get(cpu, ".") for cpu in members) for members in cores.values()]
        memory = "" if node.has_memory else " (no memory)"
        lines.append(f"  node {node.number}{memory}: {_run_lengths(marks) if marks else 'memory only'}")
    return lines


def _run_lengths(marks: Sequence[str]) -> str:
    """`0 0 0 1` as `0×3 1`; each mark is a core: the instances that its CPUs belong to."""
    parts: list[tuple[str, int]] = []
    for mark in marks:
        if parts and parts[-1][0] == mark:
            parts[-1] = (mark, parts[-1][1] + 1)
        else:
            parts.append((mark, 1))
    return " ".join(mark if count == 1 else f"{mark}×{count}" for mark, count in parts)


def plan_from_file(path: str) -> LaunchPlan:
    """A plan as --plan json printed it, perhaps edited since. CPUs may be lists of numbers or texts such as 0-3."""
    from slipstream.runtime.cpu_list import parse_cpu_list

    def numbers(value: object) -> tuple[int, ...]:
        if isinstance(value, str):
            return parse_cpu_list(value, argument=f"--plan-from {path}: CPUs")
        return tuple(sorted(int(number) for number in value))  # type: ignore[attr-defined]

    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        instances = tuple(
            Instance(
                index=int(item.get("index", place)),
                cpus=numbers(item["cpus"]),
                nodes=numbers(item.get("nodes", [])),
                threads=int(item.get("threads", len(numbers(item["cpus"])))),
                memory_policy=item.get("memory_policy", "none"),
                memory_nodes=numbers(item.get("memory_nodes", [])),
                environment={str(name): str(value) for name, value in item.get("env", {}).items()},
                reasons=item.get("reasons", {}),
                argv=tuple(map(str, item["argv"])),
            )
            for place, item in enumerate(content["instances"])
        )
        left_out = tuple(LeftOut(numbers(item["cpus"]), item["reason"]) for item in content.get("left_out", []))
        if not instances:
            raise UsageError(f"--plan-from {path}: it has no instances")
    except OSError as error:
        raise UsageError(f"--plan-from {path}: {error.strerror or error}") from error
    except UsageError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(f"--plan-from {path}: not a plan as --plan json prints it ({error!r})") from error
    return LaunchPlan(instances, left_out, tuple(content.get("warnings", [])), tuple(content.get("command", [])))


def merged_report(plan: LaunchPlan, folder: str, *, instances: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> Report:
    """What the launcher knows and what the processes wrote into ``folder``, one JSON file each."""
    processes = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                try:
                    processes.append(json.load(file))
                except ValueError:  # killed while it wrote
                    processes.append({"pid": int(name.split(".")[0]), "decisions": [], "incomplete": True})
    seen = {process.get("pid") for process in processes}
    for one in instances:
        if one["pid"] not in seen:
            seen.add(one["pid"])
            processes.append({"pid": one["pid"], "argv": one["argv"], "instance": one["index"], "decisions": []})
    decisions = [decision.as_dict() for decision in plan.decisions]
    decisions += [decision for one in instances for decision in one["decisions"]]
    return {
        "plan": plan_as_dict(plan),
        "instances": list(instances),
        "decisions": decisions,
        "processes": processes,
        **extra,
    }


def check_report(target: str) -> None:
    """Whether ``target`` can be written, said before a run of hours and not after it."""
    if target == "-" or target.endswith(".txt"):
        try:
            import rich.console  # noqa: F401
        except ImportError as error:
            raise MissingDependency(
                f"--report {target}: tables as text need rich ({error}): pip install rich, or give FILE.html or FILE.json"
            ) from error


def write_report(report: Report, target: str) -> None:
    """``-``: text on stdout; else a file whose ending says the form."""
    if target == "-":
        print_report(report, sys.stdout)
        return
    try:
        with open(target, "w", encoding="utf-8") as file:
            if target.endswith(".json"):
                json.dump(report, file, indent=1)
            elif target.endswith(".html"):
                from slipstream.launcher.observe.html_page import page

                file.write(page(report))
            else:
                print_report(report, file)
    except OSError as error:
        raise UsageError(f"--report {target}: {error.strerror or error}") from error


def print_pieces(report: Report, file: IO[str]) -> None:
    """What was, or would be, done in each process."""
    from rich.console import Console

    from slipstream.launcher.observe import tables

    console = Console(file=file, width=None if file.isatty() else 160, highlight=False, soft_wrap=False)
    for process in report["processes"]:
        for table in tables.process_tables(process):
            console.print(table)


def print_report(report: Report, file: IO[str]) -> None:
    """The report as tables."""
    from rich.console import Console

    from slipstream.launcher.observe import tables

    width = None if file.isatty() else 160
    console = Console(file=file, width=width, highlight=False, soft_wrap=False)
    console.print()
    for table in tables.tables(report):
        console.print(table)
