# SPDX-License-Identifier: Apache-2.0
"""A launcher to run in a process of its own, and scripts for it."""

import os
import pathlib
import subprocess
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


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """What is measured once a machine is measured once for the tests, and the user's cache is left alone."""
    before = os.environ.get("SLIPSTREAM_CACHE")
    os.environ["SLIPSTREAM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("SLIPSTREAM_CACHE")
    if before is not None:
        os.environ["SLIPSTREAM_CACHE"] = before


@pytest.fixture
def script(tmp_path):
    """Write a script; the text may be indented."""

    def write(text, name="script.py"):
        import textwrap

        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def launcher():
    """Run it to its end."""

    def run(*words, prefix=(), env=None, **options):
        return subprocess.run(
            [*prefix, *COMMAND, *map(str, words)],
            capture_output=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env=env or environment(),
            **{"text": True, **options},
        )

    return run


@pytest.fixture
def started():
    """Start it and go on; what is left at the end is killed."""
    processes = []

    def start(*words, **options):
        process = subprocess.Popen(
            [*COMMAND, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            **options,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


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
