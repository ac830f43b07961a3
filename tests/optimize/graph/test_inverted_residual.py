# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolutions run in one pass with the 1 × 1 convolutions beside them where that pays, and mean the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.optimize.graph.capturing.capture import capture
from slipstream.optimize.graph.lower import lower
from slipstream.optimize.graph.makers import one_pass
from slipstream.optimize.graph.operators.inverted_residual import InvertedResidual
from slipstream.optimize.options import Options
from tests.optimize.graph.conftest import needs_native
from tests.optimize.graph.models import shake
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native


class Block(nn.Module):
    """MobileNetV2's with a residual, or with a gate behind the depthwise convolution as in EfficientNet."""

    def __init__(self, stride=1, gated=False):
        super().__init__()
        self.expand, self.expand_norm = nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48)
        self.middle, self.middle_norm = nn.Conv2d(48, 48, 3, stride, 1, groups=48, bias=False), nn.BatchNorm2d(48)
        self.project, self.project_norm = nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.gate = nn.Conv2d(48, 48, 1) if gated else None
        self.stride = stride
        shake(self)

    def forward(self, x):
        y = F.relu6(self.expand_norm(self.expand(x)))
        y = F.relu6(self.middle_norm(self.middle(y)))
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        y = self.project_norm(self.project(y))
        return y + x if self.stride == 1 else y


class Small(nn.Module):
    """As in MobileNetV2: the first block has no expansion."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.first, self.first_project = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 16, 1)
        self.blocks = nn.Sequential(Block(), Block(stride=2), Block(gated=True))
        self.head = nn.Linear(16, 4)
        shake(self)

    def forward(self, x):
        x = self.first_project(F.relu6(self.first(F.relu6(self.stem(x)))))
        return self.head(self.blocks(x).mean((2, 3)))


def lowered(model, x, dtype):
    with torch.inference_mode():
        captured = capture(model, (x,), {}, dynamic=False)
        return captured, lower(captured.graph, captured.inputs, Options(getattr(torch, dtype), graph=True), captured.own)


def kinds(graph):
    return [node.target.kind for node in graph.nodes if hasattr(node.target, "kind")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fused", [True, False])
def test_what_is_fused_and_that_it_means_the_same(monkeypatch, dtype, fused):
    monkeypatch.setattr(one_pass, "BETWEEN", 0 if fused else 1 << 40)
    torch.manual_seed(0)
    captured, low = lowered(Small().eval(), torch.randn(2, 3, 40, 36), dtype)
    found = kinds(low.fast.graph)
    assert found.count("inverted_residual") == (4 if fused else 0)
    # beside the stem and the gate, which no depthwise convolution reaches; the convolution behind the gate takes it along
    assert found.count("convolution") == (2 if fused else 12)
    assert found.count("gated_pointwise") == 1
    assert low.operators == len(found)
    with torch.inference_mode():
        wanted, got = low.reference(*captured.inputs), low.fast(*captured.inputs)
    assert error(got[0], wanted[0]) < LIMIT[dtype]


def test_weights_that_must_not_be_packed_take_the_convolutions_own_ways(monkeypatch):
    monkeypatch.setattr(one_pass, "BETWEEN", 0)
    torch.manual_seed(0)
    captured, low = lowered(Small().eval(), torch.randn(2, 3, 40, 36), "float32")
    with torch.inference_mode():
        wanted = low.fast(*captured.inputs)[0]
        for node in low.fast.graph.nodes:
            if isinstance(node.target, InvertedResidual):
                monkeypatch.setattr(node.target, "content", lambda tensors: None)
        assert error(low.fast(*captured.inputs)[0], wanted) < 1e-5


def test_a_changed_weight_is_packed_again(monkeypatch):
    monkeypatch.setattr(one_pass, "BETWEEN", 0)
    torch.manual_seed(0)
    model = Small().eval()
    captured, low = lowered(model, torch.randn(2, 3, 40, 36), "float32")
    with torch.no_grad():
        model.blocks[0].middle.weight.mul_(-2)
        wanted, got = low.reference(*captured.inputs), low.fast(*captured.inputs)
    assert error(got[0], wanted[0]) < LIMIT["float32"]


def test_large_weights_stay_apart(monkeypatch):
    monkeypatch.setattr(one_pass, "BETWEEN", 0)
    monkeypatch.setattr(one_pass, "WEIGHTS", 1000)
    _, low = lowered(Small().eval(), torch.randn(2, 3, 40, 36), "float32")
    assert "inverted_residual" not in kinds(low.fast.graph)
