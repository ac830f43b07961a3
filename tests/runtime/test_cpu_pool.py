# SPDX-License-Identifier: Apache-2.0
"""Pools hold what may be used; `pin` puts one OpenMP thread on each CPU and leaves nothing behind.

Affinity is read as the kernel reports it, thread by thread.
"""

import os
import pathlib
import subprocess
import sys
import threading

import numpy
import pytest
import torch

from slipstream.errors import PlanError, SlipstreamError, UsageError
from slipstream.runtime import (
    CPUPool,
    affinity,
    get_core_list_of_node_id,
    is_runtime_ext_enabled,
    openmp,
    pin,
)
from slipstream.runtime.cpu_list import parse_cpu_list

CPUS = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="this process may use one CPU only")
ABSENT = 10_000  # no machine has it


def team_state():
    """Thread count, the caller's mask and those of its team, as they are now."""
    torch.get_num_threads()
    team = openmp.of_torch().team()
    return torch.get_num_threads(), os.sched_getaffinity(0), [os.sched_getaffinity(thread) for thread in team]


def in_thread(function):
    """Run in a fresh thread, whose OpenMP team is then its own; the result or the exception comes back."""
    box = {}

    def run():
        try:
            box["result"] = function()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            box["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    return box["result"]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = team_state()
    yield
    assert team_state() == before


def test_the_default_pool_is_what_the_thread_may_use():
    assert CPUPool().core_ids == CPUS
    assert len(CPUPool()) == len(CPUS)


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_any_list_of_numbers_makes_a_pool_in_its_order(kind):
    assert CPUPool(kind(CPUS[::-1])).core_ids == CPUS[::-1]


def test_numbers_of_numpy_are_numbers():
    core_ids = CPUPool(numpy.array(CPUS)).core_ids
    assert core_ids == CPUS
    assert {type(cpu) for cpu in core_ids} == {int}


def test_the_second_object_inside_is_the_pool():
    pool = CPUPool(CPUS[:1])
    assert pool.cpu_pool.get_core_list() == CPUS[:1]


def test_what_may_not_be_used_is_left_out_aloud():
    with pytest.warns(UserWarning, match=f"CPUs {ABSENT} are outside the affinity of this thread"):
        assert CPUPool([*CPUS, ABSENT]).core_ids == CPUS


def test_nothing_usable_is_an_error():
    with pytest.raises(PlanError, match=rf"core_ids \[{ABSENT}\]: this thread may use"):
        CPUPool([ABSENT])


@pytest.mark.parametrize("core_ids", ["0", 0, [True], [0.0], [-1], [0, 0], [None]])
def test_what_is_no_list_of_cpus(core_ids):
    with pytest.raises(UsageError, match="not a list of different CPU numbers"):
        CPUPool(core_ids)


def test_core_ids_go_before_a_node():
    with pytest.warns(UserWarning, match="core_ids goes before node_id"):
        assert CPUPool(CPUS[:1], node_id=0).core_ids == CPUS[:1]


def test_a_node_stands_for_its_physical_cores():
    node = next(n for n in range(1024) if not raises(UsageError, get_core_list_of_node_id, n))
    cores = get_core_list_of_node_id(node)
    assert cores == sorted(set(cores))
    assert set(cores) <= set(CPUS)
    assert CPUPool(node_id=node).core_ids == cores
    for cpu in cores:
        siblings = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        if siblings.exists():  # some sandboxes hide it, and each CPU is a core then
            assert set(parse_cpu_list(siblings.read_text())) & set(cores) == {cpu}


@pytest.mark.parametrize("node", [-1, 1023, True, "0"])
def test_a_node_that_is_not_there(node):
    with pytest.raises(UsageError, match=f"node_id {node}: not one of"):
        get_core_list_of_node_id(node)


def raises(kind, function, *args):
    try:
        function(*args)
    except kind:
        return True
    return False


def test_the_runtime_works_here():
    assert is_runtime_ext_enabled() is True


def test_the_runtime_says_when_it_does_not_work(monkeypatch):
    def absent():
        raise SlipstreamError("no OpenMP")

    monkeypatch.setattr(openmp, "of_torch", absent)
    assert is_runtime_ext_enabled() is False
    monkeypatch.undo()


@two_cpus
def test_one_thread_for_each_cpu():
    with pin(CPUPool([CPUS[1], CPUS[0]])):
        assert torch.get_num_threads() == 2
        first, second = openmp.of_torch().team()
        assert os.sched_getaffinity(first) == set(CPUS[:2])  # the caller: what it starts gets the whole pool
        assert os.sched_getaffinity(second) == {CPUS[0]}  # OpenMP thread 1 is on CPU 1 of the pool


@two_cpus
def test_the_threads_of_the_team_are_those_that_torch_works_with():
    """What runs inside is seen by the kernel on the pool's CPUs alone, and makes no further threads."""

    def work():
        with pin(CPUPool(CPUS[1:2])):
            threads = set(affinity.cpus_by_thread())
            torch.randn(300, 300) @ torch.randn(300, 300)
            torch.randn(500, 500).exp()
            (torch.randn(300, 300).bfloat16() @ torch.randn(300, 300).bfloat16()).sum()
            return set(affinity.cpus_by_thread()) - threads, torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)  # gives MKL a count of its own, for all threads, which a pool must override
    try:
        assert in_thread(work) == (set(), 1)
    finally:
        torch.set_num_threads(before)


