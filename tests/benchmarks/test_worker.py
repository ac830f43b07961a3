# SPDX-License-Identifier: Apache-2.0
"""A worker answers each request with one line, survives what it cannot do, and its death has words."""

import os
import sys

import numpy as np
import pytest

from benchmarks.contest.worker_process import WorkerFailed, WorkerProcess


@pytest.fixture
def worker():
    process = WorkerProcess([sys.executable], os.environ)
    yield process
    process.stop()


def test_a_request_that_fails_leaves_the_worker_alive(worker):
    for _ in range(2):
        with pytest.raises(WorkerFailed, match="nothing is loaded"):
            worker.ask({"do": "time", "seconds": 1, "at_least": 1}, timeout_s=120)
    with pytest.raises(WorkerFailed, match="KeyError"):
        worker.ask({"do": "dance"}, timeout_s=120)
    assert worker.ask({"do": "unload"}, timeout_s=120)["holds_mb"] > 5


def test_a_model_is_loaded_timed_and_equal_to_its_reference(worker, tmp_path):
    output, reference = tmp_path / "output.npy", tmp_path / "reference.npy"
    load = {"do": "load", "model": "lstm", "prepare": "eager", "dtype": "float32", "threads": 1}
    assert worker.ask({**load, "save": str(output)}, timeout_s=300)["setup_s"] > 0
    samples = worker.ask({"do": "time", "seconds": 0.01, "at_least": 3}, timeout_s=300)["ms"]
    assert len(samples) >= 3 and min(samples) > 0
    assert worker.ask({"do": "reference", "model": "lstm", "save": str(reference)}, timeout_s=300) == {}
    weights = 2 * 4 * 512 * (512 + 512 + 1024 + 512) + 1024 * 1000  # two directions, two layers; the scores
    assert worker.ask({"do": "count", "model": "lstm"}, timeout_s=300)["flop"] == 2 * 8 * 64 * weights
    assert np.load(output).shape == (8, 64, 1000)
    np.testing.assert_allclose(np.load(output), np.load(reference), rtol=1e-4, atol=1e-5)


def test_a_worker_that_dies_tells_its_last_words():
    process = WorkerProcess([sys.executable], os.environ, module="no_such_module_anywhere")
    with pytest.raises(WorkerFailed, match=r"ended with 1: .*no_such_module_anywhere"):
        process.ask({"do": "unload"}, timeout_s=120)
    process.stop()


def test_an_interpreter_that_is_not_there():
    with pytest.raises(WorkerFailed, match="does not start"):
        WorkerProcess(["/nowhere/python"], os.environ)
