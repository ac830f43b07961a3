# SPDX-License-Identifier: Apache-2.0
"""What tests of real launcher processes share: its command, a clean environment, waiting, looking whether one lives."""

import os
import pathlib
import sys
import time

import pytest

PACKAGE_PARENT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "slipstream.launcher.cli"]
ALLOWED = sorted(os.sched_getaffinity(0))

two_cpus = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two CPUs")


def environment(**changes):
    """This process's, without what would speak into the plan; None takes a variable away."""
    merged = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    merged["PYTHONPATH"] = str(PACKAGE_PARENT)
    merged.update({name: value for name, value in changes.items() if value is not None})
    return {name: value for name, value in merged.items() if changes.get(name, "") is not None}


def until(condition, seconds=20):
    """Wait until something holds; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)
    return value


def is_running(pid):
    """Neither gone nor a zombie."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
