# SPDX-License-Identifier: Apache-2.0
"""nn.LayerNorm and nn.RMSNorm answered by our kernel: what they return, what changes under it, and what is left to torch."""

import itertools

import pytest
import torch
from judging import decisions, error
from torch import nn

from slipstream.kernels import native

needs_native = pytest.mark.skipif(not native.available(), reason="without the kernels nothing is answered")
BOUND = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


def make(kind, shape, **settings):
    norm = kind(shape, **settings).eval()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=1.0)
    return norm


def variants():
    for shape in (40, (40,), (3, 40)):
        yield make(nn.LayerNorm, shape)
        yield make(nn.LayerNorm, shape, bias=False, eps=1e-2)
        yield make(nn.LayerNorm, shape, elementwise_affine=False)
        yield make(nn.RMSNorm, shape)
        yield make(nn.RMSNorm, shape, eps=1e-2, elementwise_affine=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_every_shape_of_input(engine, dtype):
    engine("float32")
    for norm in (norm.to(dtype) for norm in variants()):
        inputs = [torch.randn(size) for size in ((3, 40), (1, 3, 40), (2, 5, 3, 40))]
        inputs += [torch.randn(2, 3, 80)[..., ::2], torch.randn(40, 2, 3).movedim(0, -1), 1e-3 * torch.randn(2, 3, 40)]
        for x in (x.to(dtype) for x in inputs):
            wanted, got = norm.forward(x), norm(x)
            assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
            assert error(got, wanted) < BOUND[dtype]
    if native.available():
        assert len(decisions(taken=True)) == 15


@torch.no_grad()
def test_the_channels_of_an_image(engine):
    engine("float32")
    norm, image = make(nn.LayerNorm, 24), torch.randn(2, 24, 5, 7).to(memory_format=torch.channels_last)
    for x in (image.permute(0, 2, 3, 1), image.contiguous().permute(0, 2, 3, 1)):
        wanted, got = norm.forward(x), norm(x)
        assert got.stride() == wanted.stride()
        assert error(got, wanted) < 1e-6


@needs_native
@torch.no_grad()
def test_changed_parameters_and_settings_are_seen(engine):
    engine("float32")
    norm, x = make(nn.LayerNorm, 40), torch.randn(6, 40)
    norm(x)

    def change(what):
        with torch.no_grad():
            match what:
                case "in place":
                    norm.weight.mul_(2)
                case "data":
                    norm.weight.data = torch.randn(40)
                case "an alias":
                    norm.bias.data.add_(1)
                case "another parameter":
                    norm.bias = nn.Parameter(torch.randn(40))
                case "no parameter":
                    norm.bias = None
                case "epsilon":
                    norm.eps = 0.5
                case "shape":
                    norm.normalized_shape = (6, 40)
                    norm.weight = None

    for what in ("in place", "data", "an alias", "another parameter", "no parameter", "epsilon", "shape"):
        change(what)
        assert error(norm(x), norm.forward(x)) < 1e-6, what
    assert not any("failed" in reason for reason in decisions().values())


@needs_native
@torch.no_grad()
def test_a_parametrized_norm_is_left_to_torch(engine):
    engine("float32")
    norm, x = make(nn.LayerNorm, 40), torch.randn(6, 40)
    norm(x)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    assert error(norm(x), norm.forward(x)) < 1e-6
    nn.utils.parametrize.remove_parametrizations(norm, "weight")
    assert error(norm(x), norm.forward(x)) < 1e-6


@torch.no_grad()
def test_mixed_dtypes_and_wrong_shapes_are_torchs_to_judge(engine):
    engine("float32")
    norm, x = make(nn.LayerNorm, 40), torch.randn(6, 40)
    norm(x)
    assert norm(x.bfloat16()).dtype is norm.forward(x.bfloat16()).dtype
    with pytest.raises(RuntimeError, match="normalized_shape"):
        norm(torch.randn(6, 41))
    with pytest.raises(RuntimeError, match="mixed dtype"):
        norm(x.double())
    assert error(norm(x), norm.forward(x)) < 1e-6
    assert norm(torch.empty(0, 40)).shape == (0, 40)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_gradients(engine, monkeypatch, kind):
    monkeypatch.setattr("slipstream.optimize.pieces.deciding.GRADIENT_MACS", 0)
    norm, x = make(kind, 40), torch.randn(2, 3, 40, requires_grad=True)
    inputs = [x, *norm.parameters()]
    wanted = torch.autograd.grad(norm(x).square().sum(), inputs)
    engine("float32")
    y = norm(x)
    found = torch.autograd.grad(y.square().sum(), inputs)
    assert all(error(got, want) < 1e-5 for got, want in zip(found, wanted, strict=True))
    if native.available():
        assert "Replayed" in type(y.grad_fn).__name__


@torch.no_grad()
def test_hooks_and_training_see_the_original(engine):
    engine("float32")
    norm, x, seen = make(nn.LayerNorm, 40), torch.randn(6, 40), []
    norm(x)
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert norm(x) is seen[0]
    fresh = make(nn.LayerNorm, 40).train()
    assert torch.equal(fresh(x), fresh.forward(x))


@needs_native
@torch.no_grad()
def test_small_norms_stay_torchs(clean):
    from slipstream.autopatch.settings import Settings
    from slipstream.optimize import leaf_tier

    leaf_tier.install(Settings(dtype="float32"))
    norms = [make(nn.LayerNorm, 40), make(nn.RMSNorm, 40)]
    for norm, _ in itertools.product(norms, range(3)):
        norm(torch.randn(2, 40))
    assert set(decisions(taken=False).values()) == {"too small for any kernel to repay the way to it"}
