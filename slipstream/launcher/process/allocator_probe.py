# SPDX-License-Identifier: Apache-2.0
"""Which allocator is fastest here at what tensors do: large blocks, allocated, written, freed, again and again.

Measured once a machine in processes of their own, each with its library preloaded; the answer is kept in the
cache folder. A library that fails is out.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from slipstream import env

ROUNDS = 3
WORTH_IT = 0.9
"""Another allocator must take at most this part of the system's time: less is within the noise of one probe."""

# Sizes in KB of a layer's activations at small and larger batches. Writing one byte a page is what makes the
# kernel supply the page, which is the cost that allocators differ in.
PROBE = """
import ctypes, time
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
start = time.perf_counter()
for _ in range(15):
    for kilobytes in (64, 512, 3072, 12288):
        first, second = libc.malloc(kilobytes * 1024), libc.malloc(kilobytes * 1024)
        libc.memset(first, 1, kilobytes * 1024)
        libc.memset(second, 1, kilobytes * 1024)
        libc.free(first)
        libc.free(second)
print(time.perf_counter() - start)
"""


def best_allocator(paths: Mapping[str, str]) -> tuple[str, str]:
    """(`default` or a key of ``paths``, the reason with its figures)."""
    key = _key(paths)
    cache = _cache_file()
    known = _read(cache)
    if key not in known:
        known[key] = measure(paths)
        _write(cache, known)
    return judge(known[key])


def judge(seconds: Mapping[str, float]) -> tuple[str, str]:
    """The choice for measured times; ``default`` must be among them."""
    system = seconds["default"]
    fastest = min(seconds, key=lambda name: seconds[name])
    figures = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    if fastest != "default" and seconds[fastest] <= WORTH_IT * system:
        return fastest, f"fastest of those here at allocating large blocks ({figures})"
    return "default", f"no other here is clearly faster at allocating large blocks ({figures})"


def measure(paths: Mapping[str, str]) -> dict[str, float]:
    """The best of a few runs each, taken in turn."""
    candidates = {"default": "", **paths}
    seconds: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, path in candidates.items():
            taken = _run(path)
            if taken is not None:
                seconds[name] = min(taken, seconds.get(name, taken))
    seconds.setdefault("default", float("inf"))
    return seconds


def _run(library: str) -> float | None:
    environment = {"LD_PRELOAD": library, "PATH": os.defpath}
    try:
        ended = subprocess.run(
            [sys.executable, "-S", "-E", "-c", PROBE], env=environment, capture_output=True, timeout=20, check=True
        )
        return float(ended.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _key(paths: Mapping[str, str]) -> str:
    files = [f"{path}@{os.stat(path).st_mtime_ns}" for path in sorted(paths.values())]
    return "|".join([platform.node(), str(os.cpu_count()), *files])


def _cache_file() -> str:
    folder = env.read(env.CACHE) or os.path.expanduser("~/.cache/slipstream")
    return os.path.join(folder, "allocators.json")


def _read(path: str) -> dict[str, dict[str, float]]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: str, content: Mapping[str, Mapping[str, float]]) -> None:
    with suppress(OSError):  # a read-only home: it is measured again next time
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, path)
