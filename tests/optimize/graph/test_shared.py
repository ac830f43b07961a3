# SPDX-License-Identifier: Apache-2.0
"""A list or dictionary that is an argument and the model's own at once: a capture would take them for two."""

import pytest
import torch
from torch import nn

from slipstream.optimize.graph.capturing.shared import is_shared
from tests.optimize.graph.conftest import needs_native, settle

CACHE = {}


class Caching(nn.Module):
    """Writes to one name what it reads by another."""

    def __init__(self, cache):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.cache = cache

    def forward(self, x, cache):
        self.cache["last"] = self.first(x)
        return self.second(cache["last"])


class Hooked(nn.Module):
    """As openai-whisper's decoder: hooks fill what later calls are given."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x, cache):
        self.first(x)
        return self.second(cache[self.first])


def hooked():
    model, cache = Hooked().eval(), {}
    model.first.register_forward_hook(lambda module, args, y: cache.update({module: y}))
    return model, cache


def held():
    cache = {"last": torch.zeros(4, 64)}
    return Caching(cache).eval(), cache


def global_name():
    CACHE["last"] = torch.zeros(4, 64)

    class Global(Caching):
        def forward(self, x, cache):
            CACHE["last"] = self.first(x)
            return self.second(cache["last"])

    return Global(None).eval(), CACHE


@needs_native
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [held, hooked, global_name])
def test_what_is_written_by_one_name_is_read_by_the_other(at_once, case):
    model, cache = case()
    at_once("float32")
    root = settle(model, torch.randn(4, 64), cache)
    assert root is None or not root.ways
    for _ in range(3):
        x = torch.randn(4, 64)
        with torch.inference_mode():
            got = model(x, cache)
            wanted = model.second.forward(model.first.forward(x))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_only_the_same_object_counts():
    model, cache = held()
    x = torch.ones(2)
    assert is_shared(model, ((x, cache), {}))
    assert is_shared(model, ((x,), {"states": [x, (cache,)]}))
    assert not is_shared(model, ((x, dict(cache)), {}))
    assert not is_shared(model, ((x, [x]), {"flag": True}))
    assert not is_shared(model, ((x,), {}))
    model.states = [[x], [x]]
    assert is_shared(model, ((model.states[1],), {}))
