# SPDX-License-Identifier: Apache-2.0
"""The report as rich tables: instances, their figures, checks against the plan, each process's decisions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from slipstream.launcher.observe import pieces
from slipstream.launcher.observe.pieces import Group, duration, megabytes
from slipstream.runtime.cpu_list import format_cpu_list


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    yield _instances(report)
    if report.get("metrics"):
        yield _metrics(report["metrics"])
    if report.get("checks"):
        yield _checks(report["checks"])
    if report.get("decisions"):
        yield _choices("decisions of the launcher", report["decisions"])
    for process in report["processes"]:
        yield from process_tables(process)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    """Cells as plain text: square brackets in them are no markup."""
    table.add_row(*(Text(str(cell)) for cell in cells))


def _instances(report: Mapping[str, Any]) -> Table:
    table = _table("instances", "instance", "CPUs", "nodes", "threads", "exit code", "seconds")
    ends = {one["index"]: one for one in report["instances"]}
    for one in report["plan"]["instances"]:
        end = ends.get(one["index"], {})
        seconds = f"{end['seconds']:.1f}" if "seconds" in end else "-"
        cpus, nodes = format_cpu_list(one["cpus"]), format_cpu_list(one["nodes"])
        _row(table, one["index"], cpus, nodes, one["threads"], end.get("exit_code", "-"), seconds)
    return table


def _metrics(metrics: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("figures that the instances printed", "figure", "over all", "how", "spread %", "by instance")
    for metric in metrics:
        each = ", ".join(f"[{index}] {value:.6g}" for index, value in metric["instances"].items())
        unit = f" {metric['unit']}" if metric["unit"] else ""
        _row(table, metric["name"], f"{metric['total']:.6g}{unit}", metric["how"], f"{metric['spread_percent']:.1f}", each)
    return table


def _checks(checks: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("checked against the plan", "what", "as planned", "reason")
    for check in checks:
        _row(table, check["what"], "yes" if check["taken"] else "NO", check["reason"])
    return table


def _choices(title: str, decisions: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(title, "what", "taken", "reason", "figures")
    for decision in decisions:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in decision.get("figures", {}).items())
        _row(table, decision["what"], "yes" if decision["taken"] else "no", decision["reason"], figures)
    return table


def process_tables(process: Mapping[str, Any]) -> Iterator[Table]:
    """The pieces of one process, equal layers in one row, and its other decisions."""
    instance = process.get("instance")
    name = os.path.basename(str((process.get("argv") or ["?"])[0]))
    where = "" if instance is None else f"instance {instance}, "
    title = f"{where}process {process['pid']} ({name})"
    groups = pieces.groups(pieces.rows(process))
    last = _groups(f"{title}: {'what would be done' if process.get('inspected') else 'pieces'}", groups) if groups else None
    others = pieces.other_decisions(process)
    if others:
        if last is not None:
            yield last
        last = _choices(f"{title}: decisions", others)
    if last is not None:
        text = ", ".join(f"{name} {value}" for name, value in process.get("summary", {}).items())
        last.caption = Text(text)  # type: ignore[assignment]
        yield last


def _groups(title: str, groups: Sequence[Group]) -> Table:
    table = _table(title, "piece", "×", "done", "reason", "speed-up", "error", "calls", "time", "packed")
    for column in table.columns[4:]:
        column.justify = "right"
        column.no_wrap = True
    for group in groups:
        first = group.first
        _row(
            table,
            group.name,
            len(group.rows),
            first.act if first.taken else f"no {first.act}",
            first.reason,
            "-" if group.speedup is None else f"{group.speedup:.2f}",
            "-" if group.error is None else f"{group.error:.1e}",
            group.calls,
            duration(group.seconds),
            megabytes(group.packed_mb),
        )
    return table
