# SPDX-License-Identifier: Apache-2.0
"""What tests of several parts share. No test reads what this user's own runs measured, and none writes to it."""

import pytest

from slipstream import env


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Shared by the whole session, so that what takes long, such as trying allocators, is measured once."""
    before = env.read(env.CACHE)
    env.write(env.CACHE, str(tmp_path_factory.mktemp("cache")))
    yield
    env.write(env.CACHE, before or "")


@pytest.fixture
def float16_level():
    """The level that multiplies bfloat16 as float16."""
    from slipstream.kernels import native  # here, since it imports torch: tests of the launcher do without

    if native.FLOAT16 not in native.levels():
        pytest.skip("this machine has no AVX512_FP16")
    with native.level(native.FLOAT16):
        yield
