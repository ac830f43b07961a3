# SPDX-License-Identifier: Apache-2.0
"""nn.GroupNorm answered by our kernel: what it returns, what changes under it, and what is left to torch."""

import pytest
import torch
from torch import nn

from slipstream.kernels import native
from tests.optimize.judging import decisions, error

needs_native = pytest.mark.skipif(not native.available(), reason="without the kernels nothing is answered")
BOUND = {torch.float32: 2e-6, torch.bfloat16: 5e-3}


def make(groups=4, channels=12, **settings):
    norm = nn.GroupNorm(groups, channels, **settings).eval()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=1.0)
    return norm


def inputs():
    for shape in ((5, 12), (3, 12, 40), (1, 12, 40), (2, 12, 5, 7), (2, 12, 1, 1), (1, 12, 6, 1), (2, 12, 3, 4, 5)):
        x = 2 * torch.randn(shape) + 1
        yield x
        yield x.movedim(1, -1).contiguous().movedim(-1, 1)
    yield torch.randn(3, 12, 80)[..., ::2]
    yield torch.randn(2, 24, 5, 7).to(memory_format=torch.channels_last)[:, :12]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_every_shape_and_layout_of_input(engine, dtype):
    engine("float32")
    norms = [make(), make(1), make(12, eps=1e-2), make(affine=False)]
    for norm in (norm.to(dtype) for norm in norms):
        for x in (x.to(dtype) for x in inputs() if norm.num_groups != 12 or x.shape[2:].numel() > 1):
            wanted, got = norm.forward(x), norm(x)
            assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
            assert error(got, wanted) < BOUND[dtype]
    if native.available():
        assert len(decisions(taken=True)) == len(norms)


@torch.no_grad()
def test_a_bfloat16_image_with_float32_parameters(engine):
    engine("float32")
    norm, x = make(), torch.randn(2, 12, 5, 7).bfloat16()
    wanted, got = norm.forward(x), norm(x)
    assert got.dtype is wanted.dtype
    assert error(got, wanted) < BOUND[torch.bfloat16]


@needs_native
@torch.no_grad()
def test_changed_parameters_and_settings_are_seen(engine):
    engine("float32")
    norm, x = make(), torch.randn(6, 12, 9)
    norm(x)
    norm.weight.mul_(2)
    assert error(norm(x), norm.forward(x)) < 2e-6
    norm.bias = nn.Parameter(torch.randn(12))
    assert error(norm(x), norm.forward(x)) < 2e-6
    norm.bias = None
    assert error(norm(x), norm.forward(x)) < 2e-6
    norm.eps = 0.5
    assert error(norm(x), norm.forward(x)) < 2e-6
    norm.num_groups = 3
    assert error(norm(x), norm.forward(x)) < 2e-6
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    assert error(norm(x), norm.forward(x)) < 2e-6
    assert not any("failed" in reason for reason in decisions().values())


@torch.no_grad()
def test_wrong_shapes_and_dtypes_are_torchs_to_judge(engine):
    engine("float32")
    norm, x = make(), torch.randn(6, 12, 9)
    norm(x)
    with pytest.raises(RuntimeError):
        norm(torch.randn(6, 13, 9))
    with pytest.raises(RuntimeError):
        norm(x.double())
    with pytest.raises(ValueError, match="more than 1 value"):
        make(12)(torch.randn(1, 12))
    assert norm(x[:0]).shape == (0, 12, 9)
    assert error(norm(x), norm.forward(x)) < 2e-6


def test_gradients(engine, monkeypatch):
    monkeypatch.setattr("slipstream.optimize.pieces.deciding.GRADIENT_MACS", 0)
    norm, x = make(), torch.randn(2, 12, 9, requires_grad=True)
    given = [x, *norm.parameters()]
    wanted = torch.autograd.grad(norm(x).square().sum(), given)
    engine("float32")
    y = norm(x)
    found = torch.autograd.grad(y.square().sum(), given)
    assert all(error(got, want) < 1e-5 for got, want in zip(found, wanted, strict=True))
    if native.available():
        assert "Replayed" in type(y.grad_fn).__name__
