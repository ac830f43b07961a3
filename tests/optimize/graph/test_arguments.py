# SPDX-License-Identifier: Apache-2.0
"""Arguments are bound as inspect binds them; guards ask for hooks that run, and for none that cannot."""

import inspect

import pytest
import torch
from torch import nn

from slipstream.optimize.graph.capturing.arguments import Arguments
from tests.optimize.graph.conftest import needs_native, settle

SIGNATURES = [
    lambda self, x: None,
    lambda self, x, y=2, *, z=3: None,
    lambda self, x=1, **kwargs: None,
    lambda self, x, /, y=2: None,
    lambda self, *args, **kwargs: None,
    lambda self, *, x: None,
]

CALLS = [
    ((), {}), ((1,), {}), ((), {"x": 1}), ((1,), {"x": 1}), ((1, 2), {}), ((1, 2, 3), {}), ((1,), {"y": 4, "z": 5}),
    ((), {"x": 1, "other": 2}), ((1,), {"kwargs": 3}), ((), {"self": 1, "x": 2}), ((), {"other": 1}),
]  # fmt: skip


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: str(inspect.signature(function)))
@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_as_inspect_binds(function, args, kwargs):
    arguments, module = Arguments(function), nn.Module()
    try:
        bound = inspect.signature(function).bind(module, *args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            arguments.bind(module, args, kwargs)
        return
    bound.apply_defaults()
    assert arguments.bind(module, args, kwargs) == dict(bound.arguments)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.last(self.first(x).relu())


@needs_native
def test_a_forward_hook_on_a_layer_is_seen_and_one_of_the_backward_pass_does_nothing(at_once):
    model, x = Net().eval(), torch.randn(8, 32)
    at_once("float32")
    root = settle(model, x)
    way = root.ways[0]
    values = root.arguments.bind(model, (x,), {})
    with torch.inference_mode():
        assert way.holds(values)
        model.first.register_full_backward_hook(lambda *_: None)
        assert way.holds(values)
        wanted = model(x)
        for register in (model.first.register_forward_hook, model.first.register_forward_pre_hook):
            for settings in ({}, {"with_kwargs": True}):
                hook = register(lambda *_: None, **settings)
                assert not way.holds(values)
                hook.remove()
                assert way.holds(values)
        model.first.register_forward_hook(lambda module, args, y: y + 100)
        assert not torch.allclose(model(x), wanted)
