# SPDX-License-Identifier: Apache-2.0
"""A verdict as a table, a command line, and files: `result.json`, `record.csv`, `command.txt`, `plot.svg`."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from slipstream.decision import Decision
from slipstream.errors import UsageError
from slipstream.launcher.tune.show.plot import plot
from slipstream.launcher.tune.trial import Configuration
from slipstream.launcher.tune.verdict import Standing, Verdict

MOST_ROWS = 25
"""More are in result.json."""


def command_line(fixed: Sequence[str], configuration: Configuration, program: Sequence[str]) -> str:
    """What to type, quoted for a shell."""
    end_of_flags = ["--"] if program and program[0].startswith("-") else []
    return shlex.join(["ipexrun", *fixed, *configuration.words(), *end_of_flags, *program])


def write_files(folder: str, verdict: Verdict, command: str, decisions: Sequence[Decision], about: Mapping[str, Any]) -> None:
    """Everything that outlives the terminal."""
    try:
        with open(os.path.join(folder, "result.json"), "w", encoding="utf-8") as file:
            json.dump(_as_dict(verdict, command, decisions, about), file, indent=1)
        with open(os.path.join(folder, "record.csv"), "w", encoding="utf-8", newline="") as file:
            _write_csv(file, verdict)
        with open(os.path.join(folder, "command.txt"), "w", encoding="utf-8") as file:
            file.write(f"{command}\n" if command else "")
        if verdict.winner is not None:
            with open(os.path.join(folder, "plot.svg"), "w", encoding="utf-8") as file:
                file.write(plot(verdict))
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror or error}") from error


def print_table(verdict: Verdict, decisions: Iterable[Decision]) -> None:
    """The standings and the reasons, on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="configurations, best first", title_justify="left", title_style="bold")
    for name in ("flags", *_goal_names(verdict), "spread %", "runs", "× first", "note"):
        table.add_column(name, overflow="fold", justify="left" if name in {"flags", "note"} else "right")
    for standing in verdict.standings[:MOST_ROWS]:
        table.add_row(*(Text(cell) for cell in _cells(standing, verdict)))
    if len(verdict.standings) > MOST_ROWS:
        table.caption = f"{len(verdict.standings) - MOST_ROWS} more in result.json"
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for decision in decisions:
        console.print(Text(f"{decision.what}: {decision.reason}"))


def _cells(standing: Standing, verdict: Verdict) -> list[str]:
    goals = len(_goal_names(verdict))
    if standing.failed:
        return [str(standing.configuration), *["–"] * (goals + 3), f"failed: {standing.note}"]
    ratio = _times_plain(standing, verdict)
    return [
        str(standing.configuration),
        *(f"{value:.6g}" for value in standing.values),
        f"{standing.spread_percent:.1f}",
        str(standing.runs),
        "–" if ratio is None else f"{ratio:.3f}",
        standing.note,
    ]


def _times_plain(standing: Standing, verdict: Verdict) -> float | None:
    """How many times better than the plain start, of runs of the same length; None where they cannot be compared."""
    plain = verdict.first
    if plain is None or plain.failed or plain.stage != standing.stage or not plain.values[0] or not standing.values[0]:
        return None
    higher = verdict.resolved is not None and verdict.resolved.goals[0].higher
    return standing.values[0] / plain.values[0] if higher else plain.values[0] / standing.values[0]


def _goal_names(verdict: Verdict) -> list[str]:
    return [str(goal) for goal in verdict.resolved.goals] if verdict.resolved else []


def _as_dict(verdict: Verdict, command: str, decisions: Sequence[Decision], about: Mapping[str, Any]) -> dict[str, Any]:
    resolved = verdict.resolved
    return {
        **about,
        "command": command,
        "winner": dict(verdict.winner.configuration.settings) if verdict.winner else None,
        "goals": [{"name": goal.name, "unit": goal.unit, "higher_is_better": goal.higher} for goal in resolved.goals]
        if resolved
        else [],
        "limits": [str(limit) for limit in resolved.limits] if resolved else [],
        "standings": [
            {
                "configuration": dict(one.configuration.settings),
                "flags": one.configuration.words(),
                "stage": one.stage,
                "runs": one.runs,
                "medians": list(one.values),
                "low": one.low,
                "high": one.high,
                "spread_percent": one.spread_percent,
                "keeps_limits": one.keeps_limits,
                "failed": one.failed,
                "note": one.note,
            }
            for one in verdict.standings
        ],
        "decisions": [decision.as_dict() for decision in decisions],
    }


def _write_csv(file: IO[str], verdict: Verdict) -> None:
    """One row a configuration: its flags, then the medians; a failed one has none."""
    flags = list(dict.fromkeys(flag for one in verdict.standings for flag, _ in one.configuration.settings))
    writer = csv.writer(file)
    writer.writerow([*flags, *_goal_names(verdict), "runs", "note"])
    for one in verdict.standings:
        settings = dict(one.configuration.settings)
        values = one.values or ("",) * len(_goal_names(verdict))
        writer.writerow([*(settings.get(flag, "") for flag in flags), *values, one.runs, one.note])
