# SPDX-License-Identifier: Apache-2.0
"""`Task`: calls of a module or function that run one after the other on a thread of their own, on a CPUPool.

The worker sees the caller's modes (gradients, inference, autocast, context variables) of the moment of the
call.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from typing import Any

from slipstream.errors import UsageError
from slipstream.runtime.cpu_pool import CPUPool, pin_thread, require_pool, usable_cpus


class TaskFuture:
    """The result of a call that may still be running."""

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self._future = future

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the call to end and return its result, or raise its exception; may be called again.

        ``timeout`` is in seconds; TimeoutError when it passes first (the call itself goes on).
        """
        try:
            return self._future.result(timeout)
        except concurrent.futures.TimeoutError:
            if self._future.done():
                raise  # the call's own
            raise TimeoutError(f"the task has not ended within {timeout} s") from None

    def wait(self) -> None:
        """Wait for the call to end, well or not."""
        concurrent.futures.wait([self._future])

    def done(self) -> bool:
        """Whether `get` would return at once."""
        return self._future.done()


class Task:
    """A module or function whose calls run on the CPUs of a pool, one after the other, away from the caller.

    ``task(*args, **kwargs)`` returns at once with a `TaskFuture`; each call keeps its own arguments and
    gets the caller's modes. Raises UsageError for a module that cannot be called or a pool that is no
    CPUPool. Two tasks whose modules wait for each other wait for ever.
    """

    def __init__(self, module: Callable[..., Any], cpu_pool: CPUPool) -> None:
        if not callable(module):
            raise UsageError.of("module", repr(module), "not a module or function", "pass what is to be called")
        self.module = module
        self.cpu_pool = require_pool(cpu_pool)
        self._thread = PinnedThread(cpu_pool)

    def __call__(self, /, *args: Any, **kwargs: Any) -> TaskFuture:
        return self._thread.submit(self.module, *args, **kwargs)

    def run_sync(self, /, *args: Any, **kwargs: Any) -> Any:
        """Wait for the calls made before, run this one on the pool, and return its result."""
        return self(*args, **kwargs).get()


class PinnedThread:
    """One thread on the CPUs of a pool, with its own OpenMP team, that takes calls in order.

    It starts at the first call. It ends when this object is collected, after what is queued. Copies and
    pickles carry the pool only: each gets a thread of its own, and so does a forked child.
    """

    def __init__(self, cpu_pool: CPUPool) -> None:
        self.cpu_pool = require_pool(cpu_pool)
        self._usable = usable_cpus()
        self._lock = threading.Lock()
        self._process = -1
        self._executor: concurrent.futures.ThreadPoolExecutor
        self._running_in: int | None = None

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Queue ``function(*args, **kwargs)`` under the caller's modes.

        Called by the thread itself (a function that calls its own task), it runs at once: waiting for the
        queue would be waiting for itself.
        """
        if self._running_in == threading.get_ident():
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - as an executor does
                future.set_exception(error)  # it travels to whoever asks for the result
            return TaskFuture(future)
        return TaskFuture(self._queue().submit(self._run, _caller_modes(), function, args, kwargs))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cpu_pool,)

    def _queue(self) -> concurrent.futures.ThreadPoolExecutor:
        with self._lock:
            if self._process != os.getpid():
                name = f"slipstream-{'-'.join(map(str, self.cpu_pool.core_ids))}"
                self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=name)
                self._process, self._running_in = os.getpid(), None
            return self._executor

    def _run(self, in_modes: Callable[..., Any], function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._running_in is None:
            # A new thread has the mask of the one that made the first call, which may be pinned elsewhere.
            os.sched_setaffinity(0, self._usable)
            pin_thread(self.cpu_pool.core_ids)  # and never undone: for the thread's whole life
            self._running_in = threading.get_ident()
        return in_modes(function, args, kwargs)


def _caller_modes() -> Callable[..., Any]:
    """A function that calls another one under the modes that the calling thread has now.

    Those of PyTorch are kept per thread, and a new thread starts with the defaults.
    """
    import torch

    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    dtype, enabled = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
    cached = torch.is_autocast_cache_enabled()
    variables = contextvars.copy_context()

    def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # inference_mode sets the gradient mode too, so that one comes second.
        with contextlib.ExitStack() as modes:
            modes.enter_context(torch.inference_mode(inference))
            modes.enter_context(torch.set_grad_enabled(gradients))
            modes.enter_context(torch.autocast("cpu", dtype, enabled, cached))
            return variables.run(function, *args, **kwargs)

    return call
