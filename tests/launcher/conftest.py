# SPDX-License-Identifier: Apache-2.0
"""A launcher to run in a process of its own, and scripts for it."""

import signal
import subprocess

import pytest
from launched import COMMAND, environment


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
            timeout=60,
            stdin=subprocess.DEVNULL,
            env=env or environment(),
            **{"capture_output": True, "text": True, **options},
        )

    return run


def hear_hang_ups():
    """Under nohup, tests would start processes that ignore this signal."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
            **{"preexec_fn": hear_hang_ups, **options},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
