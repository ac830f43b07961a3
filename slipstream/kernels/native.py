# SPDX-License-Identifier: Apache-2.0
"""Loads the native extension once, or keeps the reason why not; tells and sets the instruction-set level in use."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import Literal

import torch

from slipstream import env
from slipstream.errors import NativeUnavailable, UsageError
from slipstream.kernels import fakes

LEVELS = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16_widened", "avx512_bf16", "avx512_fp16", "amx")
"""Ascending; each level includes all before it."""

FLOAT16 = "avx512_fp16"
"""The level that multiplies bfloat16 weights as scaled float16."""

PLAIN_AVX2 = "avx2_plain"
"""Level avx2 as it is on processors without AVX-VNNI: for tests on those that have it, and only when asked for by name."""

WITHOUT_BFLOAT16 = ("avx2", PLAIN_AVX2, "avx512_vnni", "avx512")
"""Levels above the baseline whose processors multiply no bfloat16: what is not made integers is widened; oneDNN emulates it."""

EMULATED = "amx_emulated"
"""The tile kernels on plain C++ tiles: for tests on machines without AMX, and only when asked for by name."""

_SCALED = {"float16": torch.float16, "int16": torch.int16, "bfloat16": torch.bfloat16}

_LIBRARY = pathlib.Path(__file__).parents[1] / "_native.so"


@functools.cache
def _why_not_loaded() -> str | None:
    """None once the extension is loaded, else a sentence."""
    if not env.is_on(env.NATIVE, default=True):
        return f"{env.NATIVE}=0 switches the native extension off"
    if not _LIBRARY.exists():
        return "the native extension was not built (no C++ compiler at installation?); the plain-torch twins serve"
    try:
        torch.ops.load_library(str(_LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"the native extension did not load: {error}"
    try:
        fakes.register()
    except RuntimeError as error:
        return f"the native extension is not of this version ({error}): build it again; the plain-torch twins serve"
    forced = env.read(env.ISA)
    if forced is not None:
        use_level(forced)
    return None


def available() -> bool:
    """Whether native kernels can be called."""
    return _why_not_loaded() is None


def reason() -> str:
    """Why native kernels are, or are not, in use: one sentence."""
    return _why_not_loaded() or f"native kernels at level {active_level()}"


def require() -> None:
    """Raise `NativeUnavailable` where the extension did not load."""
    why = _why_not_loaded()
    if why is not None:
        raise NativeUnavailable(why)


def best_level() -> str:
    """The highest level of this machine; "none" without the extension."""
    return str(torch.ops.slipstream.level("best")) if available() else "none"


def default_level() -> str:
    """The level that is used where none is asked for (see `slipstream.runtime.isa`); "none" without the extension."""
    return str(torch.ops.slipstream.level("default")) if available() else "none"


def active_level() -> str:
    """The level in use; "none" without the extension."""
    return str(torch.ops.slipstream.level("active")) if available() else "none"


def scaled_dtype(of: Literal["linear", "winograd"]) -> torch.dtype:
    """What the level in use makes of bfloat16 weights, scaled: float16, int16, or bfloat16 itself where it scales none.

    ``of`` winograd, minimal filtering may differ from linear, which speaks for all else: integers have the digits for its tiles
    of 4 x 4, also where dot products of bfloat16 are as fast.
    """
    return _SCALED[torch.ops.slipstream.scaled_type(of)] if available() else torch.bfloat16


def levels() -> tuple[str, ...]:
    """The levels that this machine can run, ascending; empty without the extension."""
    return LEVELS[: LEVELS.index(best_level()) + 1] if available() else ()


def use_level(name: str) -> None:
    """Use a level in this process from now on.

    Raises UsageError for an unknown name and for a level above the machine's own.
    """
    known = (*LEVELS, EMULATED, PLAIN_AVX2)
    if name not in known:
        raise UsageError.of(env.ISA, name, known)
    if not torch.ops.slipstream.use_level(name):
        best = str(torch.ops.slipstream.level("best"))
        raise UsageError.of(env.ISA, name, f"this machine runs levels up to {best}", "name one of those or unset it")


def second_level_cache() -> int:
    """Bytes of the second-level cache that kernels choose their blocks by, as the processor tells; 0 without the extension."""
    return int(torch.ops.slipstream.second_level_cache()) if available() else 0


@contextlib.contextmanager
def blocks_for_cache(size: int) -> Iterator[None]:
    """Choose blocks as for a second-level cache of ``size`` bytes for a while (process-wide, so not beside other threads)."""
    require()
    before = second_level_cache()
    torch.ops.slipstream.use_second_level_cache(size)
    try:
        yield
    finally:
        torch.ops.slipstream.use_second_level_cache(before)


@contextlib.contextmanager
def level(name: str) -> Iterator[None]:
    """Use a level for a while (process-wide, so not beside other threads)."""
    require()
    before = active_level()
    use_level(name)
    try:
        yield
    finally:
        use_level(before)
