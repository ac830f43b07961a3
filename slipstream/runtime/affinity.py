# SPDX-License-Identifier: Apache-2.0
"""The CPUs that a process or a thread may run on: set, restore, and read what really holds.

Everything here is about the kernel's own mask (sched_setaffinity(2)), one thread at a time; which CPUs are
wise is decided elsewhere. A thread id of 0 means the calling thread. New threads and processes inherit the
mask of the thread that starts them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping

from slipstream.decision import Decision
from slipstream.errors import PlanError, UsageError
from slipstream.runtime.cpu_list import format_cpu_list, parse_cpu_list


def allowed_cpus(thread: int = 0) -> frozenset[int]:
    """The CPUs that a thread may use now. Raises ProcessLookupError when there is no such thread."""
    return frozenset(os.sched_getaffinity(thread))


def set_cpus(cpus: Iterable[int], thread: int = 0) -> None:
    """Confine one thread to these CPUs.

    Raises UsageError for an empty set or a negative number, and PlanError when the kernel does not grant
    exactly this set (a CPU that is offline, does not exist or lies outside the cgroup's cpuset). After a
    PlanError the thread runs where it ran before.
    """
    wanted = frozenset(cpus)
    if not wanted or min(wanted) < 0:
        raise UsageError.of("cpus", sorted(wanted), "needs at least one CPU number, and none below 0")
    before = allowed_cpus(thread)
    try:
        os.sched_setaffinity(thread, wanted)
    except ProcessLookupError:
        raise
    except (OSError, OverflowError) as error:
        raise _not_granted(wanted, before, str(error)) from error
    # The kernel silently leaves out what the cpuset does not hold, as long as something is left.
    if (granted := allowed_cpus(thread)) != wanted:
        os.sched_setaffinity(thread, before)
        raise _not_granted(wanted, before, f"the kernel grants only {format_cpu_list(granted)}")


def set_process_cpus(cpus: Iterable[int], process: int | None = None) -> None:
    """Confine every thread that a process (this one by default) has now, and those that they start later.

    Raises what `set_cpus` raises, before any thread has moved, and ProcessLookupError for a process that is
    gone.
    """
    wanted = frozenset(cpus)
    set_cpus(wanted, os.getpid() if process is None else process)  # the main thread has the process's number
    # Threads that had not moved yet may have started others meanwhile, hence more than one look.
    while others := [thread for thread, mask in cpus_by_thread(process).items() if mask != wanted]:
        for thread in others:
            with contextlib.suppress(ProcessLookupError):  # it ended
                set_cpus(wanted, thread)


@contextlib.contextmanager
def on_cpus(cpus: Iterable[int], thread: int = 0) -> Iterator[None]:
    """Confine one thread to these CPUs for a block of code, and put back what it had, whatever happens there.

    Each `with` keeps its own memory of what to restore, so blocks nest. Raises what `set_cpus` raises.
    """
    before = allowed_cpus(thread)
    set_cpus(cpus, thread)
    try:
        yield
    finally:
        os.sched_setaffinity(thread, before)


def cpus_by_thread(process: int | None = None) -> dict[int, frozenset[int]]:
    """What really holds: the kernel's mask of every thread of a process (this one by default), by thread id.

    Read from `/proc/PID/task/*/status`. Threads that end while it reads are left out. Raises
    ProcessLookupError when there is no such process.
    """
    folder = f"/proc/{os.getpid() if process is None else process}/task"
    try:
        threads = [int(name) for name in os.listdir(folder)]
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {process}") from None
    masks = {thread: _mask_in_status(f"{folder}/{thread}/status") for thread in threads}
    return {thread: mask for thread, mask in sorted(masks.items()) if mask is not None}


def compare(planned: Iterable[int], process: int | None = None) -> Decision:
    """Whether every thread of a process may run on all planned CPUs and on no other, as the kernel says.

    Not taken, with the threads that differ and the likely cause, where one does.
    """
    wanted = frozenset(planned)
    held = cpus_by_thread(process)
    what = f"affinity of process {os.getpid() if process is None else process}: CPUs {format_cpu_list(wanted)}"
    escaped = {thread: mask for thread, mask in held.items() if mask - wanted}
    narrowed = {thread: mask for thread, mask in held.items() if mask < wanted}
    if escaped:
        cause = "something in the process sets its own affinity, after the plan did"
        return Decision(what, False, f"{_threads_in_words(escaped)}: outside the plan; {cause}")
    if narrowed:
        cause = "OMP_PROC_BIND, GOMP_CPU_AFFINITY and KMP_AFFINITY do this; unset them"
        return Decision(what, False, f"{_threads_in_words(narrowed)}: less than the plan; {cause}")
    return Decision(what, True, f"all {len(held)} threads have exactly these")


def _mask_in_status(path: str) -> frozenset[int] | None:
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            line = next((line for line in lines if line.startswith("Cpus_allowed_list:")), None)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if line is None else frozenset(parse_cpu_list(line.partition(":")[2], argument=path))


def _not_granted(wanted: frozenset[int], before: frozenset[int], cause: str) -> PlanError:
    return PlanError(f"cpus {sorted(wanted)}: {cause}; this thread may use {format_cpu_list(before)}")


def _threads_in_words(masks: Mapping[int, frozenset[int]]) -> str:
    return ", ".join(f"thread {thread} has {format_cpu_list(mask)}" for thread, mask in masks.items())
