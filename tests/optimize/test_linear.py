# SPDX-License-Identifier: Apache-2.0
"""Linear layers, torch's own and transformers' transposed one."""

import itertools

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn

from slipstream.kernels import native


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_every_shape_of_input(engine, dtype):
    engine(dtype)
    for bias, shape in itertools.product((True, False), [(24,), (1, 24), (7, 24), (2, 3, 24), (2, 1, 5, 24)]):
        layer = nn.Linear(24, 17, bias=bias).eval()
        for x in (torch.randn(shape), torch.randn(*shape[:-1], 48)[..., ::2], torch.randn(24, *shape[:-1]).movedim(0, -1)):
            wanted = layer.forward(x)
            got = layer(x)
            assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
            assert error(got, wanted) < LIMIT[dtype]
    if native.available():
        assert decisions(taken=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_the_transposed_layer_of_transformers(engine, dtype):
    file = pytest.importorskip("transformers.pytorch_utils")
    engine(dtype)
    layer = file.Conv1D(17, 24).eval()
    nn.init.normal_(layer.bias)
    for x in (torch.randn(5, 24), torch.randn(2, 3, 24)):
        wanted = layer.forward(x)
        got = layer(x)
        assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
        assert error(got, wanted) < LIMIT[dtype]
    with pytest.raises(RuntimeError, match="view"):
        layer(torch.randn(3, 2, 24).transpose(0, 1))
    assert error(layer(x), wanted) < LIMIT[dtype]
    if native.available():
        assert "Conv1D: packed linear (Conv1D)" in decisions(taken=True)


def test_gradients_of_the_transposed_layer(engine, monkeypatch):
    file = pytest.importorskip("transformers.pytorch_utils")
    monkeypatch.setattr("slipstream.optimize.pieces.deciding.GRADIENT_MACS", 0)
    layer, x = file.Conv1D(17, 24).eval(), torch.randn(2, 3, 24)
    wanted = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    engine("float32")
    found = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    assert all(error(got, want) < 1e-5 for got, want in zip(found, wanted, strict=True))
