# SPDX-License-Identifier: Apache-2.0
"""The machine and the software, named by what they can do and not by what they are called."""

from __future__ import annotations

import os
import pathlib
import platform
from importlib import metadata
from typing import Any

# (words of /proc/cpuinfo that must all be there, the name that people use)
FEATURES = (
    (("avx2", "fma"), "AVX2"),
    (("avx512f", "avx512bw", "avx512vl"), "AVX-512"),
    (("avx512_vnni",), "AVX-512 VNNI"),
    (("avx512_bf16",), "AVX-512 BF16"),
    (("avx512_fp16",), "AVX-512 FP16"),
    (("amx_tile", "amx_bf16"), "AMX BF16"),
    (("amx_tile", "amx_int8"), "AMX INT8"),
)


def features_in(cpuinfo: str) -> tuple[list[str], list[str]]:
    """(features that are there, features that are not) by the first ``flags`` line of /proc/cpuinfo."""
    line = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    words = set(line.partition(":")[2].split())
    there = [name for needs, name in FEATURES if words.issuperset(needs)]
    return there, [name for _, name in FEATURES if name not in there]


def describe(held_to: str | None = None) -> dict[str, Any]:
    """Plain values for the head of a table and for JSON. ``held_to`` is the level that everybody was held to, if any."""
    there, absent = features_in(pathlib.Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "features": there,
        "not_there": absent,
        "memory_gb": round(memory / 1e9),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "kernels": _kernel_level(),
        "held_to": held_to,
    }


def in_words(facts: dict[str, Any]) -> str:
    """One line."""
    held = f"; everybody held to the instructions of {level}" if (level := facts.get("held_to")) else ""
    return (
        f"{facts['cpus']} CPUs with {', '.join(facts['features']) or 'no vector instructions'} "
        f"(without {', '.join(facts['not_there']) or 'nothing'}), {facts['memory_gb']} GB; Python {facts['python']}, "
        f"torch {facts['torch']}, transformers {facts['transformers']}; {facts['kernels']}{held}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _kernel_level() -> str:
    from slipstream.kernels import native

    return native.reason()
