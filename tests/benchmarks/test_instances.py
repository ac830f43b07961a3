# SPDX-License-Identifier: Apache-2.0
"""Layouts divide the cores evenly; each instance's last figure counts once; a silent instance is an error."""

import subprocess
import types

import pytest

from benchmarks import instances, picture
from benchmarks.options import InstancesOptions

SAID = "[0] throughput: 3.00 sequences/s\n[1] throughput: 4.00 sequences/s\n[0] throughput: 3.50 sequences/s\n"


def test_layouts():
    assert instances.layouts(1) == [(1, 1)]
    assert instances.layouts(6) == [(1, 6), (2, 3), (3, 2), (6, 1)]


def test_the_last_figure_of_each_instance():
    assert instances.last_figures(SAID) == {"0": 3.5, "1": 4.0}
    assert instances.last_figures("loading\nthroughput: 7.25 sequences/s\n") == {"0": 7.25}


def finish_with(monkeypatch, code, output):
    done = types.SimpleNamespace(returncode=code, stdout=output, stderr="what went wrong\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)


def test_sum(monkeypatch):
    finish_with(monkeypatch, 0, SAID)
    assert instances.throughput("float32", 2, 1, InstancesOptions()) == 7.5


@pytest.mark.parametrize(("code", "output"), [(3, SAID), (0, SAID.replace("[1]", "[0]"))])
def test_a_failed_or_silent_instance_is_an_error(monkeypatch, code, output):
    finish_with(monkeypatch, code, output)
    with pytest.raises(RuntimeError, match="what went wrong"):
        instances.throughput("float32", 2, 1, InstancesOptions())


def test_rows_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    ways = [("float32", 1, 2), ("float32", 2, 1), ("bfloat16", 1, 2), ("bfloat16", 2, 1)]
    rows = [instances.row(way, [4.0 * way[1], 5.0 * way[1]], [4.0, 5.0]) for way in ways]
    assert [row["speedup"] for row in rows] == [1, 2, 1, 2]
    picture.draw_instances(rows, tmp_path / "instances.svg")
    assert (tmp_path / "instances.svg").read_text().count("<path") > 4
