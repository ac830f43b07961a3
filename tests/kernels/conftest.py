# SPDX-License-Identifier: Apache-2.0
"""Every kernel test takes a level: each one this machine runs, the emulated tiles, or the twins where nothing is built."""

import pytest
import torch

from slipstream.kernels import native
from slipstream.runtime import isa


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


@pytest.fixture(params=[level for level in levels_under_test() if level in native.SCALED] or ["none"])
def scaled_to(request):
    """What a level that scales bfloat16 makes of it, at each of them."""
    if request.param == "none":
        pytest.skip("this machine has no level that scales bfloat16")
    with native.level(request.param):
        yield torch.float16 if request.param == native.FLOAT16 else torch.int16
