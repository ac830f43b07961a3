# SPDX-License-Identifier: Apache-2.0
"""A 1 × 1 convolution takes the factors along that its image's channels are multiplied by, and means the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.optimize.graph.makers import one_pass
from slipstream.optimize.graph.operators.gated_pointwise import GatedPointwise
from slipstream.optimize.graph.settled import Settled
from tests.optimize.graph.conftest import needs_native
from tests.optimize.graph.models import shake
from tests.optimize.graph.test_inverted_residual import kinds, lowered
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native


class Squeezed(nn.Module):
    """Squeeze and excitation before a 1 × 1 convolution; ``way`` says how the image is scaled."""

    def __init__(self, way="mul"):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1)
        self.down, self.up = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.project, self.norm = nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 4)
        self.way = way
        shake(self)

    def forward(self, x):
        x = F.silu(self.stem(x))
        gate = torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        match self.way:
            case "mul":
                y = torch.mul(x, gate)
            case "turned":
                y = gate * x
            case "pixels":
                y = x * x.mean(1, keepdim=True)
            case "one":
                y = x * gate[:1]
            case "kept":
                y = x * gate
                return self.head((self.norm(self.project(y)) + y).mean((2, 3)))
        return self.head((self.norm(self.project(y)) + x).mean((2, 3)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["mul", "turned", "pixels", "one", "kept"])
def test_what_is_taken_along_and_that_it_means_the_same(dtype, way):
    torch.manual_seed(0)
    captured, low = lowered(Squeezed(way).eval(), torch.randn(2, 3, 18, 14), dtype)
    assert kinds(low.fast.graph).count("gated_pointwise") == int(way in ("mul", "turned"))
    assert low.operators == len(kinds(low.fast.graph))
    with torch.inference_mode():
        wanted, got = low.reference(*captured.inputs), low.fast(*captured.inputs)
    assert error(got[0], wanted[0]) < LIMIT[dtype]


def test_large_weights_stay_apart(monkeypatch):
    monkeypatch.setattr(one_pass, "WEIGHTS", 100)
    _, low = lowered(Squeezed().eval(), torch.randn(2, 3, 18, 14), "float32")
    assert "gated_pointwise" not in kinds(low.fast.graph)


def test_settled_and_without_a_pack_it_gives_the_same(monkeypatch):
    torch.manual_seed(0)
    captured, low = lowered(Squeezed().eval(), torch.randn(2, 3, 18, 14), "float32")
    with torch.inference_mode():
        inputs = tuple(captured.inputs)
        wanted = low.fast(*inputs)[0]
        settled = Settled(low.fast, inputs)
        assert settled.holds(inputs)
        assert torch.equal(settled.run(*inputs)[0], wanted)
        for node in low.fast.graph.nodes:
            if isinstance(node.target, GatedPointwise):
                monkeypatch.setattr(node.target, "content", lambda tensors: None)
        assert error(low.fast(*inputs)[0], wanted) < 1e-5


def test_a_changed_weight_is_packed_again():
    torch.manual_seed(0)
    model = Squeezed().eval()
    captured, low = lowered(model, torch.randn(2, 3, 18, 14), "float32")
    with torch.no_grad():
        model.project.weight.mul_(-2)
        wanted, got = low.reference(*captured.inputs), low.fast(*captured.inputs)
    assert error(got[0], wanted[0]) < LIMIT["float32"]
