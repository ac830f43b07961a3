# SPDX-License-Identifier: Apache-2.0
"""The main job: unmodified example scripts, plain and under ipexrun, in turn; what they say must agree."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import machine, progress, spread, tables
from benchmarks.contest import contestants
from benchmarks.options import DemoOptions

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
QUICK = {
    "semantic_search": ["--limit", "48", "--batch", "24", "--passes", "2"],
    "classify_text": ["--batch", "4", "--batches", "2", "--passes", "2", "--layers", "2"],
    "classify_images": ["--batch", "4", "--batches", "2", "--passes", "2", "--depth", "14", "--size", "64"],
}
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.99}
LEAST_EQUAL = {"float32": 1.0, "bfloat16": 0.9}  # of first answers: bfloat16 may turn a near tie
"""Below this the outputs of a run do not agree with those of the plain run."""


@dataclass(frozen=True)
class Way:
    """A way of starting a script; ``dtype`` is what it may compute in."""

    name: str
    prefix: tuple[str, ...]
    dtype: str


@dataclass(frozen=True)
class Outcome:
    """What one run of a script said and saved."""

    answers: list[dict[str, Any]]
    times: dict[str, float]
    vectors: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """An optimized run beside a plain one: the share of equal first answers, and the worst cosine of what was saved."""

    first_equal: float
    cosine: float
    holds: bool


class ScriptFailed(Exception):
    """A script ended with an error; the message is its last words."""


def ways() -> list[Way]:
    """Plain first: it is the base."""
    ipexrun = contestants.ipexrun()
    optimized = [Way(f"--dtype {dtype}", (*ipexrun, "--auto_ipex", "--dtype", dtype), dtype) for dtype in LEAST_COSINE]
    return [Way("plain", (sys.executable,), "float32"), *optimized]


def run(options: DemoOptions) -> int:
    """Measure, print, and return 1 where results disagree or a script fails."""
    facts = machine.describe()
    tables.console().print(machine.in_words(facts))
    all_ways = ways()
    rows: list[dict[str, Any]] = []
    try:
        with progress.bar("demo", len(options.examples) * len(all_ways) * options.rounds) as advance:
            for example in options.examples:
                rows += measure(example, all_ways, options, advance)
    except ScriptFailed as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    tables.show_demo(rows)
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    wrong = [f"{row['example']} {row['way']}" for row in rows if not row["agreement"]["holds"]]
    if wrong:
        print(f"benchmarks: results disagree with the plain run: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def measure(example: str, all_ways: Sequence[Way], options: DemoOptions, advance: progress.Advance) -> list[dict[str, Any]]:
    """One script in every way, A B C A B C; a row a way."""
    outcomes: dict[str, list[Outcome]] = {way.name: [] for way in all_ways}
    for number in range(options.rounds):
        for way in all_ways:
            advance(f"{example}, {way.name}, round {number + 1} of {options.rounds}")
            outcomes[way.name].append(start(example, way, quick=options.quick))
    plain = outcomes[all_ways[0].name]
    return [row(example, way, outcomes[way.name], plain) for way in all_ways]


def start(example: str, way: Way, *, quick: bool) -> Outcome:
    """Run the script to its end in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        saved = pathlib.Path(folder) / "saved.npy"
        command = [*way.prefix, str(EXAMPLES / f"{example}.py"), "--save", str(saved)]
        done = subprocess.run([*command, *(QUICK[example] if quick else [])], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise ScriptFailed(f"{example}.py, {way.name}, ended with {done.returncode}: {words[0]}")
        *answers, times = [json.loads(line) for line in done.stdout.splitlines()]
        return Outcome(answers, times, np.load(saved))


def first_answers(outcome: Outcome) -> list[Any]:
    """The best hit of each query, or the class of each item."""
    return [each["hits"][0]["text"] if "hits" in each else each["label"] for each in outcome.answers]


def compare(outcome: Outcome, plain: Outcome, *, dtype: str) -> Agreement:
    pairs = list(zip(first_answers(outcome), first_answers(plain), strict=True))
    equal = sum(mine == theirs for mine, theirs in pairs) / len(pairs)
    a, b = outcome.vectors.astype(np.float64), plain.vectors.astype(np.float64)
    cosine = float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())
    holds = equal >= LEAST_EQUAL[dtype] and cosine >= LEAST_COSINE[dtype]  # a NaN compares as less: it does not hold
    return Agreement(equal, cosine, holds)


def row(example: str, way: Way, outcomes: Sequence[Outcome], plain: Sequence[Outcome]) -> dict[str, Any]:
    """What the table and the JSON show of one way."""
    medians = [outcome.times["median_s"] for outcome in outcomes]
    quartiles = spread.quartiles([value * 1e3 for value in medians])
    ratio = spread.ratio_by_round([[each.times["median_s"]] for each in plain], [[value] for value in medians])
    compared = [compare(mine, base, dtype=way.dtype) for mine, base in zip(outcomes, plain, strict=True)]
    worst = min(compared, key=lambda each: (each.holds, each.first_equal, each.cosine))
    return {
        "example": example,
        "way": way.name,
        "ms": quartiles.median,
        "ms_low": quartiles.low,
        "ms_high": quartiles.high,
        "speedup": ratio.value,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "total_s": spread.quartiles([outcome.times["total_s"] for outcome in outcomes]).median,
        "setup_s": spread.quartiles([each.times["first_s"] - each.times["median_s"] for each in outcomes]).median,
        "agreement": asdict(worst),
        "rounds": [outcome.times for outcome in outcomes],
    }
