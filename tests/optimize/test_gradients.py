# SPDX-License-Identifier: Apache-2.0
"""In evaluation with gradients on, the forward is fast and the gradients are the original's."""

import pytest
import torch
from judging import decisions, error
from torch import nn

from slipstream.optimize.pieces import deciding

MODELS = {
    "linear": (lambda: nn.Linear(24, 16), (5, 24)),
    "linear, no bias": (lambda: nn.Linear(24, 16, bias=False), (2, 5, 24)),
    "row": (lambda: nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 3)), (5, 24)),
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding="same"), (2, 3, 8, 8)),
    "conv1d, reflect": (lambda: nn.Conv1d(3, 8, 3, padding=1, padding_mode="reflect"), (2, 3, 8)),
    "conv row": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)), (2, 3, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 8, 3, 2, output_padding=1, groups=1), (2, 3, 8, 8)),
    "lstm": (lambda: nn.LSTM(24, 8), (4, 2, 24)),
    "gru": (lambda: nn.GRU(24, 8), (4, 2, 24)),
}


def gradients(model, x, *, of_x=True):
    x = x.detach().requires_grad_(of_x)
    y = model(x)
    y = y[0] if isinstance(y, tuple) else y
    wanted = [*model.parameters(), *([x] if of_x else [])]
    return y, torch.autograd.grad(y.square().sum(), wanted)


@pytest.fixture
def recording(engine, monkeypatch):
    monkeypatch.setattr(deciding, "GRADIENT_MACS", 0)
    return engine


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_originals(recording, name, dtype):
    make, shape = MODELS[name]
    model, x = make().eval(), torch.randn(shape)
    plain = gradients(model, x)
    recording(dtype)
    for of_x in (True, False):
        y, found = gradients(model, x, of_x=of_x)
        assert y.requires_grad and error(y, plain[0]) < (2e-2 if dtype == "bfloat16" else 1e-5)
        for got, wanted in zip(found, plain[1], strict=False):
            assert got.shape == wanted.shape and error(got, wanted) < (3e-2 if dtype == "bfloat16" else 1e-5)


def test_the_report_names_the_remedy(recording):
    recording("bfloat16")
    model = nn.Linear(24, 16).eval()
    y = model(torch.randn(5, 24))
    assert not torch.equal(y, nn.functional.linear(torch.randn(5, 24), model.weight, model.bias))
    assert decisions(taken=True)
    from slipstream.decision import log

    assert any(d.what == "gradients" and "no_grad" in d.reason for d in log)


def test_second_derivatives(recording):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).eval(), torch.randn(4, 6)

    def penalty():
        y, = torch.autograd.grad(model(z := x.clone().requires_grad_()).sum(), z, create_graph=True)
        return torch.autograd.grad(y.square().sum(), list(model.parameters()), allow_unused=True)

    wanted = penalty()
    recording("float32")
    for got, want in zip(penalty(), wanted, strict=True):
        assert (got is None and want is None) or error(got, want) < 1e-4


def test_a_weight_that_stands_twice_in_the_chain(recording):
    layer, x = nn.Linear(8, 8).eval(), torch.randn(3, 8)
    wanted = torch.autograd.grad(layer(layer(x)).square().sum(), list(layer.parameters()))
    recording("float32")
    for _ in range(2):
        found = torch.autograd.grad(layer(layer(x)).square().sum(), list(layer.parameters()))
        assert all(error(got, want) < 1e-5 for got, want in zip(found, wanted, strict=True))


def test_a_weight_changed_before_the_backward_is_torchs_error(recording):
    recording("bfloat16")
    layer = nn.Linear(8, 8).eval()
    y = layer(torch.randn(3, 8, requires_grad=True))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_small_calls_are_left_to_torch(engine):
    engine("bfloat16")
    layer, x = nn.Linear(8, 8).eval(), torch.randn(3, 8)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert layer(x).grad_fn.name() == "AddmmBackward0"


def test_frozen_models_need_no_recording(engine):
    engine("bfloat16")
    layer, x = nn.Linear(24, 16).eval().requires_grad_(False), torch.randn(5, 24)
    y = layer(x)
    assert not y.requires_grad and not torch.equal(y, nn.functional.linear(x, layer.weight, layer.bias))


def test_saved_inference_input(recording):
    recording("bfloat16")
    layer = nn.Linear(8, 8).eval()
    with torch.inference_mode():
        x = torch.randn(3, 8)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        layer(x)


def test_the_answer_may_be_changed_in_place(recording):
    recording("bfloat16")
    layer, x = nn.Conv1d(3, 8, 3).eval(), torch.randn(2, 3, 8)
    y = layer(x)
    y += 1.0
    y.sum().backward()
    assert layer.weight.grad is not None
