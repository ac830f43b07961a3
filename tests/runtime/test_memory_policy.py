# SPDX-License-Identifier: Apache-2.0
"""The policy that the kernel reports is the one asked for; a refusal is a reason, never an exception.

Each real call runs in a thread of its own, because the policy belongs to the thread and dies with it.
"""

import errno
import pathlib
import platform
import subprocess
import sys
import threading

import pytest

from slipstream.errors import UsageError
from slipstream.runtime import memory_policy


def in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


SUPPORTED = in_thread(memory_policy.current).policy is not None and in_thread(lambda: memory_policy.apply("default").taken)
TOUCH_AND_LOOK = """
import ctypes, mmap
from slipstream.runtime import memory_policy
assert memory_policy.apply("bind", (0,)).taken
pages = mmap.mmap(-1, 1 << 20)
pages.write(b"x" * len(pages))
address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
lines = open("/proc/self/numa_maps").read().splitlines()
print([line for line in lines if int(line.split()[0], 16) <= address][-1].split()[1])
"""
real = pytest.mark.skipif(not SUPPORTED, reason="this kernel or container refuses memory policies")


@real
@pytest.mark.parametrize("policy", ["bind", "preferred", "interleave"])
def test_a_policy_with_nodes_holds(policy):
    decision, held = in_thread(lambda: (memory_policy.apply(policy, (0,)), memory_policy.current()))
    assert decision.taken, decision.reason
    assert held == memory_policy.MemoryPolicy(policy, (0,))


@real
@pytest.mark.parametrize("policy", ["default", "local"])
def test_a_policy_without_nodes_holds(policy):
    assert in_thread(lambda: (memory_policy.apply(policy).taken, memory_policy.current().policy)) == (
        True,
        policy,
    )


@real
def test_the_policy_is_that_of_one_thread():
    before = memory_policy.current()
    in_thread(lambda: memory_policy.apply("interleave", (0,)))
    assert memory_policy.current() == before


@real
def test_pages_touched_afterwards_carry_the_policy():
    if not pathlib.Path("/proc/self/numa_maps").exists():
        pytest.skip("this kernel has no numa_maps")
    # A process of its own, because numa_maps shows the policy of the main thread.
    done = subprocess.run([sys.executable, "-c", TOUCH_AND_LOOK], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("bind:0\n", "")


@real
def test_a_node_that_is_not_there_is_a_reason():
    decision = in_thread(lambda: memory_policy.apply("bind", (1023,)))
    assert not decision.taken
    assert decision.what == "memory policy: bind on node 1023"
    assert "outside this process's cpuset" in decision.reason


@real
def test_what_the_kernel_leaves_out_is_said():
    decision = in_thread(lambda: memory_policy.apply("interleave", (0, 1023)))
    assert decision.taken
    assert decision.reason == "the kernel kept node 0 only"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EPERM, "SYS_NICE"), (errno.ENOSYS, "without NUMA"), (errno.EFAULT, "Bad address")],
)
def test_a_refusal_of_the_kernel_is_a_reason(monkeypatch, number, words):
    monkeypatch.setattr(memory_policy, "_call", lambda *_: number)
    decision = memory_policy.apply("bind", (0,))
    assert not decision.taken
    assert words in decision.reason
    held = memory_policy.current()
    assert held.policy is None
    assert words in held.reason


def test_an_old_kernel_that_prefers_one_node_only(monkeypatch):
    monkeypatch.setattr(memory_policy, "_call", lambda *_: errno.EINVAL)
    assert "older than 5.15" in memory_policy.apply("preferred", (0, 1)).reason
    assert "older than 5.15" not in memory_policy.apply("preferred", (0,)).reason


def test_a_machine_whose_call_numbers_are_unknown(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert not memory_policy.apply("local").taken


@pytest.mark.parametrize(
    ("policy", "nodes", "words"),
    [
        ("hbm", (), "policy hbm: not one of default, bind, preferred, interleave, local"),
        ("bind", (), "bind needs at least one"),
        ("local", (0,), "local takes none"),
        ("bind", (-1,), "-1 is not a node id"),
        ("bind", (1024,), "1024 is not a node id"),
    ],
)
def test_bad_arguments(policy, nodes, words):
    with pytest.raises(UsageError, match=words):
        memory_policy.apply(policy, nodes)
