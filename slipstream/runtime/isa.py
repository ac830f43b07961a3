# SPDX-License-Identifier: Apache-2.0
"""Instruction-set levels: their names, what each needs, which this machine has, and which is in use.

The native extension detects the same levels by cpuid (`csrc/isa/`); this file answers without it, from
`/proc/cpuinfo`, so that the launcher, `slipstream doctor` and the tests can ask for nothing.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from typing import NamedTuple

from slipstream import env
from slipstream.errors import UsageError

LEVELS = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16_widened", "avx512_bf16", "avx512_fp16", "amx")
"""Every level, ascending and cumulative: a machine has a level only if it has all those before it."""

NEEDS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16_widened": ("avx512_bf16",),
    "avx512_bf16": (),
    "avx512_fp16": ("avx512_fp16",),
    "amx": ("amx_tile", "amx_bf16", "amx_int8"),
}
"""The flags that each level adds to the one before it, as the kernel spells them in `/proc/cpuinfo`.

`avx512_bf16` needs no more than `avx512_bf16_widened`: the one multiplies bfloat16 by dot products, the other widens it to
float32 first. `avx512_fp16` multiplies it as scaled float16. It depends on the processor which of them is the fastest
(`csrc/isa/level.h`)."""

# asm/prctl.h and asm/unistd_64.h. Tile data is the 18th part of the extended state, 8 KiB a thread: too much
# to give to every process, so Linux 5.16 and later hand it to those that ask.
_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


class ChosenLevel(NamedTuple):
    """The level in use and why it is that one."""

    level: str
    reason: str


def is_x86_64() -> bool:
    """Whether this is a 64-bit process on x86-64; all levels above the baseline are of that family."""
    return platform.machine().lower() in {"x86_64", "amd64"} and sys.maxsize > 2**32


def _told(*names: str) -> str:
    """What `/proc/cpuinfo` says of the first processor, in the first line under one of these names; empty where nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in names and value.strip():
                    return value.strip()
    except OSError:
        pass
    return ""


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The flags of the first processor in `/proc/cpuinfo`; empty off x86-64 or where it cannot be read.

    Linux offers user programs only what all processors of a machine share, so one of them speaks for all.
    """
    return frozenset(_told("flags").split()) if is_x86_64() else frozenset()


@functools.cache
def cpu_vendor() -> str:
    """The first processor's vendor as its kernel tells it, such as `GenuineIntel`; empty where it does not."""
    return _told("vendor_id")


def cpu_model() -> str | None:
    """The first processor's name as its kernel tells it, or None where it does not."""
    return _told("model name", "Model", "cpu") or platform.processor() or None


def has_fast_dot_products() -> bool:
    """Whether dot products of bfloat16 are as fast as products of float16, and then to be preferred: they sum in float32.

    Intel's take two cycles, in which four multiply-adds of float16 can start (`csrc/isa/level.h`).
    """
    return cpu_vendor() != "GenuineIntel"


@functools.cache
def amx_refusal() -> str:
    """Ask the kernel for the tile registers: an empty string when it grants them, else its refusal in words.

    The permission belongs to the process and its forked children; asking again is harmless.
    """
    if not is_x86_64():
        return f"the tile registers exist on x86-64 only, and this is {platform.machine()}"
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    if syscall(*map(ctypes.c_long, (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA))) == 0:
        return ""
    return f"the kernel refuses the tile registers: {os.strerror(ctypes.get_errno())}"


def available_levels() -> tuple[str, ...]:
    """The levels that this machine has and its kernel grants, ascending; `baseline` is always the first."""
    return tuple(level for level in LEVELS if not why_not(level))


def why_not(level: str) -> str:
    """The sentence that says what keeps this machine from a level; empty when the level is available.

    Raises UsageError for a name that is no level.
    """
    if level not in LEVELS:
        raise UsageError.of("level", level, LEVELS)
    if level == "baseline":
        return ""
    if not is_x86_64():
        return f"{level} needs an x86-64 CPU, and this is {platform.machine()}"
    below = LEVELS[1 : LEVELS.index(level) + 1]
    missing = [flag for step in below for flag in NEEDS[step] if flag not in cpu_flags()]
    if missing:
        return f"{level} needs {', '.join(missing)}, which this CPU or its hypervisor does not offer"
    return f"{level}: {refusal}" if level == "amx" and (refusal := amx_refusal()) else ""


def chosen_level() -> ChosenLevel:
    """The level in use: the highest available that is not slower than the one before it, or what SLIPSTREAM_ISA asks for.

    Raises UsageError when SLIPSTREAM_ISA is no level or one that this machine does not have.
    """
    levels = available_levels()
    asked = env.read(env.ISA)
    if asked is None:
        above = LEVELS[len(levels) :]
        reason = f"the highest here; {why_not(above[0])}" if above else "the highest there is"
        if levels[-1] == "avx512_fp16" and has_fast_dot_products():
            fast = "this processor's dot products of bfloat16 are as fast as avx512_fp16, and sum in float32"
            return ChosenLevel("avx512_bf16", f"{fast}; {why_not(above[0])}")
        return ChosenLevel(levels[-1], reason)
    name = asked.strip().lower()
    if name not in levels:
        remedy = why_not(name) if name in LEVELS else f"unset {env.ISA} for the highest that this machine has"
        raise UsageError.of(env.ISA, asked, levels, remedy)
    return ChosenLevel(name, f"{env.ISA} asks for it")
