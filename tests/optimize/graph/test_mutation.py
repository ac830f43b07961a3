# SPDX-License-Identifier: Apache-2.0
"""In-place operations: those that nobody could see become pure, all others leave the model to its layers."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.optimize.graph.capture import CaptureRefused, capture
from slipstream.optimize.graph.mutation import make_pure


class Do(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what
        self.layer = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x):
        return self.what(self, x)


def add_in_place(self, x):
    y = self.layer(x)
    z = y * 2
    y += z
    y.mul_(3).relu_()
    return y + z


def inplace_flag(self, x):
    y = self.layer(x)
    return F.relu(y, inplace=True) + F.hardtanh(y, 0.0, 1.0, True) + y


def chain(self, x):
    y = self.layer(x)
    y += 1
    y += y
    return y.masked_fill_(y > 1, 0.5)


def on_a_view_that_is_all(self, x):
    y = self.layer(x).view(-1)
    y += 1
    return y


def through_a_view(self, x):
    y = self.layer(x)
    y[:, :2].add_(1)
    return y


def seen_through_a_view(self, x):
    y = self.layer(x)
    view = y[:, :2]
    y += 1
    return view * 2


def into_an_input(self, x):
    x += 1
    return self.layer(x)


def into_a_buffer(self, x):
    self.count.add_(1)
    return self.layer(x)


def into_a_part(self, x):
    y = self.layer(x)
    y[0] = 1
    return y


def with_out(self, x):
    y = self.layer(x)
    return torch.add(y, 1, out=y)


def at_random(self, x):
    return self.layer(x) + torch.rand_like(x)


def graph_of(what):
    model, x = Do(what).eval(), torch.randn(3, 8)
    with torch.inference_mode():
        return model, x, capture(model, (x,), {}, dynamic=False)


@pytest.mark.parametrize("what", [add_in_place, inplace_flag, chain, on_a_view_that_is_all])
def test_made_pure(what):
    model, x, captured = graph_of(what)
    make_pure(captured.graph.graph)
    captured.graph.recompile()
    with torch.inference_mode():
        wanted = model(x.clone())
        got = captured.wrap(captured.graph.forward)(model, x)
    assert torch.equal(got, wanted)
    targets = [node.target for node in captured.graph.graph.nodes]
    assert operator.iadd not in targets
    assert not [target for target in targets if str(target).endswith("_") and str(target) in ("mul_", "relu_", "add_")]


@pytest.mark.parametrize(
    "what",
    [through_a_view, seen_through_a_view, into_an_input, into_a_buffer, into_a_part, with_out, at_random],
)
def test_refused(what):
    with pytest.raises(CaptureRefused):
        make_pure(graph_of(what)[2].graph.graph)
