# SPDX-License-Identifier: Apache-2.0
"""The zoo: every contestant on every model, in turn and in one sitting. Plan, run, report."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks import ceilings, machine, progress, spread, tables
from benchmarks.contest.contestants import ALL, BASE, Contestant, command, environment
from benchmarks.contest.worker_process import WorkerFailed, WorkerProcess
from benchmarks.options import ZooOptions

REST_S = 0.3  # another runtime's threads may go on spinning for 200 ms after its turn
MOST_HELD_MB = 1000.0  # torch.compile keeps weights that it froze, model after model, until ten processes fill the machine
LOAD_TIMEOUT_S = 600.0  # torch.compile takes tens of seconds, minutes on a busy machine
Row = dict[str, Any]


def run(options: ZooOptions) -> int:
    """Measure, then print and write; 1 where something of ours failed or is wrong."""
    report: dict[str, Any] = {
        "machine": machine.describe(options.isa),
        "ceilings": ceilings.measure(options.threads, level=options.isa),
        "settings": {"threads": options.threads, "rounds": options.rounds, "seconds": options.seconds},
        "rows": [],
    }
    tables.show_machine(report["machine"], report["ceilings"])
    steps = len(options.models) * len(options.modes) * (1 + options.rounds)
    with started_workers(options) as workers, progress.bar("zoo", steps) as advance:
        for model in options.models:
            report["rows"] += measure_model(model, workers, options, advance)
            if options.json:  # after each model, so that an interrupted sitting is not lost
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    tables.show_zoo(report["rows"])
    if options.picture:
        from benchmarks import picture

        picture.draw(report["rows"], options.picture)
    return int(any(row["contestant"].startswith("ours") and "failure" in row for row in report["rows"]))


def started_worker(mode: str, options: ZooOptions) -> WorkerProcess:
    who = ALL[mode]
    start = command(who, options.interpreters, options.threads)
    return WorkerProcess(start, environment(who, os.environ, options.threads))


@contextmanager
def started_workers(options: ZooOptions) -> Iterator[dict[str, WorkerProcess]]:
    """One process a contestant, alive until the sitting's end, or until it holds too much of what it has unloaded."""
    workers: dict[str, WorkerProcess] = {}
    try:
        for mode in options.modes:
            workers[mode] = started_worker(mode, options)
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


def measure_model(model: str, workers: dict[str, WorkerProcess], options: ZooOptions, advance: progress.Advance) -> list[Row]:
    """Load the model everywhere, time all in turn for some rounds, unload; a row for each contestant."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        references: dict[str, pathlib.Path] = {}
        for mode, worker in workers.items():
            advance(f"{model}: {mode} gets ready")
            rows[mode] = load(model, ALL[mode], worker, pathlib.Path(folder), references, options.threads)
    for _ in range(options.rounds):
        for mode, worker in workers.items():
            advance(f"{model}: {mode}")
            row = rows[mode]
            if "failure" in row:
                continue
            time.sleep(REST_S)
            try:
                row["rounds_ms"].append(timed(worker, options))
            except WorkerFailed as error:
                row["failure"] = str(error)
    flop = counted(model, workers[BASE]) if BASE in workers else None
    for mode, worker in workers.items():
        try:
            holds_mb = worker.ask({"do": "unload"}, timeout_s=60)["holds_mb"]
        except WorkerFailed:
            continue  # it is dead, and its row says why
        if holds_mb > MOST_HELD_MB:
            worker.stop()
            workers[mode] = started_worker(mode, options)
    for row in rows.values():
        summarize(row, rows[BASE])
    for row in rows.values():
        row["flop"] = flop
        row.pop("calls_s", None)  # thousands, of a small model
    return list(rows.values())


def counted(model: str, worker: WorkerProcess) -> float | None:
    """The floating point operations of its products, as torch counts them; None where it cannot."""
    try:
        flop: float = worker.ask({"do": "count", "model": model}, timeout_s=LOAD_TIMEOUT_S)["flop"]
    except WorkerFailed:
        return None
    return flop


def timed(worker: WorkerProcess, options: ZooOptions) -> list[float]:
    request = {"do": "time", "seconds": options.seconds, "at_least": 3}
    samples: list[float] = worker.ask(request, timeout_s=LOAD_TIMEOUT_S)["ms"]
    return samples


def load(
    model: str,
    who: Contestant,
    worker: WorkerProcess,
    folder: pathlib.Path,
    references: dict[str, pathlib.Path],
    threads: int,
) -> Row:
    """Make one contestant ready, and compare its output after warming up with eager float32 of its own interpreter.

    Of its own: another version of transformers draws other weights from the same seed. The first contestant of an
    interpreter makes the reference for those that follow (ours are never first).
    """
    row: Row = {"model": model, "contestant": who.name, "rounds_ms": []}
    saved = folder / f"{who.name}.npy"
    try:
        request = {
            "do": "load",
            "model": model,
            "prepare": who.prepare,
            "dtype": who.dtype,
            "threads": threads,
            "warm_up_s": who.warm_up_s,
            "warm_up_calls": who.warm_up_calls,
        }
        ready = worker.ask({**request, "save": str(saved)}, timeout_s=LOAD_TIMEOUT_S)
        row["ready_s"], row["calls_s"] = ready["setup_s"], ready["calls_s"]
        if who.engine not in references:
            reference = folder / f"reference-{who.engine}.npy"
            worker.ask({"do": "reference", "model": model, "save": str(reference)}, timeout_s=LOAD_TIMEOUT_S)
            references[who.engine] = reference
        row["error"] = relative_error(np.load(saved), np.load(references[who.engine]))
    except WorkerFailed as error:
        row["failure"] = str(error)
    return row


def relative_error(output: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference over the largest value; infinite for another shape, NaN or infinity."""
    if output.shape != reference.shape or not np.isfinite(output).all():
        return float("inf")
    return float(np.abs(output - reference).max() / np.abs(reference).max())


def summarize(row: Row, base: Row) -> None:
    """Add what the samples say: quartiles, set-up beyond one steady call, speed-up over the base with its spread."""
    samples = [sample for samples in row["rounds_ms"] for sample in samples]
    if "failure" in row or not samples:
        row.setdefault("failure", "was not timed")
        return
    quartiles = spread.quartiles(samples)
    row |= {"ms": quartiles.median, "ms_low": quartiles.low, "ms_high": quartiles.high}
    row["setup_s"] = max(0.0, row["ready_s"] - statistics.median(samples) / 1e3)
    if "failure" not in base and base["rounds_ms"]:
        ratio = spread.ratio_by_round(base["rounds_ms"], row["rounds_ms"])
        row |= {"speedup": ratio.value, "speedup_low": ratio.low, "speedup_high": ratio.high}
        calls = [row["ready_s"], *row["calls_s"]]
        row["behind_s"] = most_behind(calls, base["ready_s"], base["ms"] / 1e3)


def most_behind(calls_s: list[float], first_s: float, steady_s: float) -> float:
    """The most seconds that these calls, from the first on, are behind as many of the plain script's, at any of them."""
    behind = list(itertools.accumulate(call - (steady_s if number else first_s) for number, call in enumerate(calls_s)))
    return max(0.0, *behind)
