# SPDX-License-Identifier: Apache-2.0
"""A set of CPUs, and `pin`: run a block of code, or a function, on these CPUs with one OpenMP thread each.

Nothing is preloaded and nothing is process-wide: the calling thread, its OpenMP team and its thread counts
are changed, and put back. Other threads of the process go on as they were.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, SupportsIndex, TypeVar, cast

from slipstream import decision
from slipstream.errors import PlanError, SlipstreamError, UsageError
from slipstream.runtime import affinity, openmp, topology
from slipstream.runtime.cpu_list import format_cpu_list

Function = TypeVar("Function", bound=Callable[..., Any])

_outside = threading.local()
"""Both are missing where the thread is in no `pin`. ``cpus``: what it could use before the outermost one.
``team``: all threads seen in its OpenMP team since then; a team of one hides the others, which come back with
the masks that they had.
"""


class CPUPool:
    """The CPUs on which a `pin`, a `Task` or a `MultiStreamModule` runs.

    ``core_ids`` are the kernel's numbers of logical CPUs; ``node_id`` stands for one CPU of each physical
    core of that NUMA node; with neither, the pool holds every CPU that the calling thread may use.
    ``core_ids`` goes before ``node_id``. CPUs that the thread may not use are left out, with a warning.

    Raises UsageError for anything that is no list of different CPU numbers and for a node that does not
    exist, PlanError when no CPU is left.
    """

    def __init__(self, core_ids: Iterable[int] | None = None, node_id: int | None = None) -> None:
        usable = usable_cpus()
        if core_ids is not None:
            if node_id is not None:
                warnings.warn("CPUPool: core_ids goes before node_id; give one of them", stacklevel=2)
            asked = _numbers(core_ids)
        else:
            asked = sorted(usable) if node_id is None else get_core_list_of_node_id(node_id)
        self.core_ids = [cpu for cpu in asked if cpu in usable]
        if not self.core_ids:
            limits = f"this thread may use {format_cpu_list(usable)}"
            raise PlanError.of("core_ids", asked, limits, "choose from these, or start with a wider affinity")
        if left_out := [cpu for cpu in asked if cpu not in usable]:
            reason = f"outside the affinity of this thread, {format_cpu_list(usable)}; leave them out of core_ids"
            decision.log.note(f"CPUPool: CPUs {format_cpu_list(left_out)}", False, reason)
            warnings.warn(f"CPUPool: CPUs {format_cpu_list(left_out)} are {reason}", stacklevel=2)

    @property
    def cpu_pool(self) -> CPUPool:
        """The pool itself, where older scripts expect a second object inside."""
        return self

    def get_core_list(self) -> list[int]:
        """A copy of ``core_ids``."""
        return list(self.core_ids)

    def __len__(self) -> int:
        return len(self.core_ids)

    def __repr__(self) -> str:
        return f"CPUPool({self.core_ids})"


class pin:  # noqa: N801 - the name that scripts use, as `with pin(pool):` and `@pin(pool)`
    """Run a block of code or a function on the CPUs of a pool, with one OpenMP thread for each of them.

    Inside, OpenMP thread i > 0 runs on CPU i of the pool and on no other. The calling thread, which is
    thread 0, may use the whole pool: processes and threads that it starts (a DataLoader's workers) inherit
    its mask, and one CPU for all of them would be a trap.

    On the way out, with an exception too, the masks and thread counts are what they were. One object may be
    entered again inside itself and by several threads at once. Raises PlanError when the kernel refuses the
    CPUs, and SlipstreamError where torch runs without OpenMP.
    """

    def __init__(self, cpu_pool: CPUPool) -> None:
        self.cpu_pool = require_pool(cpu_pool)
        self._open = threading.local()  # per thread: what is to be undone, the innermost `with` last

    def __enter__(self) -> pin:
        self._undo_stack().append(pin_thread(self.cpu_pool.core_ids))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._undo_stack().pop().close()

    def __call__(self, function: Function) -> Function:
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            rule = "its body runs after the call, so it cannot be pinned from outside"
            raise UsageError.of("function", function, rule, "use `with pin(pool):` inside it")

        @functools.wraps(function)
        def on_the_pool(*args: Any, **kwargs: Any) -> Any:
            with pin_thread(self.cpu_pool.core_ids):
                return function(*args, **kwargs)

        return cast("Function", on_the_pool)

    def _undo_stack(self) -> list[contextlib.ExitStack]:
        if not hasattr(self._open, "undo"):
            self._open.undo = []
        return cast("list[contextlib.ExitStack]", self._open.undo)


def usable_cpus() -> frozenset[int]:
    """The CPUs that the calling thread may use, seen from outside any `pin` that it is in."""
    return getattr(_outside, "cpus", None) or affinity.allowed_cpus()


def get_core_list_of_node_id(node_id: int) -> list[int]:
    """One CPU of each physical core of a NUMA node, ascending, out of those that the calling thread may use.

    Raises UsageError for a node that has no such CPU.
    """
    usable = usable_cpus()
    machine = topology.read_sys(topology.SYS, known_cpus=usable)
    by_node: dict[int, dict[int, int]] = {}
    for cpu in sorted(machine.cpus, key=lambda cpu: cpu.number):
        if cpu.number in usable:
            by_node.setdefault(cpu.node, {}).setdefault(cpu.core, cpu.number)
    if isinstance(node_id, bool) or node_id not in by_node:
        raise UsageError.of("node_id", node_id, sorted(by_node), "these are the nodes with a CPU for this thread")
    return list(by_node[node_id].values())


def is_runtime_ext_enabled() -> bool:
    """Whether `pin`, `Task` and `MultiStreamModule` work here: true on every torch that runs on OpenMP."""
    try:
        openmp.of_torch()
    except SlipstreamError:
        return False
    return True


def _numbers(core_ids: Iterable[int]) -> list[int]:
    rule = "not a list of different CPU numbers"
    if isinstance(core_ids, str) or not isinstance(core_ids, Iterable):
        raise UsageError.of("core_ids", repr(core_ids), rule, "pass for example [0, 1] or range(4)")
    given = list(core_ids)
    for number in given:
        # SupportsIndex: NumPy's integers are numbers too.
        is_number = isinstance(number, SupportsIndex) and not isinstance(number, bool)
        if not is_number or number < 0 or given.count(number) > 1:
            raise UsageError.of("core_ids", given, rule, f"see {number!r}")
    return [int(number) for number in given]


def require_pool(cpu_pool: object) -> CPUPool:
    """The argument, if it is a CPUPool; UsageError otherwise."""
    if not isinstance(cpu_pool, CPUPool):
        raise UsageError.of("cpu_pool", repr(cpu_pool), "not a CPUPool", "pass CPUPool([0, 1])")
    return cpu_pool


def pin_thread(cpus: Sequence[int]) -> contextlib.ExitStack:
    """Pin the calling thread and its OpenMP team as `pin` does, until the result is closed.

    Close it in the same thread. A result that is dropped unclosed leaves the thread pinned.
    """
    runtime = openmp.of_torch()
    openmp.start_of_thread()
    process, before = os.getpid(), affinity.allowed_cpus()
    with contextlib.ExitStack() as undo:
        if not hasattr(_outside, "cpus"):
            _outside.cpus, _outside.team = before, set()
            undo.callback(_outside.__dict__.clear)
        undo.callback(os.sched_setaffinity, 0, before)
        undo.callback(runtime.set_threads, *runtime.set_threads(len(cpus)))
        # The team starts before the mask narrows: threads that are new now carry the mask they shall have
        # later.
        team = runtime.team()[1:]
        _outside.team.update(team)
        masks = {thread: affinity.allowed_cpus(thread) for thread in team}
        undo.callback(_restore_team, runtime, process, masks, before)
        affinity.set_cpus(cpus)
        for thread, cpu in zip(team, cpus[1:], strict=False):  # a thread limit may leave the team smaller
            affinity.set_cpus((cpu,), thread)
        return undo.pop_all()


def _restore_team(runtime: openmp.OpenMP, process: int, masks: dict[int, frozenset[int]], before: frozenset[int]) -> None:
    """Give every thread of the team its mask back; threads that started inside get the caller's."""
    if os.getpid() != process:
        return  # a forked child has no team, and asking libgomp for it would wait for ever
    _outside.team.update(runtime.team()[1:])
    for thread in _outside.team:
        with contextlib.suppress(ProcessLookupError):  # OpenMP ends threads when a team shrinks
            os.sched_setaffinity(thread, masks.get(thread, before))
