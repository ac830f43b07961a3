# SPDX-License-Identifier: Apache-2.0
"""In-place operations: those that nobody could see become pure, all others leave the model to its layers."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.optimize.graph.capturing.capture import capture
from slipstream.optimize.graph.capturing.refusals import CaptureRefused
from slipstream.optimize.graph.lower import lower
from slipstream.optimize.graph.mutation import make_pure
from slipstream.optimize.options import Options
from tests.optimize.graph.conftest import needs_native, settle


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


def shares_of_the_best(self, x):
    """As routers of experts have it."""
    best, which = torch.softmax(self.layer(x), -1).topk(2, dim=-1)
    best /= best.sum(-1, keepdim=True)
    return best * (which + 1)


def behind_a_dropout(self, x):
    """As padding is zeroed, which is known by a mask of rows."""
    y = F.dropout(self.layer(x), 0.1, self.training)
    y[x.sum(-1) > 0] = 0.0
    z = F.dropout(y, 0.0, True)
    z[0] += 1
    return y + z


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
    return view * 2, y


def into_a_part(self, x):
    y = self.layer(x)
    y[0] = 1
    y[:, 1:3] = x[:, 1:3]
    y[:, 0] += 1
    y[..., -1] /= 2
    return y


def into_one_of_several_views(self, x):
    y = self.layer(x)
    first, second = y.chunk(2, -1)
    first.mul_(3)
    return y + 1, second, first


def through_views_of_views(self, x):
    y = self.layer(x)
    turned = y[:, :4].view(-1, 2, 2).transpose(1, 2)
    turned.add_(x[:, :4].view(-1, 2, 2))
    y[:, 4:] *= 2
    return y.relu(), turned


def by_index_and_mask(self, x):
    y = self.layer(x)
    y[torch.tensor([0, 2])] = 5.0
    y[y > 0] = 0
    return y


def from_itself(self, x):
    part = self.layer(x)[:, :4]
    part[:, :2] = part[:, 2:]
    return part


def without_a_twin(self, x):
    table = torch.zeros(3, 8)
    table[1].fill_(7)
    table[:, 2:5].copy_(x[:, 2:5])
    return self.layer(x) + table.scatter_add_(1, (x > 0).long(), x)


def filled_bit_by_bit(self, x):
    y, z = self.layer(x), x.new_empty(3, 8)
    z[:, ::2], z[:, 1::2] = y[:, :4], y[:, 4:]
    return z


def seen_after_it_was_rounded(self, x):
    return self.layer(x).clamp(0, 1).mul_(255).round_().byte() / 255


def keeping_its_dtype(self, x):
    y = self.layer(x).bfloat16()
    y += x
    return y, y.mul_(2.0)


def into_an_input(self, x):
    x += 1
    return self.layer(x)


def into_a_buffer(self, x):
    self.count.add_(1)
    return self.layer(x)


def into_what_may_be_a_copy(self, x):
    y = self.layer(x)
    flat = y.reshape(-1)
    y += 1
    return flat, y


def into_what_was_unfolded(self, x):
    y = self.layer(x)[None, None]
    columns = F.unfold(y, 2)  # a copy, where the method of this name gives a view
    y += 1
    return columns, y


def to_other_memory(self, x):
    y = self.layer(x)
    y.set_(x)
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


PURE = [
    add_in_place, inplace_flag, chain, on_a_view_that_is_all, through_a_view, seen_through_a_view, into_a_part,
    into_one_of_several_views, through_views_of_views, by_index_and_mask, from_itself, without_a_twin, filled_bit_by_bit,
    seen_after_it_was_rounded, keeping_its_dtype, shares_of_the_best, behind_a_dropout,
]  # fmt: skip


@pytest.mark.parametrize("what", PURE)
def test_made_pure(what):
    model, x, captured = graph_of(what)
    make_pure(captured.graph.graph)
    captured.graph.graph.lint()
    captured.graph.recompile()
    with torch.inference_mode():
        wanted = model(x.clone())
        before = x.clone()
        for _ in range(2):  # nothing is left in the graph from the first call
            got = captured.wrap(captured.graph.forward)(model, x)
    for ours, torchs in zip(*(y if isinstance(y, tuple) else (y,) for y in (got, wanted)), strict=True):
        assert torch.equal(ours, torchs)
        assert (ours.dtype, ours.stride()) == (torchs.dtype, torchs.stride())
    assert torch.equal(x, before)
    targets = [node.target for node in captured.graph.graph.nodes]
    assert operator.iadd not in targets and operator.setitem not in targets
    assert not [target for target in targets if str(target).endswith("_") and str(target) in ("mul_", "relu_", "add_")]


@needs_native
@pytest.mark.parametrize("what", PURE)
def test_a_graph_of_it_answers_as_the_model(what, at_once):
    at_once("float32")
    model = nn.Sequential(Do(what)).eval()
    x = torch.randn(3, 8)
    with torch.inference_mode():
        wanted = Do.forward(model[0], x)
    root = settle(model, x)
    with torch.inference_mode():
        got = model(x)
    for ours, torchs in zip(*(y if isinstance(y, tuple) else (y,) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)
    assert root.ways and root.ways[0].program.broken is None


@pytest.mark.parametrize(
    "what",
    [into_an_input, into_a_buffer, into_what_may_be_a_copy, into_what_was_unfolded, to_other_memory, with_out, at_random],
)
def test_refused(what):
    with pytest.raises(CaptureRefused):
        make_pure(graph_of(what)[2].graph.graph)


def picked(self, x):
    y = self.layer(x)
    return self.layer(y[y[:, 0] > 0] * 2)


def written_into_what_was_picked(self, x):
    y = self.layer(x)
    rows = y[y > 0].view(-1, 1) + 1
    rows[:, 0] = 2
    return self.layer(rows.expand(-1, 8).reshape(-1, 8))


@pytest.mark.parametrize("what", [picked, written_into_what_was_picked])
def test_sizes_that_depend_on_values_are_no_graph(what):
    captured = graph_of(what)[2]
    with torch.inference_mode(), pytest.raises(CaptureRefused, match="depend on values"):
        lower(captured.graph, captured.inputs, Options(torch.float32), captured.own)
