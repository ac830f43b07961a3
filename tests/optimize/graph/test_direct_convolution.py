# SPDX-License-Identifier: Apache-2.0
"""A convolution that oneDNN and our direct kernel can both answer goes to the one that won a race, and means the same."""

from dataclasses import replace

import pytest
import torch

from slipstream.decision import log
from slipstream.optimize import guards
from slipstream.optimize.graph.operators import convolution
from slipstream.optimize.graph.operators.convolution import Convolution, may_win
from slipstream.optimize.graph.operators.convolution_ways import Direct, Geometry, OneDnn
from slipstream.optimize.pieces.linear import onednn_has_bfloat16
from tests.optimize.graph.conftest import needs_native
from tests.optimize.judging import error

pytestmark = [needs_native, pytest.mark.skipif(not onednn_has_bfloat16(), reason="the race is in bfloat16, with oneDNN")]

GEOMETRY = Geometry((2, 2), (3, 3), (1, 1), 1, (2, 3, 40, 36))


@pytest.fixture
def raced(monkeypatch):
    """Nothing is known of any race, and every convolution that reaches oneDNN is worth one."""
    monkeypatch.setattr(guards, "speed", guards.SpeedGuard())
    monkeypatch.setattr(convolution, "may_win", lambda *_: True)
    log.clear()
    yield
    log.clear()


def operands(residual_width=None):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 40, 36), torch.randn(40, 3, 7, 7) / 12
    return x, None if residual_width is None else torch.randn(2, 40, 20, residual_width), weight, torch.randn(40)


@pytest.mark.parametrize("won", [True, False])
@pytest.mark.parametrize(("behind", "residual_width"), [(None, 18), (None, None), ((3, 4), 19), ((2, 4), None)])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("product", [torch.float32, torch.bfloat16])
def test_the_winner_answers_and_means_the_same(raced, monkeypatch, won, behind, residual_width, out, product):
    monkeypatch.setattr(guards.SpeedGuard, "known", lambda *_: guards.Verdict(won, 2.0))
    operator = Convolution(product, out, replace(GEOMETRY, end_padding=behind), "relu", None)
    x, *tensors = operands(residual_width)
    wanted = operator.plain(x, *tensors)
    for image in (x, x.contiguous(memory_format=torch.channels_last), x.bfloat16()):
        y = operator(image, *tensors)
        assert isinstance(operator.pack.content, Direct if won else OneDnn)
        assert y.dtype is out
        assert error(y, wanted) < 2e-2


def test_a_race_is_held_once_a_kind_and_reported_and_leaves_the_sequence_of_random_numbers(raced):
    tensors = operands()
    state = torch.get_rng_state()
    first = Convolution(torch.bfloat16, torch.bfloat16, GEOMETRY, "none", None)
    first(*tensors)
    assert torch.equal(torch.get_rng_state(), state)
    (decision,) = [entry for entry in log if "direct kernel" in entry.what]
    assert decision.what == "7 x 7 convolution to 40 channels of 2 x 3 x 40 x 36: direct kernel"
    assert decision.taken == isinstance(first.pack.content, Direct)
    assert decision.figures["speedup_x"] > 0
    log.clear()
    again = Convolution(torch.bfloat16, torch.bfloat16, GEOMETRY, "none", None)
    again(*operands())
    assert type(again.pack.content) is type(first.pack.content)
    assert not [entry for entry in log if "direct kernel" in entry.what]


def test_what_is_worth_a_race():
    stem, wide, grouped = torch.empty(64, 3, 7, 7), torch.empty(128, 128, 3, 3), torch.empty(128, 4, 3, 3)
    many = Geometry((1, 1), (1, 1), (1, 1), 32, (1, 128, 14, 14))
    assert may_win(stem, GEOMETRY) and may_win(wide, GEOMETRY)
    assert not may_win(grouped, many)  # groups of four channels
    assert not may_win(stem, Geometry((2, 2), (3, 3), (1, 1), 1, (0, 3, 40, 36)))
