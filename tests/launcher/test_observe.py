# SPDX-License-Identifier: Apache-2.0
"""What is said of a running instance: which pages are its own, when a difference is said, and when again."""

import os
from types import SimpleNamespace

import pytest

from slipstream.decision import Decision
from slipstream.launcher.observe import verify
from slipstream.launcher.observe.watch import Watch
from slipstream.launcher.options import Running
from slipstream.launcher.plan import Instance, LaunchPlan
from slipstream.runtime import affinity

HERE = Instance(0, (0,), (1,), 1, "preferred", (1,))
PAGES = "instance 0: memory on node 1 (preferred)"


def numa_map(text):
    return [f"7f0000000000 prefer:1 {line.strip()} kernelpagesize_kB=4\n" for line in text.strip().splitlines()]


def test_pages_of_the_page_cache_are_nobodys():
    mapped = "file=/tmp/weights anon=1 dirty=1 mapped=8192 N0=8191 N1=1"
    assert verify.bytes_by_node(numa_map(mapped)) == {}


def test_written_pages_of_a_library_are_the_processs_own():
    text = "file=/lib/x.so anon=7 dirty=7 N0=3 N1=4\nheap anon=9 dirty=9 active=5 N1=9"
    assert verify.bytes_by_node(numa_map(text)) == {0: 3 * 4096, 1: 13 * 4096}


@pytest.fixture
def pages_are(monkeypatch):
    """Have every process's memory lie so, in megabytes by node."""

    def put(**megabytes):
        sizes = {int(node[1:]): int(size * 1e6) for node, size in megabytes.items()}
        monkeypatch.setattr(verify, "bytes_by_node", lambda lines: sizes)

    return put


def pages_of_this_process():
    return verify.check_pages(HERE, os.getpid())


@pytest.mark.skipif(not os.path.exists("/proc/self/numa_maps"), reason="a kernel without NUMA")
def test_a_small_process_raises_no_alarm(pages_are):
    pages_are(N0=9, N1=3)
    assert pages_of_this_process() is None
    pages_are(N0=0.1, N1=12)
    assert pages_of_this_process().taken
    pages_are(N0=90, N1=30)
    difference = pages_of_this_process()
    assert not difference.taken and difference.figures == {"elsewhere_mb": 90}


@pytest.fixture
def watch():
    """(a watch, what it has said)"""
    said = []
    return Watch(LaunchPlan((HERE,)), Running(), piped=False, say=said.append, command="ipexrun"), said


def elsewhere(megabytes):
    return Decision(PAGES, False, f"{megabytes} MB lie elsewhere", {"elsewhere_mb": megabytes})


def test_a_difference_is_said_again_once_it_is_several_times_as_large(watch):
    looked, said = watch
    for megabytes in (10, 12, 9, 39, 41, 60, 400, 20):
        looked._note(elsewhere(megabytes))
    assert [text.split()[-4] for text in said] == ["10", "41", "400"]
    assert looked.checks[PAGES].figures["elsewhere_mb"] == 400


def test_the_report_keeps_the_largest_difference(watch):
    looked, said = watch
    for megabytes in (10, 30):
        looked._note(elsewhere(megabytes))
    looked._note(Decision(PAGES, True, "all is well again"))
    assert len(said) == 1 and looked.checks[PAGES].figures["elsewhere_mb"] == 30


def test_a_difference_without_an_amount_is_said_once(watch):
    looked, said = watch
    for _ in range(3):
        looked._note(Decision("threads", False, "the main thread was narrowed"))
    assert len(said) == 1


def test_more_threads_outside_are_said_again(watch):
    looked, said = watch
    for count in (1, 3, 4):
        looked._note(Decision("threads", False, f"{count} may leave the plan", {"threads_outside": count}))
    assert len(said) == 2


def test_a_library_that_narrows_the_main_thread_for_a_moment_raises_no_alarm(watch, monkeypatch):
    looked, said = watch
    job = SimpleNamespace(code=None, instance=Instance(0, (0, 1), (0,), 2), process=SimpleNamespace(pid=os.getpid()))
    monkeypatch.setattr(verify, "check_pages", lambda instance, pid: None)
    for cpus in ({0}, {0, 1}, {1}, {0, 1}):
        monkeypatch.setattr(affinity, "allowed_cpus", lambda pid, cpus=cpus: frozenset(cpus))
        monkeypatch.setattr(affinity, "cpus_by_thread", lambda pid, cpus=cpus: {pid: frozenset(cpus)})
        looked.check([job])
    assert not said and looked.checks["instance 0: threads on CPUs 0-1"].taken
    for _ in range(2):
        monkeypatch.setattr(affinity, "allowed_cpus", lambda pid: frozenset({1}))
        monkeypatch.setattr(affinity, "cpus_by_thread", lambda pid: {pid: frozenset({1})})
        looked.check([job])
    assert len(said) == 1 and "narrowed to CPU 1" in said[0]
