# SPDX-License-Identifier: Apache-2.0
"""The OpenMP runtime that torch runs on, reached through ctypes: whichever one the process loaded.

OpenMP keeps a team of threads and a thread count for each thread that starts parallel work. Both are read
and set here for the calling thread alone, which `torch.set_num_threads` cannot do: that one also changes
MKL's count for the whole process. Which CPUs the team runs on is set in `cpu_pool.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

from slipstream.errors import SlipstreamError

# void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags): what gcc makes of
# `#pragma omp parallel`. LLVM's and Intel's runtimes offer it too, for code compiled by gcc, such as torch.
_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class OpenMP:
    """The calls that are needed of the loaded OpenMP runtime, and of MKL where torch is built with it."""

    def __init__(self, find: Callable[[str], Any]) -> None:
        self._parallel = find("GOMP_parallel")
        self._parallel.argtypes = (_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._parallel.restype = None
        self._set_num_threads = find("omp_set_num_threads")
        self._set_num_threads.argtypes = (ctypes.c_int,)
        self._set_num_threads.restype = None
        self._get_max_threads = find("omp_get_max_threads")
        self._get_thread_num = find("omp_get_thread_num")
        # MKL follows OpenMP's count until someone calls torch.set_num_threads, which gives it a count of its
        # own for all threads; its thread-local count goes before that one. Its C spelling is in capitals.
        try:
            self._mkl_set_local = find("MKL_Set_Num_Threads_Local")
        except AttributeError:
            self._mkl_set_local = None

    def threads(self) -> int:
        """How many threads the next parallel region of the calling thread gets."""
        return int(self._get_max_threads())

    def set_threads(self, count: int, mkl_count: int | None = None) -> tuple[int, int]:
        """Give the calling thread another thread count.

        Returns what held before, so that ``set_threads(*before)`` puts it back: OpenMP's count, and MKL's own
        for this thread, where 0 stands for "as the process". ``mkl_count`` of None is ``count``.
        """
        before = self.threads()
        self._set_num_threads(count)
        if self._mkl_set_local is None:
            return before, 0
        return before, int(self._mkl_set_local(count if mkl_count is None else mkl_count))

    def team(self) -> tuple[int, ...]:
        """The kernel's ids of the calling thread's team, by OpenMP number; the calling thread is the first.

        Starts those that do not run yet: they inherit the affinity that the calling thread has now.
        """
        count = self.threads()
        if count == 1:
            return (threading.get_native_id(),)
        ids: dict[int, int] = {}

        def note(_: int | None) -> None:
            ids[self._get_thread_num()] = threading.get_native_id()

        self._parallel(_REGION(note), None, count, 0)
        return tuple(ids[number] for number in sorted(ids))


@functools.cache
def of_torch() -> OpenMP:
    """The OpenMP runtime that torch's own parallel loops run on; imports torch.

    Raises SlipstreamError where torch is built without OpenMP.
    """
    import torch

    # In the order in which the dynamic linker resolves torch's own calls: what is preloaded or global, then
    # the libraries that torch itself brings.
    scopes = (ctypes.CDLL(None), ctypes.CDLL(torch._C.__file__))

    def find(name: str) -> Any:
        for scope in scopes:
            with contextlib.suppress(AttributeError):
                return scope[name]
        raise AttributeError(name)

    try:
        return OpenMP(find)
    except AttributeError as error:
        missing = f"no function {error} in this process"
        raise SlipstreamError(f"torch {torch.__version__} here runs without OpenMP ({missing})") from None


def start_of_thread() -> None:
    """Let torch set up the calling thread's count now: at its first use it would overwrite one set before."""
    import torch

    torch.get_num_threads()
