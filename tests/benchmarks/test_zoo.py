# SPDX-License-Identifier: Apache-2.0
"""A whole sitting without a machine: workers that answer from a script stand in for processes."""

import numpy as np
import pytest

from benchmarks import zoo
from benchmarks.contest.worker_process import WorkerFailed
from benchmarks.options import ZooOptions

MODES = ("eager-float32", "ipex-bfloat16", "ours-bfloat16")


class ScriptedWorker:
    """Answers with given times and a given output; writes down that it was asked."""

    def __init__(self, name, asked, *, ms, output, fails_at=None):
        self.name, self.asked, self.ms, self.output, self.fails_at = name, asked, ms, output, fails_at
        self.holds_mb = 400.0

    def stop(self):
        self.asked.append(("stop", self.name))

    def ask(self, request, *, timeout_s):
        self.asked.append((request["do"], self.name))
        if request["do"] == self.fails_at:
            raise WorkerFailed("out of patience")
        if request["do"] == "load":
            np.save(request["save"], self.output)
            return {"setup_s": 2.0, "calls_s": [self.ms / 1e3] * 2 if self.name == "eager-float32" else [0.3, 0.05, 0.025]}
        if request["do"] == "count":
            return {"flop": 1e9}
        if request["do"] == "unload":
            return {"holds_mb": self.holds_mb}
        if request["do"] == "reference":
            np.save(request["save"], np.array([1.0, -4.0]))
        return {"ms": [self.ms] * 3} if request["do"] == "time" else {}


@pytest.fixture
def sitting(monkeypatch):
    monkeypatch.setattr(zoo, "REST_S", 0)
    options = ZooOptions(models=("bert",), modes=MODES, rounds=2, seconds=0.1, threads=1)

    def run(hold_mb=(), **fails_at):
        asked = []
        made = {
            "eager-float32": (100.0, [1.0, -4.0]),
            "ipex-bfloat16": (50.0, [1.0, -4.0]),
            "ours-bfloat16": (25.0, [1.5, -4.0]),
        }
        workers = {
            name: ScriptedWorker(name, asked, ms=ms, output=np.array(output), fails_at=fails_at.get(name.split("-")[0]))
            for name, (ms, output) in made.items()
        }
        for name, holds_mb in hold_mb:
            workers[name].holds_mb = holds_mb
        monkeypatch.setattr(zoo, "started_worker", lambda mode, given: asked.append(("start", mode)))
        rows = zoo.measure_model("bert", workers, options, lambda what: None)
        return {row["contestant"]: row for row in rows}, asked

    return run


def test_contestants_are_timed_in_turn(sitting):
    _, asked = sitting()
    assert [name for act, name in asked if act == "time"] == [*MODES, *MODES]


def test_who_holds_much_of_what_it_unloaded_is_started_anew(sitting):
    _, asked = sitting(hold_mb=[("ipex-bfloat16", 1400.0)])
    assert [each for each in asked if each[0] in ("stop", "start")] == [("stop", "ipex-bfloat16"), ("start", "ipex-bfloat16")]


def test_each_interpreter_makes_its_own_reference_and_ours_never_does(sitting):
    _, asked = sitting()
    assert [name for act, name in asked if act == "reference"] == ["eager-float32", "ipex-bfloat16"]


def test_rows_hold_speed_set_up_and_error(sitting):
    rows, _ = sitting()
    ours = rows["ours-bfloat16"]
    assert (ours["ms"], ours["speedup"], ours["speedup_low"], ours["speedup_high"]) == (25, 4, 4, 4)
    assert ours["setup_s"] == pytest.approx(2 - 0.025)
    assert ours["behind_s"] == pytest.approx(0.2), "the second call was 0.2 s later than two of eager"
    assert rows["eager-float32"]["behind_s"] == pytest.approx(0)
    assert not any("calls_s" in row for row in rows.values())
    assert ours["flop"] == 1e9
    assert ours["error"] == pytest.approx(0.5 / 4)
    assert rows["eager-float32"]["speedup"] == 1 and rows["eager-float32"]["error"] == 0


@pytest.mark.parametrize("act", ["load", "time"])
def test_one_failure_is_a_row_and_the_others_go_on(sitting, act):
    rows, _ = sitting(ipex=act)
    assert rows["ipex-bfloat16"]["failure"] == "out of patience" and "speedup" not in rows["ipex-bfloat16"]
    assert rows["ours-bfloat16"]["speedup"] == 4


def test_without_a_base_there_are_times_but_no_speedups(sitting):
    rows, _ = sitting(eager="time")
    assert rows["ours-bfloat16"]["ms"] == 25 and "speedup" not in rows["ours-bfloat16"]


def test_an_output_that_is_not_finite_or_of_another_shape_is_infinitely_wrong():
    right = np.array([1.0, 2.0])
    assert zoo.relative_error(np.array([1.0, np.nan]), right) == float("inf")
    assert zoo.relative_error(np.array([1.0]), right) == float("inf")
