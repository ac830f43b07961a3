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
        table.add_column(name)
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


def show_zoo(rows: Sequence[dict[str, Any]]) -> None:
    """A row a model and contestant; the fastest of each model is marked."""
    columns = ["ms", "quartiles", "speed-up (lowest–highest round)", "set-up s", "error"]
    table = _table("Zoo: over eager float32, in turn, in one sitting", ["model", "contestant"], columns)
    last = None
    for row in rows:
        if last is not None and row["model"] != last:
            table.add_section()
        shown = row["model"] if row["model"] != last else ""
        last = row["model"]
        if "failure" in row:
            table.add_row(shown, row["contestant"], "–", "–", f"failed: {row['failure'][:60]}", "–", "–")
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
            f"{row['error']:.1e}",
        )
    console().print(table)
    console().print("* the fastest of its model; error: largest difference over largest value of eager float32")
