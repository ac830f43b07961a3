# SPDX-License-Identifier: Apache-2.0
"""`ipexrun --compare [N]`: the script plain and codeless, in turn, under one plan; what differs, in one table.

Exit code: 1 where outputs or exit codes differ, else the script's own.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slipstream.launcher import report
from slipstream.launcher.codeless.outputs import TOLERANCES, Judgement, Place, judge, named_times
from slipstream.launcher.codeless.runs import Outcome, Runs
from slipstream.launcher.options import LaunchOptions

DIFFERENT = 1
SIDES = ("plain", "codeless")


def compare(options: LaunchOptions, *, command: str, say: Callable[[str], None]) -> int:
    """Run, print, write the report where one is asked for."""
    report.check_report(options.running.report)
    runs = Runs(options, command=command, say=say)
    outcomes: dict[str, list[Outcome]] = {side: [] for side in SIDES}
    for number in range(options.compare):
        for side in SIDES:
            say(f"round {number + 1} of {options.compare}, {side} …")
            outcome = runs.run(engine=side == "codeless")
            if outcome.interrupted:
                return 128 + outcome.interrupted
            outcomes[side].append(outcome)
    tolerance = TOLERANCES[options.optimization.dtype] if options.tolerance is None else options.tolerance
    comparison = conclude(outcomes["plain"], outcomes["codeless"], tolerance)
    sys.stdout.write(as_text(comparison))
    for side in SIDES:
        _show_failure(side, outcomes[side], say)
    if options.running.report:
        merged = {**outcomes["codeless"][-1].report, "comparison": comparison}
        report.write_report(merged, options.running.report)
    return DIFFERENT if comparison["different"] else outcomes["plain"][0].code


def conclude(plain: Sequence[Outcome], codeless: Sequence[Outcome], tolerance: float) -> dict[str, Any]:
    """Everything that the table says, as plain values."""
    noise: frozenset[Place] = frozenset()
    for outcome in plain[1:]:
        noise |= set(judge(plain[0].stdout, outcome.stdout, tolerance).differing)
    judgements = [judge(plain[0].stdout, outcome.stdout, tolerance, noise) for outcome in codeless]
    worst = max(judgements, key=_badness)
    codes = [[outcome.code for outcome in side] for side in (plain, codeless)]
    return {
        "rounds": len(plain),
        "exit_codes": codes,
        "rows": _rows(plain, codeless),
        "stdout": {
            "identical": worst.identical,
            "same": worst.same,
            "words": worst.words(tolerance),
            "worst_relative": worst.worst,
            "tolerance": tolerance,
            "noise_lines": len(noise),
            "diff": list(worst.diff),
        },
        "different": not worst.same or codes[0] != codes[1],
    }


def _badness(judgement: Judgement) -> tuple[int, bool, float]:
    return len(judgement.differing), not judgement.identical, judgement.worst


def _rows(plain: Sequence[Outcome], codeless: Sequence[Outcome]) -> list[dict[str, Any]]:
    """(name, both sides' medians, the median of the rounds' ratios with its range) of whatever both sides have."""
    sides = [[_figures(outcome) for outcome in side] for side in (plain, codeless)]
    names = [name for name in sides[0][0] if all(name in one for side in sides for one in side)]
    found = []
    for name in names:
        pairs = [(mine[name], ours[name]) for mine, ours in zip(*sides, strict=True)]
        ratios = [ours / mine for mine, ours in pairs if mine]
        found.append(
            {
                "name": name,
                "plain": statistics.median(pair[0] for pair in pairs),
                "codeless": statistics.median(pair[1] for pair in pairs),
                "ratio": statistics.median(ratios) if ratios else None,
                "range": [min(ratios), max(ratios)] if len(ratios) > 1 else None,
            }
        )
    return found


def _figures(outcome: Outcome) -> dict[str, float]:
    found = {"seconds": outcome.seconds}
    for metric in outcome.report.get("metrics", ()):
        unit = "" if metric["unit"] in {"", metric["name"]} else f", {metric['unit']}"
        found[f"{metric['name']}{unit}"] = metric["total"]
    times = [named_times(output) for output in outcome.stdout.values()]
    for name in times[0]:
        if all(name in one for one in times):
            found.setdefault(name, statistics.mean(one[name] for one in times))
    courses: Mapping[Any, Any] = outcome.report.get("usage", {})
    resident = [max(course["resident_mb"], default=0.0) for course in courses.values()]
    if any(resident):
        found["most resident, MB"] = sum(resident)
    return found


def as_text(comparison: Mapping[str, Any]) -> str:
    """The table for a person."""
    codes = [", ".join(map(str, dict.fromkeys(side))) for side in comparison["exit_codes"]]
    lines = [("", *SIDES, "codeless / plain"), ("exit code", *codes, "")]
    for row in comparison["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        if row["range"]:
            ratio += f" ({row['range'][0]:.2f}–{row['range'][1]:.2f})"
        lines.append((row["name"], f"{row['plain']:.4g}", f"{row['codeless']:.4g}", ratio))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = ""
    for name, *cells in lines:
        text += name.ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        text = text.rstrip() + "\n"
    stdout = comparison["stdout"]
    text += f"stdout: {stdout['words']}\n"
    if stdout["noise_lines"]:
        text += f"{stdout['noise_lines']} lines differ between the plain runs themselves and were not compared\n"
    return text + "".join(f"  {line}\n" for line in stdout["diff"])


def _show_failure(side: str, outcomes: Sequence[Outcome], say: Callable[[str], None]) -> None:
    for outcome in outcomes:
        if outcome.code:
            say(f"{side}: exit code {outcome.code}; the end of what it said:")
            for line in outcome.last_words:
                say(f"  {line}")
            return
