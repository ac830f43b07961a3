# SPDX-License-Identifier: Apache-2.0
"""On tiles a float32 convolution races against its products from parts of bfloat16, as torch's precision for it allows."""

import copy

import pytest
import torch

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.kernels.linear import asked_precision
from slipstream.optimize import guards
from slipstream.optimize.graph.operators import convolution
from slipstream.optimize.graph.operators.convolution import Convolution, parts_for, split_of
from slipstream.optimize.graph.operators.convolution_ways import (
    Depthwise,
    Geometry,
    OneDnn,
    Pointwise,
    SplitDirect,
    SplitPointwise,
    Winograd,
)
from slipstream.optimize.graph.operators.gated_pointwise import GatedPointwise
from slipstream.optimize.graph.operators.inverted_residual import InvertedResidual
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import error

pytestmark = needs_native

PLAIN = (1, 1), (1, 1), (1, 1)
LAYERS = {
    "strided": ((24, 32, 3, 3), Geometry((2, 2), (1, 1), (1, 1), 1, (2, 32, 9, 10)), SplitDirect, OneDnn),
    "grouped": ((40, 16, 3, 3), Geometry(*PLAIN, 2, (1, 32, 6, 7)), SplitDirect, OneDnn),
    "few channels": ((24, 3, 5, 5), Geometry((2, 2), (2, 2), (1, 1), 1, (1, 3, 12, 16)), SplitDirect, OneDnn),
    "1 x 1": ((24, 32, 1, 1), Geometry((1, 1), (0, 0), (1, 1), 1, (2, 32, 6, 7)), SplitPointwise, Pointwise),
    "minimal filtering": ((64, 64, 3, 3), Geometry(*PLAIN, 1, (1, 64, 14, 14)), SplitDirect, Winograd),
}


@pytest.fixture
def tiles(monkeypatch):
    """Emulated tiles for level amx, and nothing known of any race."""
    monkeypatch.setattr(convolution, "parts_for", lambda precision, _: {"highest": 3, "high": 2, "medium": 1}[precision])
    monkeypatch.setattr(convolution, "may_win", lambda *_: False)
    monkeypatch.setattr(guards, "speed", guards.SpeedGuard())
    log.clear()
    with native.level(native.EMULATED):
        yield
    torch.backends.mkldnn.conv.fp32_precision = "none"
    log.clear()


def operands(shape, geometry):
    torch.manual_seed(0)
    return torch.randn(geometry.size), None, torch.randn(shape) / 10, torch.randn(shape[0])


@pytest.mark.parametrize("won", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_winner_answers_and_means_the_same(tiles, monkeypatch, layer, won):
    monkeypatch.setattr(guards.SpeedGuard, "known", lambda _, race: guards.Verdict(won or race[0] == "winograd", 2.0))
    shape, geometry, split, other = LAYERS[layer]
    operator = Convolution(torch.float32, torch.float32, geometry, "relu", None)
    x, *tensors = operands(shape, geometry)
    wanted = operator.plain(x.double(), tensors[0], tensors[1].double(), tensors[2].double())
    y = operator(x, *tensors)
    assert type(operator.pack.content) is (split if won else other)
    assert error(y, wanted) < (4e-7 if won else 2e-6)
    residual = torch.randn(wanted.shape)
    y = operator(x, residual, *tensors[1:])
    assert error(y, operator.plain(x, residual, *tensors[1:])) < 2e-6


def test_convolutions_obey_their_own_precision_whenever_it_is_set(tiles, monkeypatch):
    monkeypatch.setattr(guards.SpeedGuard, "known", lambda *_: guards.Verdict(True, 2.0))
    shape, geometry, split, other = LAYERS["strided"]
    operator = Convolution(torch.float32, torch.float32, geometry, "none", None)
    x, *tensors = operands(shape, geometry)
    wanted = operator.plain(x, *tensors)
    for asked, parts in (("none", 3), ("tf32", 2), ("ieee", 3), ("bf16", 1)):
        torch.backends.mkldnn.conv.fp32_precision = asked
        y = operator(x, *tensors)
        assert operator.parts == parts
        assert type(operator.pack.content) is (split if parts > 1 else other)
        if parts == 2:
            assert 5e-7 < error(y, wanted) < 1e-5
    assert asked_precision() == "highest"


def test_a_settled_graph_sees_another_precision(tiles, monkeypatch, at_once):
    monkeypatch.setattr(guards.SpeedGuard, "known", lambda *_: guards.Verdict(True, 2.0))
    at_once("float32")
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Conv2d(32, 24, 3, stride=2), torch.nn.ReLU()).eval(), torch.randn(2, 32, 9, 10)
    wanted = copy.deepcopy(model).double()(x.double())
    settle(model, x)
    with torch.inference_mode():
        assert error(model(x), wanted) < 1.5e-7
        torch.backends.mkldnn.conv.fp32_precision = "tf32"
        model(x)
        assert 5e-7 < error(model(x), wanted) < 1e-5


