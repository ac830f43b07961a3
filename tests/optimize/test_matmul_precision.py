# SPDX-License-Identifier: Apache-2.0
"""Linear layers obey torch's float32 matmul precision, whoever set it and whenever."""

import copy

import pytest
import torch
from judging import decisions, error
from torch import nn

from slipstream.autopatch.settings import Settings
from slipstream.decision import log
from slipstream.kernels import native
from slipstream.kernels.linear import asked_precision
from slipstream.optimize import guards, options
from slipstream.optimize.optimize_model import optimize_model

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="levels are native"),
    pytest.mark.usefixtures("set_precision"),
]
ALMOST_EXACT = {"highest": 4e-7, "high": 1e-5, "medium": 4e-3}


@pytest.fixture
def dot_products():
    if "avx512_bf16" not in native.levels():
        pytest.skip("no dot products of bfloat16 on this machine")
    with native.level("avx512_bf16"):
        yield


def off(layer, x):
    """How far our second answer is off, against float64."""
    wanted = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    layer(x)
    return error(layer(x), wanted)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@torch.no_grad()
def test_each_precision_on_tiles(engine, tiles, set_precision, precision):
    set_precision(precision)
    engine("float32")
    layer, x = nn.Linear(96, 33).eval(), torch.randn(20, 96)
    assert off(layer, x) < ALMOST_EXACT[precision]
    if precision != "highest":
        assert off(layer, x) > ALMOST_EXACT[precision] / 20
    says = {"highest": "3 parts of bfloat16", "high": "2 parts of bfloat16", "medium": "matmul precision is medium"}
    assert says[precision] in decisions(taken=True)["Linear: packed linear"]
    assert any(d.what == f"float32 matmul precision {precision}" and d.taken for d in log)


@torch.no_grad()
def test_medium_where_there_are_dot_products(engine, dot_products, set_precision):
    engine("float32")
    layer, x = nn.Linear(96, 33).eval(), torch.randn(20, 96)
    set_precision("high")
    assert off(layer, x) < 1e-6
    set_precision("medium")
    assert 1e-3 < off(layer, x) < 4e-3
    assert layer(x).dtype is torch.float32
    assert "matmul precision is medium" in decisions(taken=True)["Linear: packed linear"]


@torch.no_grad()
def test_medium_is_float32_where_there_are_none(engine, set_precision):
    with native.level("baseline"):
        set_precision("medium")
        engine("float32")
        assert off(nn.Linear(96, 33).eval(), torch.randn(20, 96)) < 1e-6
    (said,) = (d for d in log if d.what == "float32 matmul precision medium")
    assert not said.taken and "are no faster" in said.reason


@torch.no_grad()
def test_a_change_is_seen_by_the_next_call(engine, tiles, set_precision):
    engine("float32")
    layer, x = nn.Linear(96, 33).eval(), torch.randn(20, 96)
    for precision in ("medium", "highest", "high", "medium", "highest"):
        set_precision(precision)
        assert off(layer, x) < ALMOST_EXACT[precision]
        assert precision == "highest" or off(layer, x) > ALMOST_EXACT[precision] / 20


@torch.no_grad()
def test_few_rows_do_not_split_a_weight(engine, tiles):
    engine("float32")
    layer, few, many = nn.Linear(96, 33).eval(), torch.randn(3, 96), torch.randn(20, 96)
    assert off(layer, few) < 1e-6
    assert "parts" not in decisions(taken=True)["Linear: packed linear"]
    for x in (many, few, many):  # once it is split, it stays so
        assert off(layer, x) < 1e-6
        assert "3 parts" in decisions(taken=True)["Linear: packed linear"]


@torch.no_grad()
def test_bfloat16_that_was_asked_for_stays(engine, tiles):
    engine("bfloat16")
    layer, x = nn.Linear(96, 33).eval(), torch.randn(20, 96)
    assert 1e-3 < off(layer, x) < 4e-3
    assert not any("precision" in d.what for d in log)


@torch.no_grad()
def test_the_limit_fits_the_precision(engine, tiles, set_precision, monkeypatch):
    engine("float32")
    monkeypatch.setattr(guards, "HIGH_LIMIT", 1e-8)
    layer, x = nn.Linear(96, 33).eval(), torch.randn(20, 96)
    assert off(layer, x) < 1e-6 and decisions(taken=True)
    set_precision("high")
    off(layer, x)
    assert "not accurate enough" in decisions(taken=False)["Linear: packed linear"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["attention", "encoder layer"])
def test_layers_of_linear_layers_obey(engine, tiles, set_precision, kind):
    engine("float32")
    x = torch.randn(3, 20, 32)
    attention = nn.MultiheadAttention(32, 2, batch_first=True)
    layer = attention if kind == "attention" else nn.TransformerEncoderLayer(32, 2, 48, batch_first=True)
    layer, inputs = layer.eval(), (x, x, x) if kind == "attention" else (x,)
    exact = copy.deepcopy(layer).double()(*(each.double() for each in inputs))
    for precision in ("highest", "high", "medium", "highest"):
        set_precision(precision)
        for _ in range(3):
            got = layer(*inputs)
        far = error(*(y if isinstance(y, torch.Tensor) else y[0] for y in (got, exact)))
        assert far < 4 * ALMOST_EXACT[precision]
        assert precision == "highest" or far > ALMOST_EXACT[precision] / 40


def test_the_launchers_flag(set_precision):
    options.set_matmul_precision(Settings(float32_matmul_precision="medium"))
    assert asked_precision() == "medium"
    options.restore_matmul_precision()
    assert asked_precision() == "highest"


@torch.no_grad()
def test_one_model(tiles, always_faster, set_precision):
    set_precision("high")
    model = optimize_model(nn.Sequential(nn.Linear(64, 48), nn.ReLU()).eval(), graph=False)
    x = torch.randn(20, 64)
    wanted = nn.functional.linear(x.double(), model[0].weight.double(), model[0].bias.double()).relu()
    model(x)
    assert 1e-7 < error(model(x), wanted) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("how", ["medium", "float16"])
def test_medium_and_dtype_float16_where_float16_is_fast(engine, float16_level, set_precision, how):
    settings = Settings(dtype="float16") if how == "float16" else Settings(float32_matmul_precision="medium")
    options.set_matmul_precision(settings)
    try:
        assert asked_precision() == "medium"
        engine("float16" if how == "float16" else "float32")
        layer, x = nn.Linear(96, 33).eval(), torch.randn(20, 96)
        assert 1e-5 < off(layer, x) < 1.2e-3  # bfloat16 weights alone would be off by 1.7e-3
        assert layer(x).dtype is torch.float32
        noted = [d for d in log if d.what == "dtype float16"]
        assert [d.taken for d in noted] == ([True] if how == "float16" else [])
    finally:
        options.restore_matmul_precision()


def test_dtype_float16_elsewhere_is_float32(set_precision):
    with native.level("baseline"):
        options.set_matmul_precision(Settings(dtype="float16"))
        assert asked_precision() == "highest"
        assert options.compute_dtype(Settings(dtype="float16")) is torch.float32
    assert [d.taken for d in log if d.what == "dtype float16"] == [False]


def test_an_asked_precision_goes_before_dtype_float16(set_precision):
    options.set_matmul_precision(Settings(dtype="float16", float32_matmul_precision="high"))
    assert asked_precision() == "high"
    options.restore_matmul_precision()
