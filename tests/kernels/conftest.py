# SPDX-License-Identifier: Apache-2.0
"""Every kernel test takes a level: each one this machine runs, the emulated tiles, or the twins where nothing is built."""

import contextlib

import pytest
import torch

from slipstream.kernels import native
from slipstream.runtime import isa

INT16 = ("avx2", native.PLAIN_AVX2, "avx512_vnni")
SCALED = (*INT16, native.FLOAT16)
"""Levels that multiply bfloat16 weights scaled, in linear and all that is built on it."""
INT16_WINOGRAD = (*INT16, "avx512_bf16")
SCALED_WINOGRAD = (*INT16_WINOGRAD, native.FLOAT16)
"""Those that do in minimal filtering."""


def levels_under_test():
    forced = native.active_level()
    if not native.available():
        return ["plain"]
    if forced != native.default_level():
        return [forced]
    plain = [native.PLAIN_AVX2] if "avx_vnni" in isa.cpu_flags() and "avx2" in native.levels() else []
    return [*native.levels(), native.EMULATED, *plain]


# Sizes in the tests are chosen so that this much makes several blocks of them, whatever cache the machine has.
CACHE = 1024 * 1024


@pytest.fixture(params=levels_under_test())
def level(request):
    if request.param == "plain":
        yield "plain"
        return
    with native.level(request.param), native.blocks_for_cache(CACHE):
        yield request.param


def levels_that_scale(levels):
    """Those of ``levels`` that are under test, for a fixture's parameters; one to skip where there are none."""
    return [level for level in levels_under_test() if level in levels] or ["none"]


@contextlib.contextmanager
def scaling_level(name):
    """What a level that scales bfloat16 makes of it, while it is in use."""
    if name == "none":
        pytest.skip("this machine has no level that scales bfloat16")
    with native.level(name):
        yield torch.float16 if name == native.FLOAT16 else torch.int16


@pytest.fixture(params=levels_that_scale(SCALED))
def scaled_to(request):
    with scaling_level(request.param) as dtype:
        yield dtype


@pytest.fixture(params=levels_that_scale(SCALED_WINOGRAD))
def winograd_scaled_to(request):
    with scaling_level(request.param) as dtype:
        yield dtype
