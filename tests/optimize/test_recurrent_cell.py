# SPDX-License-Identifier: Apache-2.0
"""Packed cells take the steps of a decoder with torch's numbers and shapes; what they cannot do, torch does."""

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn
from torch.nn.utils import parametrizations

from slipstream.kernels import native

CELLS = {
    "LSTM": lambda **settings: nn.LSTMCell(24, 40, **settings),
    "GRU": lambda **settings: nn.GRUCell(24, 40, **settings),
    "RNN": lambda **settings: nn.RNNCell(24, 40, **settings),
    "RNN relu": lambda **settings: nn.RNNCell(24, 40, nonlinearity="relu", **settings),
}


def states_of(result):
    return result if isinstance(result, tuple) else (result,)


def first_state(kind, batch):
    return (torch.randn(batch, 40), torch.randn(batch, 40)) if kind == "LSTM" else torch.randn(batch, 40)


def packed(**settings):
    return [what for what in decisions(**settings) if "packed" in what and "cell" in what]


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_steps_are_torchs(engine, kind, bias, dtype):
    for batch, given in ((1, True), (5, False), (5, True)):
        cell = CELLS[kind](bias=bias).eval()
        steps, hx = torch.randn(6, batch, 24), first_state(kind, batch) if given else None
        engine(dtype)
        ours = theirs = hx
        for x in steps:
            theirs = cell.forward(x, theirs)
            ours = cell(x) if ours is None else cell(x, ours) if batch == 1 else cell(x, hx=ours)
            assert type(ours) is type(theirs)
            for got, wanted in zip(states_of(ours), states_of(theirs), strict=True):
                assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
                assert error(got, wanted) < LIMIT[dtype]
    assert bool(packed(taken=True)) is native.available()


@torch.no_grad()
def test_a_changed_weight_is_seen(engine):
    cell, x = nn.LSTMCell(24, 40).eval(), torch.randn(3, 24)
    engine("float32")
    before = cell(x)[0]
    assert bool(packed(taken=True)) is native.available()
    cell.weight_ih.mul_(-2)
    assert error(cell(x)[0], cell.forward(x)[0]) < LIMIT["float32"] < error(before, cell.forward(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", CELLS)
def test_what_is_left_to_torch(engine, kind):
    cell = CELLS[kind]().eval()
    engine("float32")
    alone = torch.randn(24)
    for got, wanted in zip(states_of(cell(alone)), states_of(cell.forward(alone)), strict=True):
        assert torch.equal(got, wanted)
    for wrong in (torch.randn(2, 23), torch.randn(2, 2, 24), torch.randn(2, 24).double()):
        with pytest.raises((RuntimeError, ValueError)) as ours:
            cell(wrong)
        with pytest.raises((RuntimeError, ValueError)) as theirs:
            cell.forward(wrong)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises((RuntimeError, ValueError), match=r"[Hh]idden|hx"):
        cell(torch.randn(2, 24), first_state(kind, 3))
    assert not packed(taken=True)


@torch.no_grad()
def test_parametrized_weights_and_autocast_are_torchs(engine):
    normed, x = parametrizations.weight_norm(nn.GRUCell(24, 40), "weight_hh").eval(), torch.randn(2, 24)
    plain = nn.GRUCell(24, 40).eval()
    engine("float32")
    assert torch.equal(normed(x), normed.forward(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(x), plain.forward(x))
    assert not packed(taken=True)


def test_gradients_are_torchs(engine):
    cell, x = nn.LSTMCell(24, 40).eval(), torch.randn(3, 24, requires_grad=True)
    engine("float32")
    cell(x)[0].sum().backward()
    got, x.grad = x.grad, None
    cell.forward(x)[0].sum().backward()
    assert error(got, x.grad) < 1e-6