def test_a_race_is_held_once_a_kind_and_reported(tiles):
    shape, geometry, *_ = LAYERS["strided"]
    first = Convolution(torch.float32, torch.float32, geometry, "none", None)
    first(*operands(shape, geometry))
    (decision,) = [entry for entry in log if "parts of bfloat16" in entry.what]
    assert decision.what == "3 x 3 convolution to 24 channels of 2 x 32 x 9 x 10: direct kernel in 3 parts of bfloat16"
    assert decision.reason.startswith("raced against oneDNN on an image of this size")
    assert decision.taken == isinstance(first.pack.content, SplitDirect)
    assert decision.figures["speedup_x"] > 0
    log.clear()
    Convolution(torch.float32, torch.float32, geometry, "none", None)(*operands(shape, geometry))
    assert not [entry for entry in log if "parts of bfloat16" in entry.what]


def test_what_is_worth_a_race(monkeypatch):
    _, geometry, *_ = LAYERS["strided"]
    for level in ("avx512_bf16", "avx2", native.EMULATED):
        monkeypatch.setattr(native, "active_level", lambda level=level: level)
        assert parts_for("highest", geometry) == 1
    monkeypatch.setattr(native, "active_level", lambda: "amx")
    assert [parts_for(precision, geometry) for precision in ("highest", "high", "medium")] == [3, 2, 1]
    assert parts_for("highest", Geometry((2, 2), (1, 1), (1, 1), 1, (1, 32, 5, 10))) == 1  # 12 pixels fill no tile
    assert parts_for("highest", Geometry((2, 2), (1, 1), (1, 1), 1, (0, 32, 9, 10))) == 1
    assert split_of(torch.empty(24, 32, 3, 3), geometry, OneDnn, 1) is None
    assert split_of(torch.empty(32, 1, 3, 3), geometry, Depthwise, 3) is None
    assert split_of(torch.empty(8, 32, 3, 3), geometry, OneDnn, 3) is None


def test_blocks_that_read_no_parts_keep_theirs_whole(tiles, monkeypatch):
    monkeypatch.setattr(guards.SpeedGuard, "known", lambda *_: guards.Verdict(True, 2.0))
    wide, narrow = Geometry((1, 1), (0, 0), (1, 1), 1, (1, 32, 6, 7)), Geometry(*PLAIN, 64, (1, 64, 6, 7))
    first, middle = (Convolution(torch.float32, torch.float32, each, "relu6", None) for each in (wide, narrow))
    tensors = (torch.randn(64, 32, 1, 1), None, torch.randn(64, 1, 3, 3), None)
    x = torch.randn(wide.size)
    alone = Convolution(torch.float32, torch.float32, wide, "relu6", None)
    assert error(alone(x, None, *tensors[:2]), alone.plain(x, None, *tensors[:2])) < 1e-6
    assert type(alone.pack.content) is SplitPointwise
    block = InvertedResidual(((first, 2), (middle, 2), None))
    y = block(x, None, *tensors)
    assert type(first.pack.content) is Pointwise
    assert error(y, middle.plain(first.plain(x, None, *tensors[:2]), None, *tensors[2:])) < 1e-6
    gated, gate = Convolution(torch.float32, torch.float32, wide, "relu6", None), torch.rand(1, 32, 1, 1)
    y = GatedPointwise(gated)(x, None, gate, *tensors[:2])
    assert type(gated.pack.content) is Pointwise
    assert error(y, gated.plain(x * gate, None, *tensors[:2])) < 1e-6
