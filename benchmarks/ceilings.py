# SPDX-License-Identifier: Apache-2.0
"""Compile `probe/probe.cpp` and run it: the machine's ceilings, measured in the same sitting as everything else."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

SOURCE = pathlib.Path(__file__).parent / "probe" / "probe.cpp"
BINARY = pathlib.Path(__file__).parents[1] / "build" / "probe"

Figures = dict[str, float | None]

UNITS = {
    "fma_float32_tflops": ("float32 multiply-add", "TFLOP/s"),
    "fma_float16_tflops": ("float16 multiply-add", "TFLOP/s"),
    "dot_bfloat16_tflops": ("bfloat16 dot product (AVX-512)", "TFLOP/s"),
    "amx_bfloat16_tflops": ("bfloat16 AMX tiles, registers only", "TFLOP/s"),
    "amx_bfloat16_fed_tflops": ("bfloat16 AMX tiles, loaded from L1", "TFLOP/s"),
    "read_gb_per_s": ("reading memory", "GB/s"),
}


def compiled_probe() -> pathlib.Path | None:
    """The probe's program, built where it is older than its source; None without a C++ compiler."""
    if BINARY.exists() and BINARY.stat().st_mtime >= SOURCE.stat().st_mtime:
        return BINARY
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return None
    BINARY.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BINARY.parent) as folder:
        fresh = pathlib.Path(folder) / "probe"
        subprocess.run([compiler, "-O3", "-std=c++17", "-pthread", str(SOURCE), "-o", str(fresh)], check=True)
        fresh.replace(BINARY)  # in one step: another process may be running the old one
    return BINARY


def measure(threads: int, *, seconds: float = 1.0, level: str | None = None) -> list[Figures]:
    """The figures for one thread and for ``threads``, by no instructions beyond those of ``level`` (None: of any).

    An empty list where the probe cannot be compiled.
    """
    probe = compiled_probe()
    if probe is None:
        return []
    counts, held = sorted({1, threads}), [level] if level else []
    outputs = [
        subprocess.run([str(probe), str(count), str(seconds), *held], check=True, capture_output=True, text=True).stdout
        for count in counts
    ]
    return [json.loads(output) for output in outputs]
