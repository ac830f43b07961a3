# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing else: tables here, plots as inline SVG in `plots.py`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from slipstream.launcher.observe import pieces, pieces_page, plots
from slipstream.runtime.cpu_list import format_cpu_list

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --line: #d7dde5; --soft: #66707d; --bad: #c0392b;
  --good: #2e9e62; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7ebf0; --paper: #14181d; --line: #343c46; --soft: #9aa5b1; --bad: #ff7b6b; --good: #4cc38a; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .25rem; } h2 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
p { margin: .25rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.25rem .3rem 0; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; } th, figcaption, .soft { color: var(--soft); font-weight: 500; }
td { overflow-wrap: break-word; max-width: 38rem; } td:first-child code { white-space: nowrap; }
code { font: .86em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; min-width: 9rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1.25rem 2rem; }
figure { margin: 0; max-width: 34rem; } figure svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--soft); }
.key { font-size: .85em; color: var(--soft); } .key span { white-space: nowrap; margin-right: .9rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .35em; }
.bad { color: var(--bad); font-weight: 600; }
h2 .soft { font-size: .82em; margin-left: .4em; }
@media print { :root { --ink: #000; --paper: #fff; --line: #ccc; --soft: #555; } body { max-width: none; margin: 0; } }
"""
MOST_TILES = 4


def page(report: Mapping[str, Any]) -> str:
    """The whole file."""
    done = "".join(pieces_page.section(process, _tile) for process in report["processes"])
    about_run = [_instances(report), _figures(report), _usage(report), _checks(report), _plan(report)]
    body = "".join([_head(report), _comparison(report), done, *about_run, _processes(report)])
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>ipexrun report</title>"
        f'<meta name=viewport content="width=device-width"><style>{STYLE}{pieces_page.STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    """What one looks for first: what ran, how it ended, the figures over all."""
    commands = dict.fromkeys(shlex.join(one["argv"]) for one in report["plan"]["instances"])
    ends = report["instances"]
    failed = [end for end in ends if end["exit_code"]]
    checks = report.get("checks", ())
    astray = sum(not check["taken"] for check in checks)
    count = f"{len(ends)} instance{'s' if len(ends) != 1 else ''}"
    tiles = [
        _tile(f"{len(failed)} of {len(ends)}", "failed", Bad) if failed else _tile(count, "ended well"),
        _tile(f"{max((end['seconds'] for end in ends), default=0.0):.1f} s", "until the last ended"),
    ]
    for figure in [*report.get("metrics", ())][:MOST_TILES]:
        kind = "over all" if figure["how"] == "sum" else "on average"
        tiles.append(_tile(f"{plots.short(figure['total'])} {figure['unit']}", f"{figure['name']}, {kind}"))
    if astray:
        tiles.append(_tile(f"{astray} of {len(checks)}", "checks not as planned", Bad))
    elif checks:
        tiles.append(_tile("as planned", f"{len(checks)} check{'s' if len(checks) != 1 else ''}"))
    text = "".join(f"<p><code>{escape(one)}</code></p>" for one in [*commands][:MOST_TILES])
    return f"<h1>ipexrun report</h1>{text}<div class=tiles>{''.join(tiles)}</div>"


def _tile(value: str, meaning: str, kind: type[str] = str) -> str:
    marked = " class=bad" if kind is Bad else ""
    return f"<div class=tile><b{marked}>{escape(value)}</b><span class=soft>{escape(meaning)}</span></div>"


def _comparison(report: Mapping[str, Any]) -> str:
    """Of --compare: both sides' figures, and how the outputs differ."""
    found = report.get("comparison")
    if not found:
        return ""
    rows: list[list[object]] = [["exit code", *(", ".join(map(str, dict.fromkeys(side))) for side in found["exit_codes"]), ""]]
    for row in found["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        spread = f" ({row['range'][0]:.2f}–{row['range'][1]:.2f})" if row["range"] else ""
        rows.append([row["name"], f"{row['plain']:.4g}", f"{row['codeless']:.4g}", ratio + spread])
    bad = " class=bad" if found["different"] else ""
    diff = escape("\n".join(found["stdout"]["diff"]))
    rounds = f"{found['rounds']} round{'s' if found['rounds'] > 1 else ''} in turn"
    return (
        f"<h2>Plain and codeless <span class=soft>{rounds}</span></h2>"
        + _table(["", "plain", "codeless", "codeless / plain"], rows)
        + f"<p{bad}>Standard output: {escape(found['stdout']['words'])}</p>"
        + (f"<pre class=wide>{diff}</pre>" if diff else "")
    )


def _instances(report: Mapping[str, Any]) -> str:
    ends = {one["index"]: one for one in report["instances"]}
    several = len({tuple(one["argv"]) for one in report["plan"]["instances"]}) > 1
    rows = []
    for one in report["plan"]["instances"]:
        end = ends.get(one["index"], {})
        cells = [one["index"], format_cpu_list(one["cpus"]), format_cpu_list(one["nodes"]), one["threads"]]
        code = end.get("exit_code", "–")
        seconds = f"{end['seconds']:.1f}" if "seconds" in end else "–"
        rows.append([*cells, Bad(code) if code else code, seconds, *([Code(shlex.join(one["argv"]))] if several else [])])
    header = ["instance", "CPUs", "nodes", "threads", "exit code", "seconds", *(["command"] if several else [])]
    return "<h2>Instances</h2>" + _table(header, rows)


def _figures(report: Mapping[str, Any]) -> str:
    """Bars by instance, and the course over time where there was more than one value."""
    text = ""
    for figure in report.get("metrics", ()):
        alone = figure["unit"] in {"", figure["name"]}
        name = figure["name"] if alone else f"{figure['name']}, {figure['unit']}"
        bars = {str(index): float(value) for index, value in figure["instances"].items()}
        spread = f"; spread {figure['spread_percent']:.1f} %" if len(bars) > 1 else ""
        text += plots.bars(f"{name}: last value of each instance{spread}", bars)
        courses = {str(index): course for index, course in figure["series"].items() if len(course) > 1}
        if courses:
            text += plots.lines(f"{name}, over time", courses)
    return f"<h2>Figures that the instances printed</h2><div class=plots>{text}</div>" if text else ""


def _usage(report: Mapping[str, Any]) -> str:
    text = ""
    for key, title in (("cpu_percent", "CPU use, percent of one CPU, over time"), ("resident_mb", "memory, MB, over time")):
        courses = {
            str(index): list(zip(course["seconds"], course[key], strict=True))
            for index, course in report.get("usage", {}).items()
            if len(course["seconds"]) > 1
        }
        if courses:
            text += plots.lines(title, courses)
    return f"<h2>Use of the machine</h2><div class=plots>{text}</div>" if text else ""


def _checks(report: Mapping[str, Any]) -> str:
    rows = [[check["what"], "yes" if check["taken"] else Bad("NO"), check["reason"]] for check in report.get("checks", ())]
    return "<h2>Checked against the plan</h2>" + _table(["what", "as planned", "reason"], rows) if rows else ""


def _plan(report: Mapping[str, Any]) -> str:
    variables: dict[tuple[str, str, str], list[str]] = {}
    for one in report["plan"]["instances"]:
        for name, value in one["env"].items():
            reason = one.get("reasons", {}).get(name, "")
            variables.setdefault((name, value, reason), []).append(str(one["index"]))
    rows: list[list[object]] = [
        [Code(name), Code(value), reason, ", ".join(indices)] for (name, value, reason), indices in variables.items()
    ]
    left = [[format_cpu_list(item["cpus"]), item["reason"]] for item in report["plan"]["left_out"]]
    text = "<h2>Environment</h2>" + _table(["variable", "value", "reason", "instances"], rows)
    return text + ("<h2>CPUs left out</h2>" + _table(["CPUs", "reason"], left) if left else "")


def _processes(report: Mapping[str, Any]) -> str:
    text = _choices("the launcher", report.get("decisions", ()))
    for process in report["processes"]:
        text += _choices(f"process {process['pid']}, instance {process.get('instance')}", pieces.other_decisions(process))
    return text


def _choices(whose: str, decisions: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for item in decisions:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in item.get("figures", {}).items())
        rows.append([item["what"], "yes" if item["taken"] else "no", item["reason"], figures])
    header = ["what", "taken", "reason", "figures"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return f"<h2>Decisions of {escape(whose)}</h2>" + _table(header, rows) if rows else ""


class Code(str):
    """A cell as it would be typed."""


class Bad(str):
    """A cell that is to be seen first."""


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _cell(cell: object) -> str:
    text = escape(str(cell))
    if isinstance(cell, Code):
        return f"<td><code>{text}</code></td>"
    return f"<td class=bad>{text}</td>" if isinstance(cell, Bad) else f"<td>{text}</td>"
