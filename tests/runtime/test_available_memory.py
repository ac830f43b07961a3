# SPDX-License-Identifier: Apache-2.0
"""How much memory may still be taken, from recorded files of both versions of control groups."""

import pytest

from slipstream.runtime.available_memory import available_bytes

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"
MACHINE = 20_000_000 * 1024


@pytest.fixture
def machine(tmp_path):
    """Writes files below a /proc and a /sys/fs/cgroup, and asks."""

    def ask(group="0::/\n", **files):
        for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": group, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return available_bytes(proc=tmp_path / "proc", mounts=tmp_path / "cgroup")

    return ask


def test_of_the_machine(machine):
    assert machine() == MACHINE


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable: many kB\n"])
def test_unknown_where_it_is_not_said(machine, text):
    assert machine(**{"proc/meminfo": text}) is None


def test_the_tightest_group_of_version_2(machine):
    files = {"cgroup/a/b/memory.max": "max\n", "cgroup/a/b/memory.current": "77\n"}
    assert machine("0::/a/b\n", **files) == MACHINE
    files |= {"cgroup/a/memory.max": "5000\n", "cgroup/a/memory.current": "1200\n"}
    assert machine("0::/a/b\n", **files) == 3800
    files |= {"cgroup/a/b/memory.max": "100\n", "cgroup/a/b/memory.current": "177\n"}
    assert machine("0::/a/b\n", **files) == 0


def test_version_1(machine):
    files = {"cgroup/memory/a/memory.limit_in_bytes": "9000\n", "cgroup/memory/a/memory.usage_in_bytes": "1000\n"}
    assert machine("4:memory:/a\n2:cpu,cpuacct:/\n", **files) == 8000


def test_this_machine_says_something():
    size = available_bytes()
    assert size is None or size > 0
