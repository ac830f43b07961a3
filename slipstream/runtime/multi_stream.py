# SPDX-License-Identifier: Apache-2.0
"""`MultiStreamModule`: one module, its weights shared, run on parts of a batch by groups of CPUs.

It pays where one sample does not fill all CPUs: small layers, memory-bound ones, much work between them.
How a call is taken apart and put together: `stream_hint.py`. The threads: `task.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from slipstream import decision
from slipstream.errors import UsageError
from slipstream.runtime.cpu_pool import CPUPool, require_pool
from slipstream.runtime.stream_hint import MultiStreamModuleHint, join_results, shares, split_call
from slipstream.runtime.task import PinnedThread, TaskFuture


def get_default_num_streams(cpu_pool: CPUPool) -> int:
    """What "AUTO" stands for: one stream for each CPU of the pool."""
    return len(require_pool(cpu_pool).core_ids)


class MultiStreamModule(torch.nn.Module):
    """Splits each call over streams, runs them at the same time, and joins their results.

    ``model`` is a module (also a scripted one) or a function; its weights are shared. Each of the
    ``num_streams`` streams has a thread on its own part of ``cpu_pool`` (default: all CPUs that the caller
    may use), consecutive CPUs, the first streams one more where they do not divide. More streams than CPUs
    become as many as CPUs, with a warning.

    ``input_split_hint`` says what is split (default: the first positional argument, along dimension 0): see
    `stream_hint.split_call` for what happens to everything else. ``output_concat_hint`` says how the
    results are joined (default: one tensor, along dimension 0); ``concat_output=False`` gives the list of
    results instead, one for each stream that had work.

    Calls may be made from several threads at once. They run under the caller's modes (gradients, inference,
    autocast). An exception of a stream is raised when all streams have ended, that of the lowest stream
    first. In training, layers that look at the whole batch (batch norm) see their part of it.

    Raises UsageError for arguments that are not allowed, at construction; a call raises what `split_call` and
    `join_results` raise.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_streams: int | str = "AUTO",
        cpu_pool: CPUPool | None = None,
        concat_output: bool = True,
        input_split_hint: MultiStreamModuleHint | None = None,
        output_concat_hint: MultiStreamModuleHint | None = None,
    ) -> None:
        super().__init__()
        if not callable(model):
            raise UsageError.of("model", repr(model), "not a module or function", "pass what is to be called")
        self.model = model
        self.cpu_pool = CPUPool() if cpu_pool is None else require_pool(cpu_pool)
        self.concat_output = concat_output
        self.input_split_hint = _hint("input_split_hint", input_split_hint)
        self.output_concat_hint = _hint("output_concat_hint", output_concat_hint)
        self._result_hint = self.output_concat_hint.of_result()
        self.num_streams = _stream_count(num_streams, self.cpu_pool)
        self._threads = _threads(self.cpu_pool, self.num_streams)

    def get_stream_number(self) -> int:
        """How many streams there are."""
        return self.num_streams

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        calls = split_call(self.input_split_hint, args, kwargs, self.num_streams)
        threads = self._threads[: len(calls)]
        results = _results([thread.submit(self.model, *a, **k) for thread, (a, k) in zip(threads, calls, strict=True)])
        return join_results(self._result_hint, results) if self.concat_output else results


class _MultiStreamBenchmarkModule(torch.nn.Module):
    """Every stream runs the same whole call; the result is stream 0's. For measuring throughput."""

    def __init__(self, model: Callable[..., Any], num_streams: int | str = "AUTO", cpu_pool: CPUPool | None = None) -> None:
        super().__init__()
        self.model = model
        self.cpu_pool = CPUPool() if cpu_pool is None else require_pool(cpu_pool)
        self.num_streams = _stream_count(num_streams, self.cpu_pool)
        self._threads = _threads(self.cpu_pool, self.num_streams)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _results([thread.submit(self.model, *args, **kwargs) for thread in self._threads])[0]


def _hint(argument: str, hint: object) -> MultiStreamModuleHint:
    if hint is None:
        return MultiStreamModuleHint(0)
    if not isinstance(hint, MultiStreamModuleHint):
        raise UsageError.of(argument, repr(hint), "not a MultiStreamModuleHint", "pass MultiStreamModuleHint(0)")
    return hint


def _stream_count(num_streams: object, cpu_pool: CPUPool) -> int:
    most = get_default_num_streams(cpu_pool)
    if num_streams == "AUTO":
        decision.log.note("MultiStreamModule: streams", True, f"{most}, one for each CPU of {cpu_pool}")
        return most
    if isinstance(num_streams, bool) or not isinstance(num_streams, int) or num_streams < 1:
        raise UsageError.of("num_streams", repr(num_streams), 'not a whole number from 1 up, nor "AUTO"')
    if num_streams > most:
        reason = f"{most} instead of {num_streams}: {cpu_pool} has no more CPUs"
        decision.log.note("MultiStreamModule: streams", False, reason)
        warnings.warn(f"MultiStreamModule: {reason}; lower num_streams or widen the pool", stacklevel=3)
    return min(num_streams, most)


def _threads(cpu_pool: CPUPool, count: int) -> list[PinnedThread]:
    """One thread for each stream, on consecutive CPUs of the pool."""
    cpus = iter(cpu_pool.core_ids)
    sizes = shares(len(cpu_pool.core_ids), count)
    return [PinnedThread(CPUPool([next(cpus) for _ in range(size)])) for size in sizes]


def _results(futures: list[TaskFuture]) -> list[Any]:
    """The results in order, or the first exception; either way nothing runs on when this returns."""
    for future in futures:
        future.wait()
    return [future.get() for future in futures]
