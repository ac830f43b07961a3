# SPDX-License-Identifier: Apache-2.0
"""One run of the script for real: ipexrun in a process of its own, its report read back, every failure a reason.

What a run printed stays in its folder: `output.txt`, `errors.txt`, `report.json`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from slipstream.launcher.observe.metrics import IS, NUMBER, TIME_UNIT
from slipstream.launcher.spawn import TIMED_OUT
from slipstream.launcher.tune.marker import MARKER, MarkerError, marked_figures
from slipstream.launcher.tune.trial import DONE, FAILED, FIRST_TIMES, LIMIT, Figure, Outcome, Trial

# `-c` puts the current folder first on the path: a json.py of the user's there is not for the launcher.
LAUNCH = (
    "import sys; sys.path[:] = [entry for entry in sys.path if entry]; "
    "from slipstream.launcher.cli import ipexrun; sys.exit(ipexrun(sys.argv[1:]))"
)
PERCENTILE = rf"(?i:(?P<name>\bp\d\d+))(?:[ _-]latency)?{IS}{NUMBER}\s*{TIME_UNIT}?"
"""`p99: 12.3 ms`, beside the figures that the launcher looks for anyway."""

GRACE = 2.0
PATIENCE = 15.0
"""Seconds after the limit and the grace period in which the launcher itself must have ended."""

LOOK_EVERY = 0.1
LAST_LINES = 200
PR_SET_PDEATHSIG = 1
LAUNCHERS_OWN = ("ipexrun: ", "slipstream: ")
AN_ERROR = re.compile(r"(\[\d+\] )?[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b")
"""How the last line of a traceback begins, perhaps behind the instance's number."""


class LaunchedRunner:
    """Runs trials one after the other. ``tick`` is called while one runs, for a live display."""

    def __init__(self, fixed: Sequence[str], program: Sequence[str], folder: str, *, tick: Callable[[], None]) -> None:
        self._fixed = list(fixed)
        self._program = list(program)
        self._folder = folder
        self._tick = tick
        self._start = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def run(self, trial: Trial) -> Outcome:
        place = self._new_folder()
        report = os.path.join(place, "report.json")
        words = [*self._fixed, *trial.configuration.words(), "--metric", PERCENTILE, "--report", report, "--live", "off"]
        words += ["--timeout", f"{trial.limit:.3f}", "--grace", str(GRACE), "--", *self._program]
        begin = time.monotonic()
        try:
            code = self._wait(self._launch(words, place), trial.limit + GRACE + PATIENCE)
        except OSError as error:
            return Outcome(FAILED, 0.0, reason=f"it could not be started: {error.strerror or error}")
        seconds = time.monotonic() - begin
        if code is None:
            return Outcome(FAILED, seconds, reason=f"it could not be stopped after {trial.limit:g} s and was killed")
        return read_outcome(place, code, seconds, trial)

    def _launch(self, words: Sequence[str], place: str) -> subprocess.Popen[bytes]:
        prctl = ctypes.CDLL(None).prctl

        def before_exec() -> None:
            # A killed search takes its run along: the launcher then stops the instances.
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

        with open(os.path.join(place, "output.txt"), "wb") as output, open(os.path.join(place, "errors.txt"), "wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-c", LAUNCH, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the search, which then ends its run in good order
                preexec_fn=before_exec,  # noqa: PLW1509 - this process has one thread
            )

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> int | None:
        """Its exit code; None where it had to be killed."""
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                try:
                    return process.wait(LOOK_EVERY)
                except subprocess.TimeoutExpired:
                    self._tick()
        except BaseException:
            process.terminate()
            _end(process)
            raise
        _end(process, at_once=True)
        return None

    def _new_folder(self) -> str:
        os.makedirs(self._folder, exist_ok=True)
        number = 1 + max((int(name) for name in os.listdir(self._folder) if name.isdigit()), default=0)
        place = os.path.join(self._folder, f"{number:04d}")
        os.mkdir(place)
        return place


def read_outcome(place: str, code: int, seconds: float, trial: Trial) -> Outcome:
    """What the files of a run say."""
    report = _report(place)
    instances = len(report["plan"]["instances"]) if report else trial.configuration.instances
    resident = max((max(course["resident_mb"], default=0.0) for course in report.get("usage", {}).values()), default=0.0)
    stopped = code == TIMED_OUT and seconds >= trial.limit
    if code and not stopped:
        return Outcome(FAILED, seconds, instances, reason=_why(place, code), resident_mb=resident)
    if not report:
        return Outcome(FAILED, seconds, instances, reason="the launcher wrote no report")
    try:
        figures = (*map(_figure, report["metrics"]), *marked_figures(_marked_lines(place, several=instances > 1)))
    except MarkerError as error:
        return Outcome(FAILED, seconds, instances, reason=str(error), resident_mb=resident)
    return Outcome(LIMIT if stopped else DONE, seconds, instances, figures, resident_mb=resident)


def _end(process: subprocess.Popen[bytes], *, at_once: bool = False) -> None:
    """By the time that the launcher takes for its instances, or at once: its guard then ends them."""
    try:
        if at_once:
            process.kill()
        process.wait(GRACE + PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _report(place: str) -> dict[str, Any]:
    try:
        with open(os.path.join(place, "report.json"), encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _figure(found: Mapping[str, Any]) -> Figure:
    values = {int(index): float(value) for index, value in found["instances"].items()}
    times = {int(index): tuple(point[0] for point in course[:FIRST_TIMES]) for index, course in found["series"].items()}
    return Figure(found["name"], found["how"], values, times, found["unit"], higher=found["how"] == "sum")


def _marked_lines(place: str, *, several: bool) -> Iterator[tuple[int, str]]:
    """(instance, line) of standard output, where there is a marker at all: the launcher prefixes lines of several."""
    path = os.path.join(place, "output.txt")
    with open(path, "rb") as file:
        if not any(MARKER.encode() in line for line in file):
            return
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            match = re.match(r"\[(\d+)\] (.*)", line) if several else None
            yield (int(match[1]), match[2]) if match else (0, line)


def _why(place: str, code: int) -> str:
    """The exit code, and the last error, or anything, that was said on standard error by the script rather than the launcher.

    The last line may be of another instance, which was stopped amid a traceback of its own.
    """
    with open(os.path.join(place, "errors.txt"), encoding="utf-8", errors="replace") as file:
        lines = list(deque((line.strip() for line in file if line.strip()), maxlen=LAST_LINES))
    theirs = [line for line in lines if not line.startswith(LAUNCHERS_OWN)]
    errors = [line for line in theirs if AN_ERROR.match(line)]
    last = (errors or theirs or lines or [""])[-1]
    signal_name = _signal_name(code)
    return f"exit code {code}{signal_name}" + (f": {last[:200]}" if last else "")


def _signal_name(code: int) -> str:
    try:
        return f" ({signal.Signals(code - 128).name})" if code > 128 else ""
    except ValueError:
        return ""
