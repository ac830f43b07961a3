# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing else: tables, and plots as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from slipstream.runtime.cpu_list import format_cpu_list

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --line: #d7dde5; --soft: #66707d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf0; --paper: #14181d; --line: #343c46; --soft: #9aa5b1; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); }
th, figcaption { color: var(--soft); font-weight: 500; }
figure { display: inline-block; margin: 0 1.5rem 1rem 0; } svg text { font-size: 11px; fill: var(--soft); }
.no { color: #c0392b; font-weight: 600; }
"""
COLOURS = ("#2f6fb7", "#d9822b", "#3a9e6f", "#a14fb0", "#c0392b", "#7a8794", "#8a6d1f", "#1f8a8a")
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 170, 56, 22

Course = Sequence[tuple[float, float]]


def page(report: Mapping[str, Any]) -> str:
    """The whole file."""
    parts = [_instances(report), _figures(report), _usage(report), _checks(report), _plan(report), _processes(report)]
    body = "".join(part for part in parts if part)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>ipexrun report</title>"
        f'<meta name=viewport content="width=device-width"><style>{STYLE}</style></head>'
        f"<body><h1>ipexrun report</h1>{body}</body></html>\n"
    )


def _instances(report: Mapping[str, Any]) -> str:
    ends = {one["index"]: one for one in report["instances"]}
    rows = []
    for one in report["plan"]["instances"]:
        end = ends.get(one["index"], {})
        cells = [one["index"], format_cpu_list(one["cpus"]), format_cpu_list(one["nodes"]), one["threads"]]
        rows.append([*cells, end.get("exit_code", "–"), end.get("seconds", "–"), " ".join(one["argv"])])
    return "<h2>Instances</h2>" + _table(["instance", "CPUs", "nodes", "threads", "exit code", "seconds", "command"], rows)


def _figures(report: Mapping[str, Any]) -> str:
    """Bars by instance, and the course over time where there was more than one value."""
    text = ""
    for figure in report.get("metrics", ()):
        unit = f" {figure['unit']}" if figure["unit"] else ""
        title = f"{figure['name']}: {figure['how']} {figure['total']:.6g}{unit}, spread {figure['spread_percent']:.1f} %"
        bars = {str(index): float(value) for index, value in figure["instances"].items()}
        text += _plot(title + ", by instance", _bars(bars))
        courses = {str(index): course for index, course in figure["series"].items() if len(course) > 1}
        if courses:
            text += _plot(f"{figure['name']}{unit} over seconds", _lines(courses))
    return f"<h2>Figures that the instances printed</h2>{text}" if text else ""


def _usage(report: Mapping[str, Any]) -> str:
    text = ""
    for key, title in (("cpu_percent", "CPU use, percent of one CPU"), ("resident_mb", "memory, MB")):
        courses = {
            str(index): list(zip(course["seconds"], course[key], strict=True))
            for index, course in report.get("usage", {}).items()
            if len(course["seconds"]) > 1
        }
        if courses:
            text += _plot(f"{title} over seconds", _lines(courses))
    return f"<h2>Use of the machine</h2>{text}" if text else ""


def _checks(report: Mapping[str, Any]) -> str:
    rows = [[check["what"], _yes(check["taken"]), check["reason"]] for check in report.get("checks", ())]
    return "<h2>Checked against the plan</h2>" + _table(["what", "as planned", "reason"], rows) if rows else ""


def _plan(report: Mapping[str, Any]) -> str:
    variables: dict[tuple[str, str, str], list[str]] = {}
    for one in report["plan"]["instances"]:
        for name, value in one["env"].items():
            reason = one.get("reasons", {}).get(name, "")
            variables.setdefault((name, value, reason), []).append(str(one["index"]))
    rows: list[list[object]] = [
        [name, value, reason, ", ".join(indices)] for (name, value, reason), indices in variables.items()
    ]
    left = [[format_cpu_list(item["cpus"]), item["reason"]] for item in report["plan"]["left_out"]]
    text = "<h2>Environment</h2>" + _table(["variable", "value", "reason", "instances"], rows)
    return text + ("<h2>CPUs left out</h2>" + _table(["CPUs", "reason"], left) if left else "")


def _processes(report: Mapping[str, Any]) -> str:
    text = _choices("the launcher", report.get("decisions", ()))
    for process in report["processes"]:
        text += _choices(f"process {process['pid']}, instance {process.get('instance')}", process["decisions"])
    return text


def _choices(whose: str, decisions: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            item["what"],
            "yes" if item["taken"] else "no",
            item["reason"],
            ", ".join(f"{name} {value:.4g}" for name, value in item.get("figures", {}).items()),
        ]
        for item in decisions
    ]
    header = ["what", "taken", "reason", "figures"]
    return f"<h2>Decisions of {escape(whose)}</h2>" + _table(header, rows) if rows else ""


def _yes(taken: bool) -> str:
    return "yes" if taken else "NO"


def _table(header: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(_cell(str(cell)) for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _cell(text: str) -> str:
    return f"<td class=no>{text}</td>" if text == "NO" else f"<td>{escape(text)}</td>"


def _plot(title: str, content: str) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{content}</svg></figure>'
    )


def _bars(values: Mapping[str, float]) -> str:
    """One bar for each label, from zero."""
    top = max((abs(value) for value in values.values()), default=0.0) or 1.0
    step = (WIDTH - LEFT) / len(values)
    text = _axis(0.0, top)
    for place, (label, value) in enumerate(values.items()):
        height = (HEIGHT - BOTTOM - 8) * abs(value) / top
        x = LEFT + place * step
        colour = COLOURS[place % len(COLOURS)]
        text += (
            f'<rect x="{x + step * 0.15:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{step * 0.7:.1f}" '
            f'height="{height:.1f}" fill="{colour}"><title>{escape(label)}: {value:.6g}</title></rect>'
            f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>'
        )
    return text


def _lines(courses: Mapping[str, Course]) -> str:
    """One line for each label over a common axis of time."""
    seconds = [point[0] for course in courses.values() for point in course]
    values = [point[1] for course in courses.values() for point in course]
    low, high = min(0.0, *values), max(*values, 0.0) or 1.0
    begin, length = min(seconds), (max(seconds) - min(seconds)) or 1.0
    text = _axis(low, high)
    text += f'<text x="{LEFT}" y="{HEIGHT - 6}">{begin:.0f} s</text>'
    text += f'<text x="{WIDTH - 4}" y="{HEIGHT - 6}" text-anchor="end">{begin + length:.0f} s</text>'
    for place, (label, course) in enumerate(courses.items()):
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT - 6) * (at - begin) / length:.1f},"
            f"{HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 8) * (value - low) / ((high - low) or 1.0):.1f}"
            for at, value in course
        )
        colour = COLOURS[place % len(COLOURS)]
        text += (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8">'
            f"<title>instance {escape(label)}</title></polyline>"
        )
    return text


def _axis(low: float, high: float) -> str:
    """A line at the foot and one at the top, with their values."""
    return "".join(
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity=".25"/>'
        f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.4g}</text>'
        for y, value in ((HEIGHT - BOTTOM, low), (8, high))
    )
