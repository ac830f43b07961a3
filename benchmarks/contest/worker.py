# SPDX-License-Identifier: Apache-2.0
"""One contestant as a process that lives through the whole sitting: JSON lines in on stdin, out on stdout.

    {"do": "load", "model": "bert", "prepare": "eager", "dtype": "float32", "threads": 2, "save": "out.npy"}
                                                     -> {"setup_s": 1.2, "calls_s": [0.1, …]}
                                                        getting ready and the first call, each call of warming up
    {"do": "time", "seconds": 1.0, "at_least": 3}    -> {"ms": [3.1, 3.0, …]}
    {"do": "reference", "model": "bert", "save": …}  -> {}                  plain eager float32 of this interpreter
    {"do": "count", "model": "bert"}                 -> {"flop": 1e11}      of matrix products, convolutions and attention
    {"do": "unload"}                                 -> {"holds_mb": 410}   what the process still takes then
    {"do": "quit"}

Any failure comes back as {"error": "…"} and the process stays. It imports nothing of slipstream: where the codeless
engine is on, it came by the environment.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

WARM_UP_CALLS = 2  # after the others' turn the caches are cold and threads asleep


class Worker:
    """What is loaded between two requests."""

    def __init__(self) -> None:
        self.run: Callable[[], Any] | None = None

    def load(
        self, *, model: str, prepare: str, dtype: str, threads: int, save: str, warm_up_s: float = 0.0, warm_up_calls: int = 0
    ) -> dict[str, Any]:
        """Get ready and call once, which is the set-up; then go on calling for a while, and save the last answer."""
        import torch

        from benchmarks.contest import models, preparations

        self.unload()
        torch.set_num_threads(threads)
        built, inputs = models.build(model)
        begin = time.perf_counter()
        run = preparations.BY_NAME[prepare](built, inputs, getattr(torch, dtype), threads)
        output = run()
        seconds = time.perf_counter() - begin
        calls: list[float] = []
        begin = time.perf_counter()
        while len(calls) < warm_up_calls or time.perf_counter() - begin < warm_up_s:
            start = time.perf_counter()
            output = run()
            calls.append(time.perf_counter() - start)
        self.run = run
        self._save(output, save)
        return {"setup_s": seconds, "calls_s": calls}

    def time(self, *, seconds: float, at_least: int) -> dict[str, Any]:
        if self.run is None:
            raise RuntimeError("nothing is loaded")
        for _ in range(WARM_UP_CALLS):
            self.run()
        samples: list[float] = []
        begin = time.perf_counter()
        while len(samples) < at_least or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            self.run()
            samples.append((time.perf_counter() - start) * 1e3)
        return {"ms": samples}

    def reference(self, *, model: str, save: str) -> dict[str, Any]:
        import torch

        from benchmarks.contest import models, preparations

        self._save(preparations.eager(*models.build(model), torch.float32, 0)(), save)
        return {}

    def count(self, *, model: str) -> dict[str, Any]:
        import torch

        from benchmarks.contest import models, preparations, products

        return {"flop": products.count(preparations.eager(*models.build(model), torch.float32, 0))}

    def unload(self) -> dict[str, Any]:
        self.run = None
        gc.collect()
        return {"holds_mb": held_bytes() / 1e6}

    @staticmethod
    def _save(output: Any, path: str) -> None:
        import numpy

        from benchmarks.contest import preparations

        numpy.save(path, preparations.first_tensor(output).detach().float().numpy())


def held_bytes() -> int:
    """This process's memory, what was freed having been given back to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    # Libraries print to stdout as they like; the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    worker = Worker()
    acts = {"load": worker.load, "time": worker.time, "reference": worker.reference, "count": worker.count,
            "unload": worker.unload}  # fmt: skip
    for line in sys.stdin:
        request = json.loads(line)
        act = request.pop("do")
        if act == "quit":
            return
        try:
            answer = acts[act](**request)
        except Exception as error:  # noqa: BLE001  # whatever a contestant cannot do is its result, and the sitting goes on
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
