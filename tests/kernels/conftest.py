# SPDX-License-Identifier: Apache-2.0
"""Every kernel test takes a level: each one this machine runs, the emulated tiles, or the twins where nothing is built."""

import pytest

from slipstream.kernels import native


def levels_under_test():
    forced = native.active_level()
    if not native.available():
        return ["plain"]
    if forced != native.default_level():
        return [forced]
    return [*native.levels(), native.EMULATED]


# Sizes in the tests are chosen so that this much makes several blocks of them, whatever cache the machine has.
CACHE = 1024 * 1024


@pytest.fixture(params=levels_under_test())
def level(request):
    if request.param == "plain":
        yield "plain"
        return
    with native.level(request.param), native.blocks_for_cache(CACHE):
        yield request.param
