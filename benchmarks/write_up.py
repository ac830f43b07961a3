# SPDX-License-Identifier: Apache-2.0
"""The JSON of runs as Markdown for docs/benchmarks.md, so that no figure there passes through a hand."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import best_peer, ceilings, machine, room, tables
from benchmarks.kernel_means import family_means, geometric_means
from benchmarks.options import DTYPES
from slipstream.errors import UsageError

Report = dict[str, Any]


def markdown(reports: dict[str, pathlib.Path]) -> str:
    """One section a report; ``reports`` maps demo, zoo or kernels to the file that its --json wrote."""
    sections = []
    for act, path in reports.items():
        try:
            report = json.loads(path.read_text())
            sections.append(SECTIONS[act](report))
        except (OSError, ValueError, KeyError) as error:
            raise UsageError.of(
                f"--{act}", path, f"is not what `python -m benchmarks {act} --json` writes ({error})"
            ) from error
    return "\n\n".join(sections) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int) -> str:
    """A Markdown table whose first ``texts`` columns are text and the others numbers."""
    rule = ["---"] * texts + ["--:"] * (len(head) - texts)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def demo(report: Report) -> str:
    rows = [
        (
            f"`{row['example']}.py`",
            f"`{row['way']}`" if row["way"].startswith("-") else row["way"],
            tables.milliseconds(row["ms"]),
            tables.speedup(row),
            f"{max(0.0, row['setup_s']):.2f}",
            f"{row['agreement']['first_equal']:.0%}",
            f"{row['agreement']['cosine']:.6f}",
        )
        for row in report["rows"]
    ]
    head = ("script", "run", "batch ms", "speed-up (range)", "set-up s", "same answers", "cosine")
    return f"## Unmodified scripts\n\n{where(report)}\n\n" + table(head, rows, texts=2)


def zoo(report: Report) -> str:
    """Milliseconds and speed-ups, a line a model and a column a contestant; then ours against the best of the others."""
    models = list(dict.fromkeys(row["model"] for row in report["rows"]))
    names = list(dict.fromkeys(row["contestant"] for row in report["rows"]))
    cell = {(row["model"], row["contestant"]): row for row in report["rows"]}
    views = {
        "Milliseconds, median": lambda row: tables.milliseconds(row["ms"]),
        "Times as fast as eager float32 (lowest–highest round)": tables.speedup,
        "Set-up, seconds": lambda row: f"{row['setup_s']:.1f}",
        "Most seconds behind the script as it is, at any call": tables.behind,
        "Largest difference from eager float32, over its largest value": lambda row: f"{row['error']:.0e}",
    }
    parts = [f"## Models\n\n{where(report)}"]
    for title, view in views.items():
        rows = [(f"`{model}`", *(_shown(cell.get((model, name)), view) for name in names)) for model in models]
        parts.append(f"### {title}\n\n" + table(("model", *names), rows, texts=1))
    parts[1:1] = [_against_best(report), *_room(report)]
    settings = report["settings"]
    parts.append(f"{settings['rounds']} rounds of {settings['seconds']} s a contestant, {settings['threads']} threads.")
    return "\n\n".join(parts)


def _shown(row: dict[str, Any] | None, view: Callable[[dict[str, Any]], str]) -> str:
    if row is None:
        return "–"
    return "failed" if "failure" in row else view(row)


def _against_best(report: Report) -> str:
    """A line a model: the best of the others in each dtype, and how many times faster ours is."""
    lines = best_peer.against_best(report["rows"])
    cells = {(line.model, line.dtype): (line.peer, str(line.times)) for line in lines}
    means = best_peer.geometric_means(lines)
    head, mean = ["model"], ["geometric mean"]
    rows = {model: [f"`{model}`"] for model in dict.fromkeys(line.model for line in lines)}
    for dtype in DTYPES:
        head += [f"best peer, {dtype}", "its time over ours (range)"]
        mean += ["", f"{means[dtype]:.2f}" if dtype in means else "–"]
        for model, row in rows.items():
            row.extend(cells.get((model, dtype), ("–", "–")))
    return "### Against the best peer of the same dtype\n\n" + table(head, [*rows.values(), mean], texts=1)


def _room(report: Report) -> list[str]:
    """What a contestant at the ceiling could gain over the best peer, and how near ours is; nothing where it is not known."""
    lines = room.rooms(report)
    if not lines:
        return []
    rows = [(f"`{line.model}`", line.dtype, f"{line.gflop:.0f}", f"{line.peer:.2f}", f"{line.ours:.2f}") for line in lines]
    head = ("model", "dtype", "GFLOP of products", "best peer's time over theirs at the ceiling", "ours")
    return ["### Room that there is\n\n" + table(head, rows, texts=2)]


def kernels(report: Report) -> str:
    rows = [
        (each["dtype"], each["rival"], tables.row_range(each), f"{each['mean']:.2f}", f"{each['worst']:.2f}")
        for each in geometric_means(report["rows"])
    ]
    parts = [f"## Kernels\n\n{where(report)}\n\nTimes as fast as each rival, geometric mean over all sizes:"]
    if rows:
        parts.append("### linear\n\n" + table(("dtype", "rival", "rows", "mean", "worst"), rows, texts=3))
    others = [
        (each["family"], each["dtype"], each["rival"], str(each["shapes"]), f"{each['mean']:.2f}", f"{each['worst']:.2f}")
        for each in family_means(report.get("families", []))
    ]
    if others:
        head = ("family", "dtype", "rival", "shapes", "mean", "worst")
        parts.append("### The other families\n\n" + table(head, others, texts=3))
    return "\n\n".join(parts)


def where(report: Report) -> str:
    """The machine in words, and its ceilings where they were measured."""
    lines = [f"Machine: {machine.in_words(report['machine'])}."]
    for figures in report.get("ceilings", []):
        known = [
            f"{name} {figures[key]:.3g} {unit}"
            for key, (name, unit) in ceilings.UNITS.items()
            if figures.get(key) is not None  # nor in what was written before there was such a figure
        ]
        lines.append(f"Ceilings with {figures['threads']} thread(s): {', '.join(known)}.")
    return "  \n".join(lines)


SECTIONS = {"demo": demo, "zoo": zoo, "kernels": kernels}
