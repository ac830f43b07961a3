# SPDX-License-Identifier: Apache-2.0
"""A model whose graph is captured at once and wins, so that what is tested is its answers."""

import pytest
import torch

from slipstream.kernels import native
from slipstream.optimize.graph import background, schedule, tier
from slipstream.optimize.graph.program import Race

needs_native = pytest.mark.skipif(not native.available(), reason="the graph tier lowers to native kernels")


@pytest.fixture
def at_once(monkeypatch, engine):
    """The second call sets off a capture, and the graph wins every race. Call it to switch the engine on."""
    monkeypatch.setattr(schedule, "CALLS", 1)
    monkeypatch.setattr(schedule, "SMALL_S", 0.0)
    monkeypatch.setattr(schedule, "BESIDE", 1e-9)
    monkeypatch.setattr(schedule, "CALLS_OF_PROOF", 0)
    monkeypatch.setattr(Race, "ROUNDS", 1)
    monkeypatch.setattr(Race, "speedup", lambda self: 2.0 if all(self.seconds) else None)
    yield engine
    background.wait()


def settle(model, *args, **kwargs):
    """Call until the graph answers; returns what answers for the model."""
    with torch.inference_mode():
        for _ in range(2):
            model(*args, **kwargs)
        background.wait()
        for _ in range(3):
            model(*args, **kwargs)
    return tier.root_call(model)
