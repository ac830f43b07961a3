# SPDX-License-Identifier: Apache-2.0
"""nn.TransformerEncoderLayer answers as torch's one operator for it does, and part by part where torch has none."""

import itertools

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn

from slipstream.decision import log
from slipstream.kernels import native

needs_native = pytest.mark.skipif(not native.available(), reason="left to torch without native kernels")

B, L, E, H = 3, 7, 32, 4


def layer_of(**others):
    layer = nn.TransformerEncoderLayer(E, H, 48, batch_first=True, **others).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return layer


def check(layer, x, *args, limit, **kwargs):
    wanted, got = layer.forward(x, *args, **kwargs), layer(x, *args, **kwargs)
    assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    assert error(got, wanted) < limit


def masks():
    padding = torch.zeros(B, L, dtype=torch.bool)
    padding[1, L - 2 :] = True
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    return {}, {"src_key_padding_mask": padding}, {"src_mask": causal}, {"src_mask": causal, "is_causal": True}


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_every_form(engine, dtype):
    engine(dtype)
    forms = itertools.product((True, False), ("relu", "gelu", nn.GELU(), nn.ReLU()))
    for norm_first, activation in forms:
        layer = layer_of(norm_first=norm_first, activation=activation)
        for mask in masks():
            check(layer, torch.randn(B, L, E), **mask, limit=LIMIT[dtype])
    assert len([what for what in decisions(taken=True) if "packed encoder layer" in what]) == 8
    assert not [d for d in log if "failed" in d.reason or "strides" in d.reason]


@torch.no_grad()
def test_what_torch_runs_part_by_part(engine):
    engine("float32")
    x = torch.randn(B, L, E)
    float_mask = nn.Transformer.generate_square_subsequent_mask(L)
    for layer in (
        layer_of(activation=nn.GELU(approximate="tanh")),
        layer_of(activation=torch.tanh),
        layer_of(bias=False),
        nn.TransformerEncoderLayer(E, H, 48).eval(),
        nn.TransformerEncoderLayer(E, 1, 48, batch_first=True).eval(),
    ):
        check(layer, x, limit=1e-5)
    layer = layer_of()
    check(layer, x, float_mask, limit=1e-5)
    check(layer, x[0], limit=1e-5)
    seen = []
    layer.linear2.register_forward_hook(lambda *_: seen.append(1))
    layer(x)
    assert len(seen) == 1
    layer.train()
    layer.eval()
    with torch.enable_grad():
        layer(x).sum().backward()
    assert layer.linear1.weight.grad is not None


@needs_native
@torch.no_grad()
def test_changed_weights_are_seen(engine):
    engine("float32")
    layer, x = layer_of(), torch.randn(B, L, E)
    check(layer, x, limit=1e-5)
    for parameter in layer.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
        check(layer, x, limit=1e-5)
    layer.norm1.eps = layer.norm2.eps = 0.1
    check(layer, x, limit=1e-5)
    layer.linear2 = nn.Linear(48, E).eval()
    check(layer, x, limit=1e-5)
    layer.activation = torch.nn.functional.gelu
    layer.activation_relu_or_gelu = 2
    check(layer, x, limit=1e-5)


@needs_native
@torch.no_grad()
def test_patterns_reach_its_parts(engine, monkeypatch):
    monkeypatch.setenv("SLIPSTREAM_SKIP", "layers.0.linear1")
    engine("bfloat16")
    model = nn.TransformerEncoder(layer_of(), 2, enable_nested_tensor=False).eval()
    model(torch.randn(B, L, E))
    assert [what for what in decisions(taken=True)] == ["TransformerEncoder.layers.1: packed encoder layer"]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@torch.no_grad()
def test_an_encoder_that_nests_its_tensors(engine):
    model, x, mask = nn.TransformerEncoder(layer_of(), 2).eval(), torch.randn(B, L, E), masks()[1]
    wanted = model(x, **mask)
    engine("float32")
    for _ in range(2):
        assert error(model(x, **mask), wanted) < 1e-5
    wanted = model.forward(x)
    assert error(model(x), wanted) < 1e-5


@torch.no_grad()
def test_inside_autocast(engine):
    layer, x = layer_of(), torch.randn(B, L, E)
    engine("float32")
    with torch.autocast("cpu", torch.bfloat16):
        check(layer, x, limit=2e-2)
        check(layer, x.bfloat16().float(), limit=2e-2)
