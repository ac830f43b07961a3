# SPDX-License-Identifier: Apache-2.0
"""Which allocator is fastest here at what tensors do: large blocks, allocated, written, freed, again and again.

Measured once a machine in processes of their own, each with its library preloaded; the answer is kept in the
cache folder, if there is one. A library that fails is out.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from slipstream.runtime import cache_folder

ROUNDS = 3
LIMIT = 10.0
"""Seconds for all of it. Half a second is usual; it is ten on a machine that is busy with something else."""

PATIENCE = 1.0
"""Seconds after which whoever waits is told what for."""

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
    for kilobytes in (64, 512, 3072, 12288, 49152):
        first, second = libc.malloc(kilobytes * 1024), libc.malloc(kilobytes * 1024)
        libc.memset(first, 1, kilobytes * 1024)
        libc.memset(second, 1, kilobytes * 1024)
        libc.free(first)
        libc.free(second)
print(time.perf_counter() - start)
"""


Candidates = Mapping[str, Mapping[str, str]]


def best_allocator(candidates: Candidates, say: Callable[[str], None] | None = None) -> tuple[str, str]:
    """(a key of ``candidates``, the reason with its figures). Each value is what its process has in its environment.

    Whatever goes wrong, the answer is the system's allocator: no launch fails for want of a measurement.
    ``say`` gets a line where the user waits for longer than a moment.
    """
    try:
        seconds = _known(candidates)
        if seconds is None:
            with _a_word_to_who_waits(say):
                seconds = measure(candidates)
    except Exception as error:  # noqa: BLE001 - a measurement that fails must not keep a program from its start
        return "default", f"could not be measured: {error!r}"
    if "default" not in seconds:
        return "default", f"could not be measured: {sys.executable} failed, or took longer than {LIMIT:g} s"
    return judge(seconds)


def known_allocator(candidates: Candidates) -> tuple[str, str]:
    """The same out of the cache; nothing is started. Where nothing is known: the system's, and what is still to be measured."""
    try:
        seconds = _known(candidates)
    except Exception as error:  # noqa: BLE001 - as above
        return "default", f"what was measured cannot be read: {error!r}"
    if seconds is None:
        return "default", f"not measured yet: the first run here does so, and takes the fastest of {', '.join(candidates)}"
    return judge(seconds)


def judge(seconds: Mapping[str, float]) -> tuple[str, str]:
    """The choice for measured times; ``default`` must be among them."""
    system = seconds["default"]
    fastest = min(seconds, key=lambda name: seconds[name])
    figures = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    if fastest != "default" and seconds[fastest] <= WORTH_IT * system:
        return fastest, f"fastest of those here at allocating large blocks ({figures})"
    return "default", f"no other here is clearly faster at allocating large blocks ({figures})"


def measure(candidates: Candidates) -> dict[str, float]:
    """The best of a few runs each, taken in turn, without those that fail; kept unless the time ran out."""
    seconds: dict[str, float] = {}
    failed: set[str] = set()
    end = time.monotonic() + LIMIT
    for name, variables in [*candidates.items()] * ROUNDS:
        left = end - time.monotonic()
        taken = None if name in failed or left <= 0 else _run(variables, timeout=left)
        if taken is not None:
            seconds[name] = min(taken, seconds.get(name, taken))
        elif left > 0:
            failed.add(name)
    kept = {name: value for name, value in seconds.items() if name not in failed}
    if "default" in kept and time.monotonic() < end:
        cache = _cache_file()
        if cache is not None:
            _write(cache, {**_read(cache), _key(candidates): kept})
    return kept


@contextmanager
def _a_word_to_who_waits(say: Callable[[str], None] | None) -> Iterator[None]:
    text = (
        f"measuring which memory allocator is fastest, once on this machine and for at most {LIMIT:g} s; "
        "--memory-allocator default leaves it out"
    )
    timer = threading.Timer(PATIENCE, say or (lambda text: None), (text,))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # the launcher forks soon, and must be one thread then


def _run(variables: Mapping[str, str], *, timeout: float) -> float | None:
    """Seconds; None where the process fails or the loader complains of the library."""
    try:
        ended = subprocess.run(
            [sys.executable, "-S", "-E", "-c", PROBE],
            env={"PATH": os.defpath, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=True,
        )
        return None if ended.stderr else float(ended.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _known(candidates: Candidates) -> dict[str, float] | None:
    """What was measured of these before; None also where the cache holds something else."""
    seconds = _read(_cache_file()).get(_key(candidates))
    if not isinstance(seconds, dict) or "default" not in seconds or not set(seconds) <= set(candidates):
        return None
    return seconds if all(isinstance(value, float) for value in seconds.values()) else None


def _key(candidates: Candidates) -> str:
    """The machine, the very files that were measured, and their settings."""
    parts = [platform.node(), platform.release(), str(os.cpu_count())]
    for name, variables in sorted(candidates.items()):
        library = variables.get("LD_PRELOAD", "")
        stamp = os.stat(library).st_mtime_ns if library else 0
        parts.append(f"{name}={json.dumps(variables, sort_keys=True)}@{stamp}")
    return "|".join(parts)


def _cache_file() -> str | None:
    folder = cache_folder.folder()
    return None if folder is None else os.path.join(folder, "allocators.json")


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: str, content: Mapping[str, Any]) -> None:
    with suppress(OSError):  # a read-only home: it is measured again next time
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, path)
