# SPDX-License-Identifier: Apache-2.0
"""A convolution of a graph that oneDNN answers, at levels whose processors multiply no bfloat16."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from slipstream.kernels import native
from slipstream.optimize.graph.operators.convolution_ways import Geometry, OneDnn
from tests.optimize.graph.conftest import needs_native

pytestmark = needs_native


@pytest.mark.parametrize("level", ["baseline", *native.WITHOUT_BFLOAT16])
def test_onednn_multiplies_float32_where_it_would_emulate_bfloat16(level):
    """At AVX2 it refuses to pack bfloat16, and no graph would come of a model that has such a layer."""
    if level not in native.levels():
        pytest.skip("this machine has no such level")
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 9, 11), torch.randn(12, 8, 3, 3) / 9, torch.randn(12)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1, tuple(x.shape))
    layer = SimpleNamespace(geometry=geometry, product=torch.bfloat16, out=torch.bfloat16, post_op="relu", parts=1)
    with native.level(level), torch.no_grad():
        way = OneDnn(weight, bias, layer)
        y = way(x.bfloat16(), None)
    expected = F.conv2d(x.bfloat16().double(), weight.double(), bias.double(), padding=1).relu()
    assert way.product is torch.float32
    assert y.dtype is torch.bfloat16
    assert (y.double() - expected).norm() / expected.norm() < 2.5e-3  # of rounding the result
