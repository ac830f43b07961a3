# SPDX-License-Identifier: Apache-2.0
"""Every run is on disk before the next one starts, and a resumed search runs only what is not there."""

import json

import pytest
from simulated import CRASH, HANG, Simulated, search, space

from slipstream.errors import UsageError
from slipstream.launcher.tune.record import FILE, Record, RecordedRunner
from slipstream.launcher.tune.trial import Length, Trial
from slipstream.launcher.tune.verdict import judge

SPACE = space(ninstances=(1, 2, 4, 8), memory_allocator=("default", "tcmalloc"))
ABOUT = {"program": ["x.py"], "fixed": []}
ANSWERS = dict(zip(SPACE, [5, CRASH, HANG, 9, 3, 8, 7, 1], strict=True))


class Killed(BaseException):
    """The end of a process."""


class Mortal(Simulated):
    """Dies in its ``last``-th run."""

    def __init__(self, last=None, answers=ANSWERS):
        super().__init__(lambda trial: answers[trial.configuration])
        self._last = last

    def run(self, trial):
        if self._last is not None and len(self.trials) + 1 >= self._last:
            raise Killed
        return super().run(trial)


def recorded(folder, simulated, *, resume=False, about=ABOUT):
    record = Record(str(folder), about, resume=resume)
    try:
        return search(SPACE, RecordedRunner(simulated, record))
    finally:
        record.close()


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_every_run_is_one_line(tmp_path):
    simulated = Mortal()
    recorded(tmp_path, simulated)
    header, *entries = lines(tmp_path)
    assert header == {"kind": "search", "version": 1, **ABOUT}
    assert len(entries) == len(simulated.trials)
    assert [entry["repeat"] for entry in entries] == [trial.repeat for trial in simulated.trials]
    assert {entry["ended"] for entry in entries} == {"done", "limit", "failed"}


@pytest.mark.parametrize("last", [1, 2, 5, 9, 14])
def test_a_killed_search_goes_on_where_it_was(tmp_path, last):
    whole = Mortal()
    expected = search(SPACE, whole)
    with pytest.raises(Killed):
        recorded(tmp_path, Mortal(last))
    assert len(lines(tmp_path)) == last
    rest = Mortal()
    made = recorded(tmp_path, rest, resume=True)
    assert rest.trials == whole.trials[last - 1 :]
    assert judge(made.course, SPACE[0]) == judge(expected.course, SPACE[0])


def test_a_finished_search_runs_nothing_again(tmp_path):
    recorded(tmp_path, Mortal())
    again = Mortal()
    recorded(tmp_path, again, resume=True)
    assert again.trials == []


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    with pytest.raises(Killed):
        recorded(tmp_path, Mortal(4))
    path = tmp_path / FILE
    path.write_text(path.read_text()[:-20])
    record = Record(str(tmp_path), ABOUT, resume=True)
    record.close()
    assert record.count == 2
    assert "line 4 is not whole" in record.notes[0]
    recorded(tmp_path, Mortal(), resume=True)
    whole = [json.loads(line) for number, line in enumerate(path.read_text().splitlines(), 1) if number != 4]
    assert sum(entry["kind"] == "trial" for entry in whole) == len(search(SPACE, Mortal())._runner.trials)


def test_a_higher_limit_asks_again_for_what_hit_the_lower_one(tmp_path):
    hanging = SPACE[2]
    record = Record(str(tmp_path), ABOUT, resume=False)
    simulated = Mortal()
    runner = RecordedRunner(simulated, record)
    for limit in (5.0, 5.0, 50.0, 20.0):
        runner.run(Trial(hanging, Length("whole", limit), 0, limit))
    record.close()
    assert [trial.limit for trial in simulated.trials] == [5.0, 50.0]


def test_another_search_is_refused(tmp_path):
    recorded(tmp_path, Mortal())
    with pytest.raises(UsageError, match=r"program \[\"x.py\"\], this search has \[\"y.py\"\]"):
        recorded(tmp_path, Mortal(), resume=True, about={**ABOUT, "program": ["y.py"]})
    with pytest.raises(UsageError, match="--resume"):
        recorded(tmp_path, Mortal())


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UsageError, match=r"no trials\.jsonl"):
        recorded(tmp_path, Mortal(), resume=True)
    (tmp_path / FILE).write_text("something else\n")
    with pytest.raises(UsageError, match="not the record of a search"):
        recorded(tmp_path, Mortal(), resume=True)
