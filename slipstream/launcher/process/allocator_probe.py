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
for _ in range(5):
    for kilobytes in (64, 512, 3072, 12288):
        first, second = libc.malloc(kilobytes * 1024), libc.malloc(kilobytes * 1024)
        libc.memset(first, 1, kilobytes * 1024)
        libc.memset(second, 1, kilobytes * 1024)
        libc.free(first)
        libc.free(second)
print(time.perf_counter() - start)
"""


def best_allocator(candidates: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """(a key of ``candidates``, the reason with its figures). Each value is what its process has in its environment."""
    key = _key(candidates)
    cache = _cache_file()
    known = _read(cache)
    if key not in known:
        known[key] = measure(candidates)
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


def measure(candidates: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """The best of a few runs each, taken in turn; without those that fail."""
    seconds: dict[str, float] = {}
    failed: set[str] = set()
    for _ in range(ROUNDS):
        for name, variables in candidates.items():
            taken = None if name in failed else _run(variables)
            if taken is None:
                failed.add(name)
            else:
                seconds[name] = min(taken, seconds.get(name, taken))
    kept = {name: value for name, value in seconds.items() if name not in failed}
    return {"default": float("inf"), **kept}


def _run(variables: Mapping[str, str]) -> float | None:
    """Seconds; None where the process fails or the loader complains of the library."""
    try:
        ended = subprocess.run(
            [sys.executable, "-S", "-E", "-c", PROBE],
            env={"PATH": os.defpath, **variables},
            capture_output=True,
            timeout=20,
            check=True,
        )
        return None if ended.stderr else float(ended.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _key(candidates: Mapping[str, Mapping[str, str]]) -> str:
    """The machine, and the very files that were measured."""
    parts = [platform.node(), platform.release(), str(os.cpu_count())]
    for name, variables in sorted(candidates.items()):
        library = variables.get("LD_PRELOAD", "")
        stamp = os.stat(library).st_mtime_ns if library else 0
        parts.append(f"{name}={library}@{stamp}")
    return "|".join(parts)


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
