# SPDX-License-Identifier: Apache-2.0
"""A prepacked LSTM answers with torch's numbers, shapes and strides; what it cannot do, torch does."""

import itertools

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from slipstream.optimize.pieces.linear import onednn_has_bfloat16


def flat(result):
    output, (hidden, cell) = result
    return output, hidden, cell


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_form(engine, dtype, layers, bidirectional, batch_first):
    for bias, time, batch, given in itertools.product((True, False), (1, 7), (1, 5), (False, True)):
        lstm = nn.LSTM(
            24, 40, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, dropout=0.1 * (layers > 1)
        ).eval()
        x = torch.randn(batch, time, 24) if batch_first else torch.randn(time, batch, 24)
        shape = (layers * (1 + bidirectional), batch, 40)
        hx = (torch.randn(shape), torch.randn(shape)) if given else None
        with torch.no_grad():
            wanted = flat(lstm.forward(x, hx))
            engine(dtype)
            for result in (lstm(x, hx), lstm(x, hx=hx)):
                for got, want in zip(flat(result), wanted, strict=True):
                    assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
                    assert error(got, want) < LIMIT[dtype]
    if dtype == "float32" or onednn_has_bfloat16():
        assert any("lstm" in what for what in decisions(taken=True))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_packed_sequences_projections_and_single_items_are_left_to_torch(engine):
    engine("float32")
    lstm, projected = nn.LSTM(6, 8).eval(), nn.LSTM(6, 8, proj_size=3).eval()
    packed = pack_sequence([torch.randn(4, 6), torch.randn(2, 6)])
    assert torch.equal(lstm(packed)[0].data, lstm.forward(packed)[0].data)
    assert "packed sequence" in " ".join(decisions(taken=False).values())
    x = torch.randn(4, 2, 6)
    assert torch.equal(projected(x)[0], projected.forward(x)[0])
    assert torch.equal(lstm(x[:, 0])[0], lstm.forward(x[:, 0])[0])


@torch.no_grad()
def test_a_wrong_state_raises_what_torch_raises(engine):
    engine("float32")
    lstm = nn.LSTM(6, 8).eval()
    x = torch.randn(4, 2, 6)
    lstm(x)
    with pytest.raises(RuntimeError, match="Expected hidden"):
        lstm(x, (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8)))
