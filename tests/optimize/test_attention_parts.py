# SPDX-License-Identifier: Apache-2.0
"""Attention in float32 is multiplied in parts of bfloat16 on tiles alone, as precision asks, with rows enough, where faster."""

import pytest
import torch
from judging import decisions, error
from torch import nn
from torch.nn import functional

from slipstream.decision import log
from slipstream.kernels import attention as kernel
from slipstream.kernels import native
from slipstream.optimize import attention, guards
from slipstream.optimize.graph.operators.attention import Attention
from slipstream.optimize.guards import Verdict

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="levels are native"),
    pytest.mark.usefixtures("set_precision"),
]
PARTS = {"highest": 3, "high": 2, "medium": 2}
sdpa = attention._original


@pytest.fixture
def asked(monkeypatch):
    """The parts that kernels were called with."""
    seen, real = [], kernel.attention

    def spy(*args, **kwargs):
        seen.append(kwargs.get("parts", 1))
        return real(*args, **kwargs)

    monkeypatch.setattr(kernel, "attention", spy)
    return seen


def qkv(length=70, heads=2):
    return tuple(torch.randn(1, heads, length, 16) for _ in range(3))


def exact(q, k, v):
    return sdpa(q.double(), k.double(), v.double())


@pytest.mark.parametrize("precision", PARTS)
@torch.no_grad()
def test_torchs_function(engine, tiles, set_precision, asked, precision):
    set_precision(precision)
    engine("float32")
    tensors = qkv()
    for _ in range(2):
        got = functional.scaled_dot_product_attention(*tensors)
    assert asked[-1] == PARTS[precision]
    assert error(got, exact(*tensors)) < (4e-7 if precision == "highest" else 1e-5)
    assert any(d.taken and d.what.endswith(f"{PARTS[precision]} parts of bfloat16") for d in log)
    set_precision("high" if precision == "highest" else "highest")
    functional.scaled_dot_product_attention(*tensors)
    assert asked[-1] == (2 if precision == "highest" else 3)


@torch.no_grad()
def test_precision_high_may_err_as_much_as_it_does_in_layers(engine, tiles, set_precision, asked):
    """Large scores that differ by little lose the most."""
    set_precision("high")
    engine("float32")
    q, k, v = qkv()
    q[..., 0] += 8
    k[..., 0] += 50
    for _ in range(2):
        got = functional.scaled_dot_product_attention(q, k, v)
    assert asked[-1] == 2 and any(reason == "in float32" for reason in decisions(taken=True).values())
    assert guards.LIMITS[torch.float32] < error(got, exact(q, k, v)) < guards.HIGH_LIMIT


@torch.no_grad()
def test_torchs_function_where_float32_is_faster(engine, tiles, monkeypatch, asked):
    engine("float32")
    monkeypatch.setattr(guards.speed, "known", lambda question: Verdict(question[0] != "attention in parts", 2.0))
    tensors = qkv()
    for _ in range(2):
        functional.scaled_dot_product_attention(*tensors)
    assert asked[-1] == 1
    assert any(not d.taken and d.what.endswith("3 parts of bfloat16") for d in log)


@torch.no_grad()
def test_too_few_rows_and_levels_without_tiles(engine, asked):
    for level, length in ((native.EMULATED, kernel.SPLIT_FROM_ROWS - 1), ("baseline", 70)):
        with native.level(level):
            engine("float32")
            for _ in range(2):
                functional.scaled_dot_product_attention(*qkv(length))
            attention.uninstall()
    assert asked and set(asked) == {1}
    assert not any("parts" in what for what in decisions())


@pytest.mark.parametrize("precision", PARTS)
@pytest.mark.parametrize("faster", [True, False])
@torch.no_grad()
def test_an_operator_of_a_graph(clean, tiles, set_precision, monkeypatch, precision, faster):
    set_precision(precision)
    monkeypatch.setattr(guards.speed, "known", lambda question: Verdict(faster, 2.0))
    operator = Attention(torch.float32, torch.float32, causal=False, scale=None)
    tensors = qkv()
    assert error(operator(*tensors, None), exact(*tensors)) < (1e-6 if precision == "highest" else 1e-5)
    assert [*operator.ways.values()] == [PARTS[precision] if faster else 1]
    operator(*qkv(20), None)
    assert [*operator.ways.values()][1] == 1  # too few rows
    assert [d.taken for d in log if d.what.endswith("parts of bfloat16")] == [faster]


@torch.no_grad()
def test_an_operator_without_tiles_asks_nothing():
    with native.level("baseline"):
        operator = Attention(torch.float32, torch.float32, causal=False, scale=None)
        operator(*qkv(), None)
    assert not operator.ways and list(operator.in_parts) == [1]
    with native.level(native.EMULATED):
        assert list(Attention(torch.bfloat16, torch.float32, causal=False, scale=None).in_parts) == [1]


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("whole_layer", [False, True])
@torch.no_grad()
def test_attention_between_packed_weights(engine, tiles, set_precision, asked, precision, whole_layer):
    set_precision(precision)
    engine("float32")
    x = torch.randn(2, 70, 32)
    if whole_layer:
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
        wanted = layer(x)
        got = layer(x)
    else:
        layer = nn.MultiheadAttention(32, 2, batch_first=True).eval()
        wanted, _ = layer(x, x, x, need_weights=False)
        got, _ = layer(x, x, x, need_weights=False)
    assert asked and set(asked) == {PARTS[precision]}
    assert error(got, wanted) < 2e-5
