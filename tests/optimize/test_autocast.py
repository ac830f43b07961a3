# SPDX-License-Identifier: Apache-2.0
"""The script's own autocast: layers answer from bfloat16 weights with the dtypes and strides that autocast gives."""

import pytest
import torch
import torch.nn.functional as F
from judging import decisions, error
from torch import nn

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.optimize.pieces.linear import onednn_has_bfloat16

LIMIT = 2e-2


def form(y):
    return y.dtype, y.shape, y.stride()


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [y for part in value for y in flat(part)]


def check(layer, x, **arguments):
    """One call inside autocast, by the original and by whatever answers now."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, **arguments):
        wanted, got = flat(layer.forward(x)), flat(layer(x))
    assert [form(y) for y in got] == [form(y) for y in wanted]
    for one, want in zip(got, wanted, strict=True):
        assert error(one, want) < LIMIT
    return got



LAYERS = {
    "linear": (lambda: nn.Linear(24, 17), lambda: torch.randn(2, 5, 24)),
    "no bias": (lambda: nn.Linear(24, 17, bias=False), lambda: torch.randn(24)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3), lambda: torch.randn(2, 6, 20)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, padding="same"), lambda: torch.randn(2, 6, 9, 9)),
    "channels last": (lambda: nn.Conv2d(6, 8, 3), lambda: torch.randn(2, 6, 9, 9).to(memory_format=torch.channels_last)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), lambda: torch.randn(2, 4, 5, 6, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2), lambda: torch.randn(2, 6, 9, 9)),
    "lstm": (lambda: nn.LSTM(12, 10, 2, bidirectional=True, batch_first=True), lambda: torch.randn(3, 7, 12)),
    "gru": (lambda: nn.GRU(12, 10), lambda: torch.randn(7, 3, 12)),
    "rnn": (lambda: nn.RNN(12, 10), lambda: torch.randn(7, 3, 12)),
    "layer norm": (lambda: nn.LayerNorm(64), lambda: torch.randn(40, 64)),
    "rms norm": (lambda: nn.RMSNorm(64), lambda: torch.randn(40, 64)),
    "row": (
        lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, 5), nn.GELU()),
        lambda: torch.randn(2, 6, 9, 9),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_answers_as_autocast_would(engine, name, dtype):
    engine(dtype)
    make, sample = LAYERS[name]
    layer, x = make().eval(), sample()
    for given in (x, x.bfloat16())[: 1 if name == "rms norm" else 2]:  # torch warns of a mixture
        check(layer, given)
        check(layer, given)
    left = name in ("conv1d", "conv3d", "transposed") and not onednn_has_bfloat16()  # those are oneDNN's
    if native.available() and not left:
        assert any("in autocast" in what for what in decisions(taken=True))
    assert not any("slipstream failed" in d.reason for d in log)


@torch.no_grad()
def test_one_layer_inside_and_outside_keeps_two_precisions(engine):
    engine("float32")
    layer, x = nn.Linear(64, 48).eval(), torch.randn(5, 64)
    wanted = layer.forward(x)
    for _ in range(3):
        check(layer, x)
        assert layer(x).dtype == torch.float32 and error(layer(x), wanted) < 1e-6
        with torch.autocast("cpu", torch.bfloat16):
            with torch.autocast("cpu", enabled=False):
                assert error(layer(x), wanted) < 1e-6
            assert layer(x).dtype == torch.bfloat16
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
    if native.available():
        assert sorted(decisions(taken=True)) == ["Linear: packed linear", "Linear: packed linear, in autocast"]


@torch.no_grad()
def test_autocast_to_float16_is_the_originals(engine):
    engine("bfloat16")
    layer, x = nn.Linear(64, 48).eval(), torch.randn(5, 64)
    with torch.autocast("cpu", torch.float16):
        wanted = layer.forward(x)
        assert wanted.dtype == torch.float16 and torch.equal(layer(x), wanted)
    assert not decisions(taken=True)
    assert any("autocast" in reason for reason in decisions().values())


@pytest.mark.parametrize("cache", [True, False])
@torch.no_grad()
def test_a_changed_weight_is_seen_with_and_without_autocasts_cache(engine, cache):
    engine("float32")
    layer, x = nn.Linear(64, 48).eval(), torch.randn(5, 64)
    check(layer, x, cache_enabled=cache)
    layer.weight.mul_(3)
    layer.bias.zero_()
    got = check(layer, x, cache_enabled=cache)
    assert error(got[0], F.linear(x, layer.weight)) < LIMIT


@torch.no_grad()
def test_what_autocast_refuses_raises_as_without_us(engine):
    engine("bfloat16")
    layer = nn.Linear(8, 4).eval()
    check(layer, torch.randn(2, 8))
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            layer(torch.randn(2, 9))
        with pytest.raises(RuntimeError, match="same dtype"):
            layer(torch.randn(2, 8).double())
    half = torch.randn(2, 8).half()
    check(layer, half)


def test_gradients_inside_autocast(engine, always_faster, monkeypatch):
    monkeypatch.setattr("slipstream.optimize.pieces.deciding.GRADIENT_MACS", 0)
    layer, x = nn.Linear(64, 48).eval(), torch.randn(5, 64, requires_grad=True)

    def gradients():
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        return torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])

    wanted = gradients()
    engine("float32")
    for got, want in zip(gradients(), wanted, strict=True):
        assert got.dtype == want.dtype and error(got, want) < LIMIT
    if native.available():
        assert decisions(taken=True)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_attention_inside_autocast(engine, given):
    original = F.scaled_dot_product_attention
    engine("float32")
    q, k, v = (torch.randn(2, 4, 24, 16) for _ in range(3))
    k = k.to(given)
    for mask in (None, torch.randn(24, 24), torch.rand(24, 24) > 0.2):
        with torch.autocast("cpu", torch.bfloat16):
            wanted = original(q, k, v, mask)
            for _ in range(2):
                got = F.scaled_dot_product_attention(q, k, v, mask)
                assert form(got) == form(wanted) and error(got, wanted) < LIMIT


class Chained(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_chain_over_module_borders_inside_autocast(engine):
    model, x = Chained().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = model(x)
        engine("float32")
        for _ in range(3):
            got = model(x)
            assert form(got) == form(wanted) and error(got, wanted) < LIMIT
    if native.available():
        assert any("BatchNorm2d + ReLU, in autocast" in what for what in decisions(taken=True))


@torch.no_grad()
def test_hopeless_inside_autocast_does_not_take_the_layer_away_outside(engine, monkeypatch):
    from slipstream.optimize import guards
    from slipstream.optimize.pieces.piece import PATIENCE

    engine("bfloat16")
    layer, x = nn.Linear(64, 48).eval(), torch.randn(5, 64)
    layer(x)
    known = guards.speed.known
    monkeypatch.setattr(guards.speed, "known", lambda question: guards.Verdict(False, 0.5) if question[-1] else known(question))
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2 * PATIENCE):
            layer(x)
    assert "_compiled_call_impl" not in vars(layer)
    alone = nn.Linear(64, 48).eval()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2 * PATIENCE):
            alone(x)
    assert vars(alone)["_compiled_call_impl"] is None
