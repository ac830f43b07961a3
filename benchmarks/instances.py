# SPDX-License-Identifier: Apache-2.0
"""Many small instances or one large one: the same script's throughput, summed over the instances of each layout, in turn."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import machine, picture, progress, spread, tables
from benchmarks.contest import contestants
from benchmarks.options import InstancesOptions

SCRIPT = pathlib.Path(__file__).parent / "scripts" / "throughput_text.py"
LINE = re.compile(r"^(?:\[(\d+)\] )?throughput: ([\d.]+) sequences/s$", re.MULTILINE)
DTYPES = {"float32": (), "bfloat16": ("--auto_ipex", "--dtype", "bfloat16")}
"""What runs: the plain script in float32, and the codeless engine in bfloat16."""


def layouts(cores: int) -> list[tuple[int, int]]:
    """(instances, cores of each), from one large instance to one a core; only even divisions."""
    return [(count, cores // count) for count in range(1, cores + 1) if cores % count == 0]


def run(options: InstancesOptions) -> int:
    facts = machine.describe()
    tables.console().print(machine.in_words(facts))
    ways = [(dtype, *layout) for dtype in DTYPES for layout in layouts(options.cores)]
    sums: dict[tuple[str, int, int], list[float]] = {way: [] for way in ways}
    with progress.bar("instances", len(ways) * options.rounds) as advance:
        for number in range(options.rounds):
            for dtype, count, cores in ways:
                advance(f"{dtype}, {count} x {cores} cores, round {number + 1} of {options.rounds}")
                try:
                    sums[dtype, count, cores].append(throughput(dtype, count, cores, options))
                except RuntimeError as error:
                    print(f"benchmarks: {error}", file=sys.stderr)
                    return 1
    rows = [row(way, values, sums[way[0], 1, options.cores]) for way, values in sums.items()]
    tables.show_instances(rows)
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    if options.picture:
        picture.draw_instances(rows, options.picture)
    return 0


def throughput(dtype: str, count: int, cores: int, options: InstancesOptions) -> float:
    """The last line of each instance, summed. Raises RuntimeError where one is missing."""
    script = [str(SCRIPT), "--seconds", str(options.seconds)]
    layout = ["--ninstances", str(count), "--ncores-per-instance", str(cores)]
    done = subprocess.run(
        [*contestants.ipexrun(), *layout, *DTYPES[dtype], *script], capture_output=True, text=True, check=False
    )
    last = last_figures(done.stdout)
    if done.returncode != 0 or len(last) != count:
        words = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise RuntimeError(f"{count} instances of throughput_text.py ended with {done.returncode}: {words[0]}")
    return sum(last.values())


def last_figures(output: str) -> dict[str, float]:
    """By instance, the last throughput that it printed."""
    return {match[1] or "0": float(match[2]) for match in LINE.finditer(output)}


def row(way: tuple[str, int, int], sums: Sequence[float], one_large: Sequence[float]) -> dict[str, Any]:
    dtype, count, cores = way
    quartiles = spread.quartiles(sums)
    # spread.ratio_by_round compares times, so throughputs go in as their reciprocals
    ratio = spread.ratio_by_round([[1 / value] for value in one_large], [[1 / value] for value in sums])
    return {
        "dtype": dtype,
        "instances": count,
        "cores": cores,
        "throughput": quartiles.median,
        "throughput_low": quartiles.low,
        "throughput_high": quartiles.high,
        "speedup": ratio.value,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "rounds": list(sums),
    }
