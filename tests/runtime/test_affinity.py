# SPDX-License-Identifier: Apache-2.0
"""The kernel's own masks: set, restored on every way out, and read back truthfully."""

import os
import subprocess
import sys
import threading

import pytest

from slipstream.errors import PlanError, UsageError
from slipstream.runtime import affinity

CPUS = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="this process may use one CPU only")
ABSENT = 10_000  # no machine has it


@pytest.fixture(autouse=True)
def unchanged():
    before = os.sched_getaffinity(0)
    yield
    after = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)
    assert after == before, "a test left the main thread pinned"


def test_on_cpus_confines_and_restores():
    with affinity.on_cpus([CPUS[-1]]):
        assert os.sched_getaffinity(0) == {CPUS[-1]}
    assert os.sched_getaffinity(0) == set(CPUS)


@two_cpus
def test_on_cpus_nests():
    with affinity.on_cpus(CPUS[:1]):
        with affinity.on_cpus(CPUS[1:2]):
            assert affinity.allowed_cpus() == {CPUS[1]}
        assert affinity.allowed_cpus() == {CPUS[0]}


def test_on_cpus_restores_after_an_exception():
    with pytest.raises(KeyError), affinity.on_cpus([CPUS[-1]]):
        raise KeyError
    assert os.sched_getaffinity(0) == set(CPUS)


@pytest.mark.parametrize("cpus", [[ABSENT], [CPUS[0], ABSENT], [1 << 70]], ids=["none", "some", "too large"])
def test_what_the_kernel_does_not_grant_is_an_error_and_changes_nothing(cpus):
    with pytest.raises(PlanError, match=f"; this thread may use {CPUS[0]}"):
        affinity.set_cpus(cpus)
    assert os.sched_getaffinity(0) == set(CPUS)


@pytest.mark.parametrize("cpus", [[], [-1]])
def test_a_set_that_cannot_be_meant_is_a_usage_error(cpus):
    with pytest.raises(UsageError, match="needs at least one CPU number, and none below 0"):
        affinity.set_cpus(cpus)


@two_cpus
def test_another_thread_alone_is_confined():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        affinity.set_cpus([CPUS[1]], thread.native_id)
        held = affinity.cpus_by_thread()
        assert held[thread.native_id] == {CPUS[1]}
        assert held[threading.get_native_id()] == set(CPUS)
    finally:
        done.set()
        thread.join()


@two_cpus
def test_all_threads_of_a_process_are_confined():
    code = "import threading; threading.Thread(target=input).start(); print('ready', flush=True)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        before = affinity.cpus_by_thread(child.pid)
        with pytest.raises(PlanError):
            affinity.set_process_cpus([ABSENT], child.pid)
        assert affinity.cpus_by_thread(child.pid) == before
        affinity.set_process_cpus([CPUS[1]], child.pid)
        assert affinity.cpus_by_thread(child.pid) == dict.fromkeys(before, frozenset([CPUS[1]]))
        assert len(before) == 2
    finally:
        child.communicate(b"\n")


def test_the_masks_of_a_child_are_read():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        os.sched_setaffinity(child.pid, [CPUS[0]])
        assert affinity.cpus_by_thread(child.pid) == {child.pid: {CPUS[0]}}
        assert affinity.compare([CPUS[0]], child.pid).taken
        escaped = affinity.compare([ABSENT], child.pid)
        assert not escaped.taken
        assert f"thread {child.pid} has {CPUS[0]}: outside the plan" in escaped.reason
        narrowed = affinity.compare([CPUS[0], ABSENT], child.pid)
        assert not narrowed.taken
        assert "less than the plan" in narrowed.reason
    finally:
        child.communicate(b"\n")


def test_a_process_that_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(ProcessLookupError):
        affinity.cpus_by_thread(child.pid)


@pytest.mark.parametrize(
    ("line", "cpus"),
    [("0", {0}), ("0-1", {0, 1}), ("0,32-39,128", {0, *range(32, 40), 128})],
)
def test_lists_of_many_cpus(tmp_path, line, cpus):
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{line}\nMems_allowed_list:\t0\n")
    assert affinity._mask_in_status(str(status)) == cpus
