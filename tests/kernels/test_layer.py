# SPDX-License-Identifier: Apache-2.0
"""A convolution layer with channels last: torch's convolution in float64, by the kernel that is made for it."""

import pytest
import torch
import torch.nn.functional as F

from slipstream.errors import UsageError
from slipstream.kernels.channels_last.depthwise import PackedDepthwise
from slipstream.kernels.channels_last.layer import layer, pack
from slipstream.kernels.convolution import PackedConvolution
from slipstream.kernels.linear import PackedLinear

NORM = {torch.float32: 1e-6, torch.bfloat16: 6e-3}

LAYERS = [
    # in, out, kernel, stride, padding, dilation, groups, who takes it
    (40, 70, (1, 1), (1, 1), (0, 0), (1, 1), 1, PackedLinear),
    (40, 70, (1, 1), (2, 2), (0, 0), (1, 1), 1, PackedConvolution),
    (40, 70, (1, 1), (1, 1), (1, 0), (1, 1), 1, PackedConvolution),
    (40, 40, (3, 3), (2, 1), (1, 1), (1, 2), 40, PackedDepthwise),
    (40, 80, (3, 3), (1, 1), (1, 1), (1, 1), 40, PackedConvolution),
    (40, 40, (13, 13), (1, 1), (6, 6), (1, 1), 40, PackedConvolution),
    (3, 20, (7, 7), (2, 2), (3, 3), (1, 1), 1, PackedConvolution),
    (64, 33, (3, 3), (1, 1), (1, 1), (1, 1), 1, PackedConvolution),
    (1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1, PackedDepthwise),
]


@pytest.mark.parametrize("dtype", NORM)
@pytest.mark.parametrize(("ins", "outs", "kernel", "stride", "padding", "dilation", "groups", "kind"), LAYERS)
def test_equals_float64(level, dtype, ins, outs, kernel, stride, padding, dilation, groups, kind):
    torch.manual_seed(0)
    weight, bias = torch.randn(outs, ins // groups, *kernel), torch.randn(outs)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    packed = pack(weight, dtype=dtype, **how)
    assert isinstance(packed.packed, kind)
    for batch in (1, 3):
        x = torch.randn(batch, ins, 14, 15)
        expected = F.conv2d(x.double(), weight.double(), bias.double(), **how).relu()
        for form in (torch.contiguous_format, torch.channels_last):
            for given in (torch.float32, torch.bfloat16):
                y = layer(x.to(given).contiguous(memory_format=form), packed, bias, post_op="relu", out_dtype=torch.float32)
                assert y.dtype is torch.float32
                assert y.is_contiguous(memory_format=torch.channels_last)
                limit = NORM[torch.bfloat16] if given is torch.bfloat16 else NORM[dtype]
                assert (y.double() - expected).norm() <= limit * expected.norm()


def test_results_have_the_dtype_of_the_input(level):
    packed = pack(torch.randn(4, 3, 3, 3), dtype=torch.float32)
    assert layer(torch.randn(1, 3, 8, 8), packed).dtype is torch.float32
    assert layer(torch.randn(1, 3, 8, 8).bfloat16(), packed).dtype is torch.bfloat16


def test_bad_input_names_the_argument():
    with pytest.raises(UsageError, match="weight of shape"):
        pack(torch.randn(4, 3, 3), dtype=torch.float32)
    with pytest.raises(UsageError, match="groups 3"):
        pack(torch.randn(4, 3, 3, 3), dtype=torch.float32, groups=3)
    with pytest.raises(UsageError, match="x of shape"):
        layer(torch.randn(1, 2, 8, 8), pack(torch.randn(4, 3, 3, 3), dtype=torch.float32))
