# SPDX-License-Identifier: Apache-2.0
"""Every environment variable that Slipstream reads, a constant and a docstring each.

`os.environ` is read here and in `launcher/environment.py`, nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

ISA = "SLIPSTREAM_ISA"
"""Force an instruction-set level not above the machine's own: baseline, avx2, avx512, avx512_vnni,
avx512_bf16_widened, avx512_bf16, avx512_fp16, amx."""

NATIVE = "SLIPSTREAM_NATIVE"
"""`0` leaves the native extension unloaded, so that the plain-torch twins serve; anything else loads it."""

DISABLE = "SLIPSTREAM_DISABLE"
"""`1` switches the codeless engine off in this process and its children, even under `ipexrun --auto_ipex`."""

AUTOPATCH = "SLIPSTREAM_AUTOPATCH"
"""Set by the launcher: JSON with the settings of the codeless engine (dtype, report folder, interpreter prefix …)."""

REPORT_DIR = "SLIPSTREAM_REPORT_DIR"
"""Set by the launcher: the folder into which each process writes its decisions at exit, one JSON file a process."""

LOG = "SLIPSTREAM_LOG"
"""Where the codeless engine writes its own failures: `stderr`, a file name, or unset for nowhere."""

ONLY = "SLIPSTREAM_ONLY"
"""Patterns of module names (fnmatch, comma-separated), also without the model's class in front: only these are optimized."""

SKIP = "SLIPSTREAM_SKIP"
"""Patterns of module names, as for SLIPSTREAM_ONLY: these are left alone."""

CHECK_OUTPUT = "SLIPSTREAM_CHECK_OUTPUT"
"""Set for the command of `slipstream bisect --check`: the file with what the script printed."""

CHECK_PLAIN = "SLIPSTREAM_CHECK_PLAIN"
"""Set for the command of `slipstream bisect --check`: the file with what the plain run printed."""

CHECK_EXIT_CODE = "SLIPSTREAM_CHECK_EXIT_CODE"
"""Set for the command of `slipstream bisect --check`: the script's exit code."""

CACHE = "SLIPSTREAM_CACHE"
"""Folder for results of measurements that outlive a process (which kernels and which allocator are the faster ones here);
default `~/.cache/slipstream`. `off` (or `0`, `no`, `false`): none, and each process measures for itself."""

GLIBC_TUNABLES = "GLIBC_TUNABLES"
"""glibc's own, read because speed depends on what its malloc was told: choices are kept apart by it."""

MALLOC_CONF = "MALLOC_CONF"
"""The same of jemalloc."""

PLAN = "SLIPSTREAM_PLAN"
"""Set by the launcher: the instance that this process belongs to, as JSON (index, cpus, nodes, threads)."""

RANK_STREAMS = "SLIPSTREAM_RANK_STREAMS"
"""Set by the launcher for ranks: the folder with the named pipes that take each rank's output to it."""

PRELOAD_BEFORE = "SLIPSTREAM_PRELOAD_BEFORE"
"""Set by the launcher where it preloads a library: what LD_PRELOAD was, so that child programs get just that."""


def with_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a program that it starts, with these besides."""
    return {**os.environ, **variables}


def read(name: str) -> str | None:
    """The value of a variable, or None where it is unset or empty."""
    return os.environ.get(name) or None


def is_on(name: str, *, default: bool = False) -> bool:
    """Whether a switch is on: `0`, `false`, `no`, `off` are off, any other value is on, unset is ``default``."""
    value = read(name)
    return default if value is None else value.strip().lower() not in {"0", "false", "no", "off"}


def remove(name: str) -> None:
    """Take a variable away, so that processes started from here on do not inherit it."""
    os.environ.pop(name, None)


def write(name: str, value: str) -> None:
    """Set a variable for this process and those that it starts from here on; empty text takes it away."""
    if value:
        os.environ[name] = value
    else:
        remove(name)
