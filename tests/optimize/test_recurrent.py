# SPDX-License-Identifier: Apache-2.0
"""Packed LSTMs, GRUs and RNNs answer with torch's numbers, shapes and strides; what they cannot do, torch does."""

import itertools

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from slipstream.kernels import native
from slipstream.optimize.pieces.linear import onednn_has_bfloat16

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def layer(kind, *sizes, **settings):
    if kind == "RNN relu":
        return nn.RNN(*sizes, nonlinearity="relu", **settings).eval()
    return getattr(nn, kind)(*sizes, **settings).eval()


def flat(result):
    output, states = result
    if isinstance(output, PackedSequence):
        output = output.data
    return (output, *states) if isinstance(states, tuple) else (output, states)


def form(y):
    return y.dtype, y.shape, y.stride()


def compare(result, wanted, dtype):
    for got, want in zip(flat(result), flat(wanted), strict=True):
        assert form(got) == form(want)
        assert error(got, want) < LIMIT[dtype]


def is_taken(kind, dtype):
    """Whether the engine has something for it here."""
    return native.available() or (kind == "LSTM" and (dtype == "float32" or onednn_has_bfloat16()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_every_form(engine, kind, dtype, layers, bidirectional, batch_first):
    for time, batch, given in itertools.product((1, 7), (1, 5), (False, True)):
        bias = given != (batch == 5)
        if kind.startswith("RNN"):
            kind = "RNN relu" if bias else "RNN"
        module = layer(
            kind, 24, 40, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional,
            dropout=0.1 * (layers > 1),
        )  # fmt: skip
        x = torch.randn(batch, time, 24) if batch_first else torch.randn(time, batch, 24)
        shape = (layers * (1 + bidirectional), batch, 40)
        hx = torch.randn(shape) if given else None
        if given and kind == "LSTM":
            hx = hx, torch.randn(shape)
        with torch.no_grad():
            wanted = module.forward(x, hx)
            engine(dtype)
            for result in (module(x, hx), module(x, hx=hx)):
                compare(result, wanted, dtype)
    if is_taken(kind, dtype):
        assert any("packed" in what for what in decisions(taken=True))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("lengths", [[4, 2], [2, 5, 1, 5], [3]])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_of_any_order(engine, kind, lengths, bidirectional):
    module = layer(kind, 6, 40, 2, bidirectional=bidirectional)
    x = pack_sequence([torch.randn(length, 6) for length in lengths], enforce_sorted=False)
    hx = torch.randn(2 + 2 * bidirectional, len(lengths), 40)
    if kind == "LSTM":
        hx = hx, torch.randn_like(hx)
    for states in (None, hx):
        wanted = module.forward(x, states)
        engine("float32")
        got = module(x, states)
        compare(got, wanted, "float32")
        for one, other in zip(got[0], wanted[0], strict=True):
            assert one is other is None or form(one) == form(other)
        assert isinstance(got[0], PackedSequence)
    assert bool(decisions(taken=True)) == native.available()


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [False, True])
def test_projections(engine, batch_first):
    module = nn.LSTM(6, 40, 2, bidirectional=True, proj_size=13, batch_first=batch_first).eval()
    x = torch.randn(4, 3, 6)
    hx = torch.randn(4, 4 if batch_first else 3, 13), torch.randn(4, 4 if batch_first else 3, 40)
    wanted = module.forward(x, hx)
    engine("float32")
    compare(module(x, hx), wanted, "float32")
    assert bool(decisions(taken=True)) == native.available()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_models_in_bfloat16(engine, kind):
    module = layer(kind, 24, 40, 2).bfloat16()
    x = torch.randn(5, 3, 24).bfloat16()
    wanted = module.forward(x)
    engine("float32")
    compare(module(x), wanted, "bfloat16")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_streaming_hands_the_state_on(engine, kind):
    engine("float32")
    module = layer(kind, 16, 40, 2)
    x = torch.randn(6, 1, 16)
    wanted, _ = module.forward(x)
    states, outputs = None, []
    for step in x:
        y, states = module(step.unsqueeze(0), states)
        outputs.append(y)
    assert error(torch.cat(outputs), wanted) < LIMIT["float32"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_changed_weight_is_seen(engine, kind):
    engine("float32")
    module, x = layer(kind, 16, 40), torch.randn(6, 2, 16)
    module(x)
    for name in ("weight_hh_l0", "bias_hh_l0"):
        getattr(module, name).mul_(1.5)
        compare(module(x), module.forward(x), "float32")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_single_items_are_left_to_torch(engine, kind):
    engine("float32")
    module, x = layer(kind, 6, 8), torch.randn(4, 6)
    assert torch.equal(module(x)[0], module.forward(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_wrong_input_raises_what_torch_raises(engine, kind):
    engine("float32")
    module, x = layer(kind, 6, 8), torch.randn(4, 2, 6)
    module(x)
    state = torch.zeros(1, 3, 8)
    with pytest.raises(RuntimeError, match="Expected hidden"):
        module(x, (state, state) if kind == "LSTM" else state)
    with pytest.raises((RuntimeError, ValueError), match="input"):
        module(x[..., :5])


def test_a_gradient_that_is_wanted_is_torchs(engine):
    engine("float32")
    module, x = layer("GRU", 6, 8), torch.randn(4, 2, 6)
    y, _ = module(x)
    y.sum().backward()
    assert module.weight_hh_l0.grad is not None
    assert torch.equal(y, module.forward(x)[0])
