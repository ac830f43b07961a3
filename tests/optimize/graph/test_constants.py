# SPDX-License-Identifier: Apache-2.0
"""What follows from the weights alone is computed once, and anew when they change; nobody can write into what is kept."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from slipstream.optimize.graph.makers import constants
from slipstream.optimize.graph.operators.constant import Constant
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native


class Positions(nn.Module):
    """Scores against a projected table of positions, as relative attention has them."""

    def __init__(self, rows=12, returned=False):
        super().__init__()
        self.table, self.norm = nn.Embedding(rows, 32), nn.LayerNorm(32)
        self.project, self.query = nn.Linear(32, 64), nn.Linear(32, 64)
        self.register_buffer("scale", torch.tensor([0.5]))
        self.returned = returned

    def forward(self, x):
        known = self.project(self.norm(self.table.weight)) * self.scale
        scores = self.query(x) @ known.transpose(0, 1)
        return (scores, known) if self.returned else scores


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv1d(16, 32, 3, padding=1))

    def forward(self, x):
        return self.conv(x).relu()


class Numbers(nn.Module):
    """A table that comes from no weight at all."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        places = torch.arange(x.shape[1], dtype=torch.float32)
        return self.inner(x) + torch.exp(-(places[:, None] - torch.arange(16.0)[None, :]).abs())


class LookedUp(nn.Module):
    """Biases of places against places, out of a table of distances, as windows have them."""

    def __init__(self):
        super().__init__()
        self.table, self.inner = nn.Parameter(torch.randn(9, 16)), nn.Linear(16, 16)
        places = torch.arange(5)
        self.register_buffer("distances", (places[:, None] - places + 4).flatten())

    def forward(self, x):
        biases = self.table[self.distances].view(5, 5, -1)
        return (self.inner(x)[:, :, None] + biases).relu()


def kept(root):
    return [node for node in root.ways[0].program.lowered.fast.graph.nodes if isinstance(node.target, Constant)]


def answer(model, x):
    with torch.inference_mode():
        return model(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make, x", [
    (Positions, torch.randn(2, 5, 32)), (Normed, torch.randn(2, 16, 9)), (Numbers, torch.randn(2, 5, 16)),
    (LookedUp, torch.randn(2, 5, 16)),
])  # fmt: skip
def test_it_is_kept_and_the_answers_are_the_same(at_once, make, x, dtype):
    model = make().eval()
    expected = answer(model, x)
    at_once(dtype)
    root = settle(model, x)
    assert kept(root)
    for _ in range(3):
        assert error(answer(model, x), expected) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["table.weight", "norm.bias", "project.weight", "scale"])
def test_each_weight_it_came_from_is_seen_changing(at_once, name, dtype):
    model, x = Positions().eval(), torch.randn(2, 5, 32)
    at_once(dtype)
    root = settle(model, x)
    before = answer(model, x)
    with torch.no_grad():
        weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        weights[name].add_(torch.rand_like(weights[name]) + 0.5)
    root_answer = answer(model, x)
    twin = Positions().eval()
    twin.load_state_dict(model.state_dict())
    assert kept(root)
    assert error(root_answer, twin.forward(x)) < LIMIT[dtype]
    assert error(before, twin.forward(x)) > LIMIT[dtype]


def test_a_table_that_is_looked_up_in_is_seen_changing(at_once):
    model, x = LookedUp().eval(), torch.randn(2, 5, 16)
    at_once("float32")
    assert kept(settle(model, x))
    with torch.no_grad():
        model.table[3] += 1
    assert error(answer(model, x), model.forward(x)) < LIMIT["float32"]


def test_what_is_packed_from_it_follows_it(at_once):
    model, x = Normed().eval(), torch.randn(2, 16, 9)
    at_once("float32")
    root = settle(model, x)
    assert not any("conv1d" in str(node.target) for node in root.ways[0].program.lowered.fast.graph.nodes)
    with torch.no_grad():
        model.conv.parametrizations.weight.original0.mul_(3)
    got = answer(model, x)
    assert error(got, model.forward(x)) < LIMIT["float32"]


def test_the_script_gets_a_tensor_that_it_may_write_into(at_once):
    model, x = Positions(returned=True).eval(), torch.randn(2, 5, 32)
    expected = answer(model, x)
    at_once("float32")
    settle(model, x)
    for _ in range(3):
        for got, wanted in zip(answer(model, x), expected, strict=True):
            assert error(got, wanted) < LIMIT["float32"]
            with torch.inference_mode():
                got.zero_()


def test_what_is_too_large_is_not_kept_but_what_it_is_made_of(at_once, monkeypatch):
    monkeypatch.setattr(constants, "MOST_BYTES", 16)

    class Repeated(Positions):
        def forward(self, x):
            known = self.project(self.norm(self.table.weight)).repeat(2, 3, 1) * 2
            return self.query(x) @ known.transpose(1, 2)

    model, x = Repeated().eval(), torch.randn(2, 5, 32)
    expected = answer(model, x)
    at_once("float32")
    root = settle(model, x)
    assert [tuple(node.meta["example_value"].shape) for node in kept(root)] == [(12, 64)]
    assert error(answer(model, x), expected) < LIMIT["float32"]


def test_nothing_is_kept_where_memory_is_short(at_once):
    model, x = Numbers().eval(), torch.randn(2, 5, 16)
    at_once("float32", low_memory=True)
    root = settle(model, x)
    assert not any(kept(root) for _ in root.ways)
    assert error(answer(model, x), model.forward(x)) < LIMIT["float32"]


def test_nothing_is_kept_of_what_the_call_brings(at_once):
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Linear(32, 64)

        def forward(self, x, table):
            return self.query(x) @ (table * 2).transpose(0, 1)

    model, x = Given().eval(), torch.randn(2, 5, 32)
    at_once("float32")
    root = settle(model, x, torch.randn(12, 64))
    assert not kept(root)
    table = torch.randn(12, 64)
    with torch.inference_mode():
        assert error(model(x, table), model.forward(x, table)) < LIMIT["float32"]


def test_sizes_that_vary_are_no_constants(at_once):
    model = Numbers().eval()
    lengths = (5, 9, 7, 11, 6)
    inputs = [torch.randn(2, length, 16) for length in lengths]
    expected = [answer(model, x) for x in inputs]
    at_once("float32")
    for _ in range(3):
        for x, wanted in zip(inputs, expected, strict=True):
            assert error(answer(model, x), wanted) < LIMIT["float32"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mask_that_hides_nothing(at_once, dtype):
    """As of a single token: it follows from a buffer, and is no tensor any more."""

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Linear(32, 96)
            self.register_buffer("seen", torch.ones(1, 1, 1, 1, dtype=torch.bool))

        def forward(self, x):
            q, k, v = (part.view(x.shape[0], -1, 2, 16).transpose(1, 2) for part in self.into(x).chunk(3, -1))
            mask = self.seen & self.seen
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    model, x = Attends().eval(), torch.randn(3, 1, 32)
    with torch.inference_mode():
        wanted = model(x)
    at_once(dtype)
    (way,) = settle(model, x).ways
    settle(model, x)
    assert way.program.broken is None
    with torch.inference_mode():
        assert error(model(x), wanted) < LIMIT[dtype]
        model.seen.logical_not_()
        hidden = model(x)
    assert not torch.equal(hidden, wanted)
