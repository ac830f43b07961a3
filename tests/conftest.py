# SPDX-License-Identifier: Apache-2.0
"""No test reads what this user's own runs measured, and none writes to it."""

import pytest

from slipstream import env


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Shared by the whole session, so that what takes long, such as trying allocators, is measured once."""
    before = env.read(env.CACHE)
    env.write(env.CACHE, str(tmp_path_factory.mktemp("cache")))
    yield
    env.write(env.CACHE, before or "")
