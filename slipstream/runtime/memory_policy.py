# SPDX-License-Identifier: Apache-2.0
"""On which NUMA nodes this thread's new pages are placed: set and read by system call, with no libnuma.

The policy is the calling thread's; threads and processes started later inherit it, through exec too. Pages
that exist already stay where they are. Which nodes a process should use is decided in `launcher/plan.py`.
See set_mempolicy(2) and get_mempolicy(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from dataclasses import dataclass

from slipstream.decision import Decision
from slipstream.errors import UsageError

POLICIES = ("default", "bind", "preferred", "interleave", "local")
"""`default`: the system's. `bind`: these nodes and no others. `preferred`: these first, others when full.
`interleave`: page by page over these. `local`: the node of the CPU that first touches the page."""

NEEDS_NODES = frozenset({"bind", "preferred", "interleave"})

# linux/mempolicy.h
_MODES = {"default": 0, "preferred": 1, "bind": 2, "interleave": 3, "local": 4}
_PREFERRED_MANY = 5  # Linux 5.15
_NAMES = {
    0: "default",
    1: "preferred",
    2: "bind",
    3: "interleave",
    4: "local",
    5: "preferred",
    6: "weighted interleave",
}
_MODE_FLAGS = 0b111 << 13  # static nodes, relative nodes, NUMA balancing: they ride in the mode's high bits

# (set_mempolicy, get_mempolicy) in asm/unistd.h; riscv64 and loongarch64 share arm64's generic table.
_SYSCALLS = {
    "x86_64": (238, 239),
    "aarch64": (237, 236),
    "riscv64": (237, 236),
    "loongarch64": (237, 236),
    "ppc64le": (261, 260),
    "s390x": (270, 269),
}

# Masks of 1024 nodes: the most that any kernel is built for (CONFIG_NODES_SHIFT is 10 at most). get_mempolicy
# fails when its mask is shorter than the kernel's own.
_MASK_BITS = 1024
_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)
_Mask = ctypes.c_ulong * (_MASK_BITS // _WORD_BITS)

_REMEDIES = {
    errno.EPERM: "a container's seccomp filter denies it; run with --cap-add SYS_NICE to allow it",
    errno.ENOSYS: "this kernel is built without NUMA, or its call numbers on this machine are not known here",
    errno.EINVAL: "a node is outside this process's cpuset, or has no memory",
}


@dataclass(frozen=True)
class MemoryPolicy:
    """What holds for the calling thread; ``policy`` is None where the kernel does not tell (``reason``)."""

    policy: str | None
    nodes: tuple[int, ...] = ()
    reason: str = ""


def apply(policy: str, nodes: tuple[int, ...] = ()) -> Decision:
    """Set the calling thread's policy for the pages that it will touch.

    ``nodes`` are NUMA node ids, needed by bind, preferred and interleave and not allowed for the other two. A
    kernel that refuses gives a Decision that is not taken, with its reason: placement is only ever speed.
    Raises UsageError for an unknown policy, or nodes that are missing, superfluous or negative.
    """
    _check(policy, nodes)
    what = f"memory policy: {policy}" + (f" on {_nodes_in_words(nodes)}" if nodes else "")
    mode = _PREFERRED_MANY if policy == "preferred" and len(nodes) > 1 else _MODES[policy]
    mask = _Mask()
    for node in nodes:
        mask[node // _WORD_BITS] |= 1 << (node % _WORD_BITS)
    # The kernel counts one bit more than it reads (it decrements maxnode), hence the + 1.
    failure = _call(0, mode, ctypes.byref(mask) if nodes else None, _MASK_BITS + 1 if nodes else 0)
    if failure is not None:
        too_old = mode == _PREFERRED_MANY and failure == errno.EINVAL
        hint = "; or the kernel is older than 5.15, which prefers one node only" if too_old else ""
        return Decision(what, False, _refusal("set_mempolicy", failure) + hint)
    # The kernel silently leaves out nodes that this process may not use, as long as one is left.
    kept = current()
    if kept.policy is not None and nodes and set(kept.nodes) != set(nodes):
        return Decision(what, True, f"the kernel kept {_nodes_in_words(kept.nodes)} only")
    return Decision(what, True, "set_mempolicy succeeded")


def current() -> MemoryPolicy:
    """The calling thread's policy as the kernel reports it."""
    mode, mask = ctypes.c_int(), _Mask()
    failure = _call(1, ctypes.byref(mode), ctypes.byref(mask), _MASK_BITS + 1, None, 0)
    if failure is not None:
        return MemoryPolicy(None, reason=_refusal("get_mempolicy", failure))
    nodes = tuple(node for node in range(_MASK_BITS) if mask[node // _WORD_BITS] >> (node % _WORD_BITS) & 1)
    number = mode.value & ~_MODE_FLAGS
    return MemoryPolicy(_NAMES.get(number, f"mode {number}"), nodes)


def _check(policy: str, nodes: tuple[int, ...]) -> None:
    if policy not in POLICIES:
        raise UsageError.of("policy", policy, POLICIES)
    if policy in NEEDS_NODES and not nodes:
        raise UsageError.of("nodes", "()", f"{policy} needs at least one", "name the nodes, or use local")
    if policy not in NEEDS_NODES and nodes:
        raise UsageError.of("nodes", nodes, f"{policy} takes none", "use bind, preferred or interleave")
    for node in nodes:
        if not 0 <= node < _MASK_BITS:
            raise UsageError.of("nodes", nodes, f"{node} is not a node id from 0 to {_MASK_BITS - 1}")


def _nodes_in_words(nodes: tuple[int, ...]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(map(str, nodes))


def _refusal(name: str, number: int) -> str:
    text = f"{name}: {os.strerror(number)}"
    return f"{text}; {_REMEDIES[number]}" if number in _REMEDIES else text


def _call(which: int, *arguments: object) -> int | None:
    """set_mempolicy (0) or get_mempolicy (1): None on success, the errno on refusal."""
    numbers = _SYSCALLS.get(platform.machine())
    if numbers is None or _WORD_BITS != 64:  # a 32-bit process on a 64-bit machine has other numbers
        return errno.ENOSYS
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    # Variadic: a bare int would travel as 32 bits, and the upper half of the register be anything.
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return None if syscall(ctypes.c_long(numbers[which]), *wide) == 0 else ctypes.get_errno()
