# SPDX-License-Identifier: Apache-2.0
"""The report's page, a process's part: outcome, where time and memory went, one row for each kind of layer.

A row of several equal layers unfolds. No script runs in the page: rows are `details`, columns a grid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from slipstream.launcher.observe import pieces, shares
from slipstream.launcher.observe.pieces import Group, PieceRow, duration, megabytes

STYLE = """
.pieces { margin: 1rem 0; font-variant-numeric: tabular-nums; }
.row { display: grid; grid-template-columns: 1.1rem minmax(0, 1fr) 4.5rem 4.8rem 5.2rem 5rem 5rem; gap: 0 .9rem;
  align-items: baseline; padding: .35rem 0; border-bottom: 1px solid var(--line); }
.row > i { text-align: right; font-style: normal; white-space: nowrap; }
.row.head { color: var(--soft); font-weight: 500; }
.row code { overflow-wrap: break-word; font-weight: inherit; } .row code .soft { font-weight: inherit; }
.row .why { display: block; color: var(--soft); font-size: .9em; }
.row .times { color: var(--soft); margin-left: .5em; white-space: nowrap; }
.mark { width: .62rem; height: .62rem; border-radius: 50%; border: 1.5px solid var(--soft); display: inline-block; }
.mark.yes { background: var(--good); border-color: var(--good); }
summary { list-style: none; cursor: pointer; } summary::-webkit-details-marker { display: none; }
summary .times::after { content: " ▸"; } details[open] > summary .times::after { content: " ▾"; }
summary:hover { background: color-mix(in srgb, var(--line) 30%, transparent); }
details .member { font-size: .92em; padding-left: 0; border-bottom-style: dotted; }
.shares text { font-size: 12.5px; }
@media (max-width: 44rem) {
  .tile { flex: 1 1 8rem; min-width: 0; padding: .5rem .8rem; }
  .row { grid-template-columns: 1.1rem repeat(3, minmax(0, 1fr)); gap: .1rem .6rem; } .row.head { display: none; }
  .row > div { grid-column: 2 / -1; } .row > i { text-align: left; font-size: .9em; }
  .row > i:nth-child(3), .row > i:nth-child(6) { grid-column-start: 2; }
  .row > i::before { content: attr(data-k); display: block; color: var(--soft); font-size: .82em; }
}
@media print { details::details-content { content-visibility: visible; height: auto; } .row { break-inside: avoid; } }
"""

COLUMNS = ("speed-up", "error", "calls", "time", "packed")
MOST_KINDS = 6


def section(process: Mapping[str, Any], tile: Any) -> str:
    """Heading, tiles, pictures and rows; empty where the process had no pieces. ``tile(value, meaning)`` draws one."""
    rows = pieces.rows(process)
    if not rows:
        return ""
    script = os.path.basename(str((process.get("argv") or ["?"])[0]))
    done = "would be done" if process.get("inspected") else "was done"
    instance = process.get("instance")
    where = f"process {process['pid']}" + ("" if instance is None else f", instance {instance}")
    return (
        f"<h2>What {done} in {escape(script)} <span class=soft>{escape(where)}</span></h2>"
        f"<div class=tiles>{''.join(tile(value, meaning) for value, meaning in outcome(process, rows))}</div>"
        f"<div class=plots>{_time(process, rows)}{_memory(process)}</div>"
        f"{_table(pieces.groups(rows))}{_rest(process)}"
    )


def outcome(process: Mapping[str, Any], rows: Sequence[PieceRow]) -> list[tuple[str, str]]:
    """(value, meaning) of what one looks for first."""
    summary = process.get("summary", {})
    taken = sum(row.taken for row in rows)
    tiers = ", ".join(f"{count} {tier}" for tier, count in pieces.by_tier(rows).items())
    found = [(f"{taken} of {len(rows)}", f"pieces optimized{f' ({tiers})' if tiers else ''}")]
    spent = sum(pieces.seconds_by_kind(rows).values())
    if spent and process.get("seconds"):
        found.append((f"{100 * spent / process['seconds']:.0f} %", f"of {process['seconds']:.1f} s spent in them"))
    if "setup_s" in summary:
        found.append((duration(summary["setup_s"]), "to pack, check and time"))
    if summary.get("packed_mb"):
        found.append((megabytes(summary["packed_mb"]), "of packed copies"))
    return found


def _time(process: Mapping[str, Any], rows: Sequence[PieceRow]) -> str:
    kinds = pieces.seconds_by_kind(rows)
    if not kinds:
        return ""
    bars = {kind: [(kind, seconds)] for kind, seconds in list(kinds.items())[:MOST_KINDS]}
    more = sum(list(kinds.values())[MOST_KINDS:])
    if more:
        bars["other pieces"] = [("other pieces", more)]
    rest, set_up = "everything else", process.get("summary", {}).get("setup_s", 0.0)
    if set_up:
        bars["set-up"] = [("set-up", set_up)]
    left = process.get("seconds", 0.0) - sum(kinds.values()) - set_up
    if left > 0:
        bars[rest] = [(rest, left)]
    return shares.share_bars("Time since torch was imported", bars, duration, rest=rest)


def _memory(process: Mapping[str, Any]) -> str:
    weights, packed = pieces.parameters_mb(process), process.get("summary", {}).get("packed_mb", 0.0)
    if not weights:
        return ""
    bars = {"before": [("parameters", weights)], "after": [("parameters", weights), ("packed copies", packed)]}
    if process.get("peak_mb"):
        bars["process, at most"] = [("resident", process["peak_mb"])]
    return shares.share_bars("Memory", bars, megabytes, rest="resident")


def _table(groups: Sequence[Group]) -> str:
    head = "".join(f"<i>{name}</i>" for name in COLUMNS)
    body = "".join(map(_group, groups))
    return f"<div class=pieces><div class='row head'><span></span><div>piece</div>{head}</div>{body}</div>"


def _group(group: Group) -> str:
    first = group.first
    several = len(group.rows) > 1
    times = f"<span class=times>× {len(group.rows)}</span>" if several else ""
    layer = first.layer if first.tier == "function" else f"{first.layer}: {first.act}"
    title = escape(first.act) if first.tier == "function" else _path(group.name)
    text = f"<div><code>{title}</code>{times}<span class=why>{escape(layer)}. {escape(first.reason)}</span></div>"
    speedups = group.figure("speedup_x")
    spread = f" title='{min(speedups):.2f} to {max(speedups):.2f}'" if len(speedups) > 1 else ""
    cells = _cells(group.speedup, group.error, group.calls, group.seconds, group.packed_mb, spread)
    row = f"{_mark(first.taken)}{text}{cells}"
    if not several:
        return f"<div class=row>{row}</div>"
    members = "".join(_member(member) for member in group.rows)
    return f"<details><summary class=row>{row}</summary>{members}</details>"


def _member(row: PieceRow) -> str:
    figures = row.figures
    cells = _cells(figures.get("speedup_x"), figures.get("error_relative"), row.calls, row.seconds, row.packed_mb)
    return f"<div class='row member'><span></span><div><code>{_path(row.name)}</code></div>{cells}</div>"


def _cells(
    speedup: float | None, error: float | None, calls: int, seconds: float | None, packed_mb: float, more: str = ""
) -> str:
    values = (
        "–" if speedup is None else f"{speedup:.2f}×",
        "–" if error is None else f"{error:.1e}",
        f"{calls:,}".replace(",", " "),
        duration(seconds),
        megabytes(packed_mb),
    )
    return "".join(
        f"<i data-k='{name}'{more if name == 'speed-up' else ''}>{value}</i>"
        for name, value in zip(COLUMNS, values, strict=True)
    )


def _mark(taken: bool) -> str:
    return f"<span class='mark{' yes' if taken else ''}' title='{'optimized' if taken else 'left to torch'}'></span>"


def _path(name: str) -> str:
    """The model in a soft colour; lines break at dots."""
    label, dot, path = name.partition(".")
    if not dot:
        return escape(name)
    return f"<span class=soft>{escape(label)}.</span><wbr>" + escape(path).replace(".", ".<wbr>")


def _rest(process: Mapping[str, Any]) -> str:
    """Layers of classes that have no rows."""
    text = ""
    for label, layers in pieces.layers_without_piece(process).items():
        listed = ", ".join(f"{escape(layer)} × {count}" for layer, count in layers.items())
        text += f"<p class=soft><code>{escape(label)}</code>: run by torch, or as part of a piece above: {listed}</p>"
    return text
