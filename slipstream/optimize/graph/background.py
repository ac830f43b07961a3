# SPDX-License-Identifier: Apache-2.0
"""One thread beside the script that captures, one model after another, and ends with the process."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator

from slipstream.errors import SlipstreamError
from slipstream.runtime import affinity, openmp

SWITCH_S = 1e-4
"""How long the thread may hold Python's lock while the script wants it. Python's own 5 ms, waited for after each of a model's
hundreds of operations, would stop the script for as long as the capture lasts."""

ALLOCATIONS = 50_000
"""So many objects more than were freed before Python looks for cycles. A capture makes some 250 000: at Python's own 700
looking through them, and through all of the script's, takes a fifth of its time."""

LEAST_PRIORITY = 19
"""As `nice` counts."""

_lock = threading.Lock()
_running: dict[threading.Thread, Callable[[], None]] = {}
"""Each with what a forked child, which does not have it, does instead."""

_amended: list[Callable[[], None]] = []
_ending: list[bool] = []


class Ended(BaseException):
    """Raised inside the thread when the process ends."""


def start(work: Callable[[], None], lost: Callable[[], None], *, gently: bool = False) -> None:
    """Run ``work`` in a thread; works started meanwhile wait for their turn. ``gently``: on what the script leaves of cores.

    ``lost`` is called in a child that is forked before the work is done, which it will not be there."""
    if not _ending:
        thread = threading.Thread(target=_run, args=(work, gently), name="slipstream-capture", daemon=True)
        with _lock:
            _running[thread] = lost
        thread.start()


def wait() -> None:
    """Until nothing is running: for tests, and for whoever would rather wait now."""
    while _running:
        for thread in list(_running):
            thread.join()


@contextlib.contextmanager
def amended_in_child(amend: Callable[[], None]) -> Iterator[None]:
    """A child that is forked meanwhile undoes by ``amend`` what this thread, which is not there to do so, has changed for the
    whole process, or frees what it holds."""
    _amended.append(amend)
    try:
        yield
    finally:
        _amended.remove(amend)


_turn = threading.Lock()


def _run(work: Callable[[], None], gently: bool) -> None:
    if gently:
        _give_way()
    try:
        with _turn, _fine_switching(), _seldom_collecting():
            if not _ending:
                work()
    except Ended:
        pass
    finally:
        with _lock:
            del _running[threading.current_thread()]


def _give_way() -> None:
    """To all other threads, this one being a process of its own to Linux. It takes as much of the cores in all, but over a
    longer time: BERT-base's calls on two threads were 1.1 times as long for half a minute, not 2.5 to 4 times for 4 seconds."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)


@contextlib.contextmanager
def _fine_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(SWITCH_S, before))
    ours = sys.getswitchinterval()

    def restore() -> None:
        if sys.getswitchinterval() == ours:  # else the script has set one of its own
            sys.setswitchinterval(before)

    try:
        with amended_in_child(restore):
            yield
    finally:
        restore()


@contextlib.contextmanager
def _seldom_collecting() -> Iterator[None]:
    before = gc.get_threshold()
    ours = (max(ALLOCATIONS, before[0]), *before[1:])
    if before[0] == 0:  # the script collects when it likes
        yield
        return
    gc.set_threshold(*ours)

    def restore() -> None:
        if gc.get_threshold() == ours:  # as above
            gc.set_threshold(*before)

    try:
        with amended_in_child(restore):
            yield
    finally:
        restore()


def shares_a_core(threads: int) -> bool:
    """Whether a team of so many threads has to share a core with what runs here: there is none besides."""
    return threads > 1 and len(affinity.allowed_cpus()) <= threads


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Parallel loops of the calling thread run on so many threads, itself one of them."""
    try:
        runtime = openmp.of_torch()
    except SlipstreamError:
        yield
        return
    before = runtime.set_threads(count)
    try:
        yield
    finally:
        if runtime.threads() == count:  # else the script has set one of its own
            runtime.set_threads(*before)


def _end() -> None:
    """A thread that runs Python while the interpreter is taken down can crash it: stop it first."""
    _ending.append(True)
    for thread in list(_running):
        while thread.is_alive():
            if thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Ended))
            thread.join(0.2)


def _in_child() -> None:
    """The threads are not there after a fork, but what they held is."""
    for lock in (_lock, _turn):
        lock._at_fork_reinit()  # type: ignore[attr-defined]
    instead = [*reversed(_amended), *_running.values()]
    _amended.clear()
    _running.clear()
    for amend in instead:
        amend()


atexit.register(_end)
os.register_at_fork(after_in_child=_in_child)