@two_cpus
def test_nesting_widens_and_narrows():
    one, both = CPUPool(CPUS[1:2]), CPUPool([CPUS[1], CPUS[0]])
    with pin(one):
        inside = team_state()
        assert inside == (1, {CPUS[1]}, [{CPUS[1]}])
        with pin(both):
            assert team_state() == (2, set(CPUS[:2]), [set(CPUS[:2]), {CPUS[0]}])
        assert team_state() == inside


def test_an_exception_passes_and_everything_is_restored():
    with pytest.raises(KeyError, match="from inside"), pin(CPUPool(CPUS[-1:])):
        raise KeyError("from inside")


def test_one_object_recursively():
    @pin(CPUPool(CPUS[-1:]))
    def down(depth):
        assert team_state()[:2] == (1, {CPUS[-1]})
        return depth if depth == 0 else down(depth - 1)

    assert down(5) == 0
    block = pin(CPUPool(CPUS[:1]))
    with block, block:
        assert os.sched_getaffinity(0) == {CPUS[0]}


def test_a_decorated_function_keeps_its_name_and_arguments():
    @pin(CPUPool())
    def add(a, b=1):
        """Sum."""
        return a + b

    assert (add(1), add(1, b=3), add.__name__, add.__doc__) == (2, 4, "add", "Sum.")


def test_functions_that_run_later_are_refused():
    def generator():
        yield

    async def coroutine():
        pass

    for function in (generator, coroutine):
        with pytest.raises(UsageError, match="its body runs after the call"):
            pin(CPUPool())(function)


@pytest.mark.parametrize("pool", [None, [0], "0"])
def test_pin_wants_a_pool(pool):
    with pytest.raises(UsageError, match="not a CPUPool"):
        pin(pool)


def test_thread_counts_set_inside_do_not_come_out():
    before = torch.get_num_threads()
    assert openmp.of_torch().threads() == before
    with pin(CPUPool(CPUS[:1])):
        openmp.of_torch().set_threads(3)
        team = openmp.of_torch().team()
        assert len(team) == 3
    assert torch.get_num_threads() == before
    held = affinity.cpus_by_thread()
    assert all(held[thread] == set(CPUS) for thread in team)


@two_cpus
def test_a_team_made_smaller_inside_comes_back_whole():
    with pin(CPUPool([CPUS[1], CPUS[0]])):
        openmp.of_torch().set_threads(1)


@two_cpus
def test_a_team_that_starts_in_an_inner_block_belongs_to_the_outside_afterwards():
    def nested():
        with pin(CPUPool(CPUS[1:2])), pin(CPUPool([CPUS[1], CPUS[0]])):
            torch.randn(500, 500).exp()
        return team_state()

    assert in_thread(nested) == team_state()


@two_cpus
def test_one_object_in_several_threads_at_once():
    block, everywhere = pin(CPUPool(CPUS[:1])), threading.Barrier(4)
    seen = []

    def run():
        before = os.sched_getaffinity(0)
        with block:
            everywhere.wait()
            seen.append((os.sched_getaffinity(0), torch.get_num_threads()))
            everywhere.wait()
        seen.append(os.sched_getaffinity(0) == before)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item for item in seen if item is not True] == [({CPUS[0]}, 1)] * 4
    assert seen.count(True) == 4


@two_cpus
def test_pools_made_inside_see_what_is_outside():
    with pin(CPUPool(CPUS[:1])):
        assert CPUPool(CPUS).core_ids == CPUS
    assert in_thread(lambda: (pin(CPUPool(CPUS[:1])).__enter__(), CPUPool().core_ids)[1]) == CPUS


@two_cpus
def test_processes_started_inside_have_the_whole_pool():
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    with pin(CPUPool(CPUS[:2])):
        seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == str(CPUS[:2])


def test_a_child_forked_inside_leaves_the_block_without_hanging():
    """In a process of its own: a fork of one that has threads is what Python warns of, and torch's users do."""
    code = f"""
import os, warnings
warnings.simplefilter("ignore")
import torch
from slipstream.runtime import CPUPool, pin
torch.randn(500, 500).exp()
with pin(CPUPool({CPUS})):
    child = os.fork()
if child == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("7\n", 0), done.stderr


def test_a_cpu_that_went_away_leaves_nothing_changed(monkeypatch):
    pool = CPUPool(CPUS[:1])
    pool.core_ids = [ABSENT]
    with pytest.raises(PlanError), pin(pool):
        raise AssertionError("entered")
