# SPDX-License-Identifier: Apache-2.0
"""A convolution along a line without padding is a linear over rows that overlap, where that won a race; and means the same."""

from dataclasses import replace

import pytest
import torch

from slipstream.decision import log
from slipstream.optimize import guards
from slipstream.optimize.graph.operators import convolution
from slipstream.optimize.graph.operators.convolution_nd import Convolution1d
from slipstream.optimize.graph.operators.convolution_ways import Direct, Geometry, OneDnn, OverlappingRows
from slipstream.optimize.pieces.linear import onednn_has_bfloat16
from tests.optimize.graph.conftest import needs_native
from tests.optimize.judging import LIMIT, error

pytestmark = [needs_native, pytest.mark.skipif(not onednn_has_bfloat16(), reason="the race is with oneDNN, in bfloat16 too")]

GEOMETRY = Geometry((1, 2), (0, 0), (1, 1), 1, (2, 24, 1, 407))
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def raced(monkeypatch):
    """Nothing is known of any race."""
    monkeypatch.setattr(guards, "speed", guards.SpeedGuard())
    log.clear()
    yield
    log.clear()


def operands(length=407, residual=False, batch=2):
    torch.manual_seed(0)
    added = torch.randn(batch, 40, (length - 3) // 2 + 1) if residual else None
    return torch.randn(batch, 24, length), added, torch.randn(40, 24, 3) / 8, torch.randn(40)


@pytest.mark.parametrize("won", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("product", DTYPES)
def test_the_winner_answers_and_means_the_same(raced, monkeypatch, won, residual, product):
    monkeypatch.setattr(guards.SpeedGuard, "known", lambda *_: guards.Verdict(won, 2.0))
    operator = Convolution1d(product, product, GEOMETRY, "gelu_erf", None)
    for length in (407, 408, 3, 60):  # few rows of a batch are copied, more are not
        for batch in (1, 2):
            x, added, weight, bias = operands(length, residual, batch)
            steps = x.transpose(1, 2).contiguous().transpose(1, 2)
            for given in (x, steps, steps.to(product), torch.cat([steps, steps], 2)[:, :, :length]):
                y = operator(given, added, weight, bias)
                wanted = operator.plain(*(None if t is None else t.unsqueeze(2) for t in (x, added, weight)), bias)
                assert y.dtype is product
                assert error(y, wanted.squeeze(2)) < LIMIT[str(product)[6:]]
    assert isinstance(operator.pack.content, OverlappingRows if won else OneDnn)


def test_the_race_is_of_a_part_and_reported_once(raced):
    geometry = replace(GEOMETRY, size=(2, 24, 1, 5000))
    for batch in (2, 3):
        operator = Convolution1d(torch.float32, torch.float32, replace(geometry, size=(batch, 24, 1, 5000)), "none", None)
        operator(*operands(5000, batch=batch))
    (decision,) = [entry for entry in log if "overlapping" in entry.what]
    assert decision.what == "1 x 3 convolution to 40 channels of 1 x 24 x 1 x 4097: linear over overlapping rows"
    assert decision.taken == isinstance(operator.pack.content, OverlappingRows)


def rival_of(weight, geometry):
    return convolution.rival_of(weight, geometry, OneDnn, torch.float32)


def test_what_is_such_a_line():
    weight, few = torch.empty(40, 24, 1, 3), torch.empty(40, 1, 1, 10)
    assert rival_of(weight, GEOMETRY) is OverlappingRows
    for other in (
        replace(GEOMETRY, padding=(0, 1)), replace(GEOMETRY, dilation=(1, 2)), replace(GEOMETRY, end_padding=(0, 1)),
        replace(GEOMETRY, size=(2, 24, 2, 407)), replace(GEOMETRY, size=(2, 24, 1, 0)),
    ):  # fmt: skip
        assert rival_of(weight, other) in (None, Direct)
    assert rival_of(few, replace(GEOMETRY, size=(2, 1, 1, 407))) in (None, Direct)
    assert rival_of(torch.empty(40, 12, 1, 3), replace(GEOMETRY, groups=2)) in (None, Direct)
