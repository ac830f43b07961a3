# SPDX-License-Identifier: Apache-2.0
"""Calls of a task keep their own inputs, the caller's modes and their order, on the pool's CPUs."""

import contextvars
import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest
import torch

from slipstream.errors import UsageError
from slipstream.runtime import CPUPool, Task, pin

CPUS = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="this process may use one CPU only")


@pytest.fixture
def pool():
    return CPUPool(CPUS[-1:])


def where(_=None):
    return os.sched_getaffinity(0), torch.get_num_threads(), threading.get_ident()


def modes():
    autocast = (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
    )
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast


def test_calls_in_flight_keep_their_own_inputs(pool):
    gate = threading.Event()

    def double(value):
        gate.wait()
        return value * 2

    task = Task(double, pool)
    futures = [task(value) for value in range(50)]
    assert not futures[0].done()
    gate.set()
    assert [future.get() for future in futures] == [value * 2 for value in range(50)]
    assert futures[0].get() == 0  # again


def test_calls_run_one_after_the_other_in_order(pool):
    order = []
    task = Task(order.append, pool)
    futures = [task(value) for value in range(100)]
    futures[-1].get()
    assert order == list(range(100))


def test_the_worker_is_on_the_pool_and_the_caller_is_not_touched(pool):
    before = os.sched_getaffinity(0), torch.get_num_threads()
    mask, threads, ident = Task(where, pool).run_sync()
    assert (mask, threads) == ({CPUS[-1]}, 1)
    assert ident != threading.get_ident()
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


@two_cpus
def test_tasks_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=60)
    first, second = (Task(meeting.wait, CPUPool([cpu])) for cpu in CPUS[:2])
    assert sorted(future.get() for future in (first(), second())) == [0, 1]


@two_cpus
def test_a_task_first_called_inside_a_pin_has_its_own_cpus():
    task = Task(lambda: (os.sched_getaffinity(0), CPUPool().core_ids), CPUPool(CPUS[1:2]))
    with pin(CPUPool(CPUS[:1])):
        assert task.run_sync() == ({CPUS[1]}, CPUS)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="TorchScript ends with Python 3.13")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_modules(pool):
    module, x = torch.nn.Linear(4, 3).eval(), torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(Task(torch.jit.trace(module, x), pool)(x).get(), module(x))


def test_modules_and_functions(pool):
    module, x = torch.nn.Linear(4, 3).eval(), torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(Task(module, pool)(x).get(), module(x))
    assert Task(lambda *a, **k: (a, k), pool).run_sync(1, function=2, self=3) == (
        (1,),
        {"function": 2, "self": 3},
    )


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_the_modes_of_the_caller_travel(pool, inference, grad, autocast):
    task = Task(modes, pool)
    with (
        torch.inference_mode(inference),
        torch.set_grad_enabled(grad),
        torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False),
    ):
        assert task.run_sync() == modes()
        future = task()
        inside = modes()
    assert future.get() == inside  # those of the moment of the call
    assert task.run_sync() == modes()  # and they do not stay


def test_gradients_flow_through(pool):
    module, x = torch.nn.Linear(4, 3), torch.randn(2, 4, requires_grad=True)
    expected = torch.autograd.grad(module(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(Task(module, pool).run_sync(x).sum(), x)[0], expected)


def test_context_variables_travel(pool):
    variable = contextvars.ContextVar("variable", default="unset")
    task = Task(variable.get, pool)
    variable.set("set")
    assert task.run_sync() == "set"


def test_an_exception_is_raised_by_get_and_the_task_lives_on(pool):
    task = Task({"a": 1}.__getitem__, pool)
    future = task("b")
    for _ in range(2):
        with pytest.raises(KeyError, match="b"):
            future.get()
    assert task.run_sync("a") == 1


def test_waiting_may_have_an_end(pool):
    gate = threading.Event()
    future = Task(gate.wait, pool)()
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s"):
        future.get(0.01)
    gate.set()
    assert future.get() is True


def test_a_timeout_of_the_call_itself_is_its_own(pool):
    def fail():
        raise TimeoutError("the script's")

    with pytest.raises(TimeoutError, match="the script's"):
        Task(fail, pool)().get(30)


def test_a_task_may_call_itself(pool):
    def factorial(n):
        return 1 if n == 0 else n * task(n - 1).get()

    task = Task(factorial, pool)
    assert task.run_sync(10) == 3628800

    def failing(n):
        if n == 0:
            raise KeyError("at the bottom")
        return failing_task(n - 1).get()

    failing_task = Task(failing, pool)
    with pytest.raises(KeyError, match="at the bottom"):
        failing_task.run_sync(3)


def test_tasks_may_wait_for_other_tasks(pool):
    inner = Task(lambda value: value + 1, pool)
    assert Task(lambda value: inner.run_sync(value) * 2, pool).run_sync(1) == 4


def test_callers_in_several_threads(pool):
    task, results = Task(lambda value: value * 2, pool), {}

    def call(value):
        results[value] = task.run_sync(value)

    threads = [threading.Thread(target=call, args=(value,)) for value in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {value: value * 2 for value in range(20)}


def test_copies_and_pickles_work_on_their_own(pool):
    task = Task(where, pool)
    ident = task.run_sync()[2]
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        mask, _, other_ident = other.run_sync()
        assert mask == {CPUS[-1]}
        assert other_ident != ident


def test_the_thread_ends_with_the_task(pool):
    task = Task(threading.current_thread, pool)
    thread = task.run_sync()
    assert thread.is_alive()
    del task
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_queued_calls_run_even_if_the_task_is_dropped(pool):
    done = []
    future = Task(lambda: (time.sleep(0.05), done.append(1)), pool)()
    gc.collect()
    future.get()
    assert done == [1]


def test_a_forked_child_has_a_worker_of_its_own():
    """In a process of its own: Python warns of forking one that has threads, and torch's users do it."""
    code = f"""
import os, warnings
warnings.simplefilter("ignore")
import torch
from slipstream.runtime import CPUPool, Task
task, x = Task(lambda x: float((x @ x).sum()), CPUPool({CPUS})), torch.ones(300, 300)
expected = task.run_sync(x)
child = os.fork()
if child == 0:
    os._exit(0 if task.run_sync(x) == expected else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


def test_bad_arguments(pool):
    with pytest.raises(UsageError, match="module 3: not a module or function"):
        Task(3, pool)
    with pytest.raises(UsageError, match="not a CPUPool"):
        Task(where, [0])
