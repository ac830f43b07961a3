# SPDX-License-Identifier: Apache-2.0
"""A process that forks amid a capture, as data loaders do, leaves nothing locked in its child."""

import os
import signal
import threading
import warnings

import pytest
from torch import nn

from slipstream.optimize import packs
from slipstream.optimize.graph import background


def in_a_child(work):
    """The exit code of a forked process that does this; minus the signal's number where it was killed for hanging."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of just this
        child = os.fork()
    if not child:
        signal.alarm(20)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def read_and_capture():
    layer = nn.Linear(2, 2)
    packs.watch_data()
    layer.weight.data.add_(1)
    packs.drop_all()
    done = threading.Event()
    background.start(done.set, done.clear)
    background.wait()
    if not done.is_set():
        os._exit(1)


@pytest.mark.parametrize("held", [packs._lock, background._lock, background._turn], ids=["packs", "threads", "turn"])
def test_locks_of_another_thread_are_free_in_the_child(held):
    holds, may_go = threading.Event(), threading.Event()

    def hold():
        with held:
            holds.set()
            may_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        holds.wait()
        assert in_a_child(read_and_capture) == 0
    finally:
        may_go.set()
        thread.join()
