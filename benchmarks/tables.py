# SPDX-License-Identifier: Apache-2.0
"""Results as tables on stdout. Only shows: every figure was computed elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import ceilings, machine

WIDTH_OFF_TERMINAL = 120  # in a file or a pipe nothing is there to ask for a width


def console() -> Console:
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_OFF_TERMINAL
    return Console(width=width, highlight=False)


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def show_machine(facts: dict[str, Any], figures: Sequence[ceilings.Figures]) -> None:
    out = console()
    out.print(machine.in_words(facts))
    if not figures:
        out.print("The ceilings are not known: there is no C++ compiler for the probe.")
        return
    table = _table("Ceilings, measured now", ["what"], [f"{each['threads']} thread(s)" for each in figures])
    for key, (name, unit) in ceilings.UNITS.items():
        values = [each[key] for each in figures]
        table.add_row(name, *("not there" if value is None else f"{value:.3g} {unit}" for value in values))
    out.print(table)


def milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def speedup(row: dict[str, Any]) -> str:
    return f"{row['speedup']:.2f} ({row['speedup_low']:.2f}–{row['speedup_high']:.2f})" if "speedup" in row else "–"


def behind(row: dict[str, Any]) -> str:
    """The seconds that its calls were ever behind eager's; a dash where eager was not timed."""
    return f"{row['behind_s']:.1f}" if "behind_s" in row else "–"


def show_zoo(rows: Sequence[dict[str, Any]]) -> None:
    """A row a model and contestant; the fastest of each model is marked."""
    columns = ["ms", "quartiles", "speed-up (range)", "set-up s", "behind s", "error"]
    table = _table("Zoo: over eager float32, in turn, in one sitting", ["model", "contestant"], columns)
    last = None
    for row in rows:
        if last is not None and row["model"] != last:
            table.add_section()
        shown = row["model"] if row["model"] != last else ""
        last = row["model"]
        if "failure" in row:
            table.add_row(shown, row["contestant"], "–", "–", f"failed: {row['failure'][:60]}", "–", "–", "–")
            continue
        best = min(each["ms"] for each in rows if each["model"] == last and "ms" in each)
        mark = " *" if row["ms"] == best else ""
        between = f"{milliseconds(row['ms_low'])}–{milliseconds(row['ms_high'])}"
        table.add_row(
            shown,
            row["contestant"] + mark,
            milliseconds(row["ms"]),
            between,
            speedup(row),
            f"{row['setup_s']:.1f}",
            behind(row),
            f"{row['error']:.1e}",
        )
    console().print(table)
    console().print(
        "* the fastest of its model; range: lowest and highest round; behind: the most that its calls were ever behind as many"
        " of eager float32, in seconds; error: largest difference from eager float32 over its largest value"
    )


def show_demo(rows: Sequence[dict[str, Any]]) -> None:
    """A row a script and way of running it."""
    columns = ["batch ms", "speed-up (range)", "all s", "set-up s", "agree", "cosine"]
    table = _table("The same scripts, unchanged, plain and under ipexrun --auto_ipex", ["script", "run"], columns)
    last = None
    for row in rows:
        if last is not None and row["example"] != last:
            table.add_section()
        shown = f"{row['example']}.py" if row["example"] != last else ""
        last = row["example"]
        agreement = row["agreement"]
        table.add_row(
            shown,
            row["way"],
            milliseconds(row["ms"]),
            speedup(row),
            f"{row['total_s']:.1f}",
            f"{max(0.0, row['setup_s']):.2f}",
            f"{agreement['first_equal']:.0%}" + ("" if agreement["holds"] else " DISAGREES"),
            f"{agreement['cosine']:.6f}",
        )
    console().print(table)
    console().print(
        "batch: median of one call of the model; range: lowest and highest round; all: every batch, the first included;\n"
        "set-up: the first call beyond a median one; agree: same best hit of each query, same class of each item;\n"
        "cosine: the worst of all embeddings or scores with those of the plain run"
    )


def show_instances(rows: Sequence[dict[str, Any]]) -> None:
    """A row a dtype and layout."""
    columns = ["sequences/s", "quartiles", "against one (range)"]
    table = _table("One script, as one large instance or several small ones", ["run", "instances × cores"], columns)
    for row in rows:
        layout = f"{row['instances']} × {row['cores']}"
        quartiles = f"{row['throughput_low']:.2f}–{row['throughput_high']:.2f}"
        table.add_row(row["dtype"], layout, f"{row['throughput']:.2f}", quartiles, speedup(row))
    console().print(table)
    console().print("sequences/s: summed over the instances, median of the rounds; range: lowest and highest round")


def show_kernels(rows: Sequence[dict[str, Any]], means: Sequence[dict[str, Any]]) -> None:
    """A table a dtype with a line a size and a column a number of rows; then the geometric means."""
    out = console()
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mine = [row for row in rows if row["dtype"] == dtype]
        counts = list(dict.fromkeys(row["rows"] for row in mine))
        table = _table(f"linear, {dtype}: GFLOP/s by rows, and times as fast as the better rival", ["K × N"], map(str, counts))
        for size in dict.fromkeys((row["k"], row["n"]) for row in mine):
            cells = {row["rows"]: row for row in mine if (row["k"], row["n"]) == size}
            table.add_row(f"{size[0]} × {size[1]}", *(_kernel_cell(cells[count]) for count in counts))
        out.print(table)
    table = _table("ours over …, geometric mean over all sizes", ["dtype", "rival", "rows"], ["mean", "worst"])
    for each in means:
        table.add_row(each["dtype"], each["rival"], row_range(each), f"{each['mean']:.2f}", f"{each['worst']:.2f}")
    out.print(table)


def show_families(rows: Sequence[dict[str, Any]], means: Sequence[dict[str, Any]]) -> None:
    """A table a family with a line a dtype and shape; then the geometric means."""
    out = console()
    for family in dict.fromkeys(row["family"] for row in rows):
        columns = ["µs", "rate", "as fast as the rival (range)"]
        table = _table(family, ["shape", "dtype", "rival"], columns)
        for row in (row for row in rows if row["family"] == family):
            times = f"×{row['over']:.2f} ({row['over_low']:.2f}–{row['over_high']:.2f})"
            rate = f"{row['rate']:.4g} {row['unit']}"
            table.add_row(" ".join(map(str, row["sizes"])), row["dtype"], row["rival"], f"{row['ours_us']:.4g}", rate, times)
        out.print(table)
    table = _table("ours over the rival, over all shapes", ["family", "dtype", "rival"], ["shapes", "mean", "worst"])
    for each in means:
        figures = (str(each["shapes"]), f"{each['mean']:.2f}", f"{each['worst']:.2f}")
        table.add_row(each["family"], each["dtype"], each["rival"], *figures)
    out.print(table)


def row_range(mean: dict[str, Any]) -> str:
    """The numbers of rows that a mean is over: 1–4, or 513 and more."""
    return f"{mean['from']} and more" if mean["to"] >= 1 << 30 else f"{mean['from']}–{mean['to']}"


def _kernel_cell(row: dict[str, Any]) -> str:
    rivals = [row[key] for key in ("over_onednn", "over_mkl") if key in row]
    return f"{row['tflops'] * 1e3:.0f}" + (f" ×{min(rivals):.2f}" if rivals else "")
