# SPDX-License-Identifier: Apache-2.0
"""Measure as on an older processor: every contestant is held to the instructions that one has, by the variables that its own
libraries read. What the caches, the memory and the clock do stays this machine's.

Code that asks the processor itself is not held by these. OpenVINO 2026.4 has such: in float32 it kept to AVX-512 without
extensions, but ran beyond AVX2's ceiling when held to that. Must be set before any of those libraries is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from slipstream.runtime import isa

ONEDNN = {
    "avx2": "AVX2",
    "avx512": "AVX512_CORE",
    "avx512_vnni": "AVX512_CORE_VNNI",
    "avx512_bf16_widened": "AVX512_CORE_BF16",
    "avx512_bf16": "AVX512_CORE_BF16",
    "avx512_fp16": "AVX512_CORE_FP16",
}
"""Our level -> oneDNN's name of the same instructions, which OpenVINO's copy of it reads too. `amx` is no older processor's."""


def held_to(level: str) -> Mapping[str, str]:
    """The variables that hold torch, MKL, oneDNN and what is built on them, and ours, to a level of ``ONEDNN``."""
    widest = "avx2" if level == "avx2" else "avx512"
    return {
        "SLIPSTREAM_ISA": level,
        "ONEDNN_MAX_CPU_ISA": ONEDNN[level],
        "ATEN_CPU_CAPABILITY": widest,
        "MKL_ENABLE_INSTRUCTIONS": widest.upper(),
    }


def available() -> tuple[str, ...]:
    """The levels that this machine can be held to, ascending."""
    return tuple(level for level in isa.available_levels() if level in ONEDNN)
