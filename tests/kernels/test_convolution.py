# SPDX-License-Identifier: Apache-2.0
"""`convolution` is torch's in float64: any size, stride, padding, dilation, groups, dtype and level, within its bound."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.convolution import convolution, pack
from slipstream.kernels.linear import POST_OPS, apply_post_op

DTYPES = [torch.float32, torch.bfloat16]


def oracle(x, weight, bias, numbers, groups, *, post_op="none", residual=None):
    """In float64, on the values that the kernel multiplies."""
    stride, padding, dilation = numbers
    rounds = weight.dtype is torch.bfloat16 and weight.shape[1] > 1
    x = x.bfloat16().double() if rounds else x.double()
    y = F.conv2d(x, weight.double(), None, stride, padding, dilation, groups)
    if bias is not None:
        y = y + bias.double().reshape(-1, 1, 1)
    if residual is not None:
        y = y + residual.double()
    return apply_post_op(y, post_op)


def agree(y, expected, out_dtype, level, dtype):
    rounding = 2**-8 if out_dtype is torch.bfloat16 else 4e-6
    if level == "plain" and dtype is torch.bfloat16:
        rounding = 2**-6  # torch rounds the sums to bfloat16 before bias and residual, which may cancel them
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert torch.allclose(y.double(), expected, rtol=rounding, atol=rounding * scale)


CHECKS_OFF = [HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]


@settings(deadline=None, max_examples=50, suppress_health_check=CHECKS_OFF)
@given(
    batch=st.integers(0, 3), groups=st.sampled_from([1, 1, 2, 3]), ins=st.integers(1, 9), outs=st.integers(1, 14),
    height=st.integers(1, 20), width=st.integers(1, 45),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 2), (7, 7), (2, 2)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 2)]), padding=st.sampled_from([(0, 0), (1, 1), (3, 2), (0, 4)]),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 3)]), dtype=st.sampled_from(DTYPES), x_dtype=st.sampled_from(DTYPES),
    out_dtype=st.sampled_from(DTYPES), post_op=st.sampled_from(POST_OPS), extras=st.sampled_from([(0, 0), (1, 0), (1, 1)]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_float64(
    level, batch, groups, ins, outs, height, width, kernel, stride, padding, dilation, dtype, x_dtype, out_dtype, post_op,
    extras, seed,
):  # fmt: skip
    assume(height + 2 * padding[0] > (kernel[0] - 1) * dilation[0])
    assume(width + 2 * padding[1] > (kernel[1] - 1) * dilation[1])
    torch.manual_seed(seed)
    x = torch.randn(batch, ins * groups, height, width).to(x_dtype)
    weight = (torch.randn(outs * groups, ins, *kernel) / (ins * kernel[0] * kernel[1]) ** 0.5).to(dtype)
    bias = torch.randn(outs * groups) if extras[0] else None
    numbers = stride, padding, dilation
    expected = oracle(x, weight, bias, numbers, groups)
    residual = torch.randn(expected.shape).to(x_dtype) if extras[1] else None
    expected = oracle(x, weight, bias, numbers, groups, post_op=post_op, residual=residual)
    packed = pack(weight, dtype=dtype, stride=stride, padding=padding, dilation=dilation, groups=groups)
    y = convolution(x, packed, bias, post_op=post_op, residual=residual, out_dtype=out_dtype)
    assert y.shape == expected.shape
    assert y.dtype is out_dtype
    assert y.is_contiguous()
    agree(y, expected, out_dtype, level, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "outs", "size", "kernel", "stride"),
    [(64, 64, 14, 3, 1), (32, 48, 28, 1, 1), (48, 32, 15, 3, 2), (3, 32, 33, 7, 2), (600, 20, 5, 3, 1), (64, 24, 7, 1, 2)],
)
def test_layers_of_real_networks(level, dtype, channels, outs, size, kernel, stride):
    if level == native.EMULATED:
        size = min(size, 9)
    torch.manual_seed(0)
    x, weight = torch.randn(2, channels, size, size), torch.randn(outs, channels, kernel, kernel).to(dtype)
    padding = (kernel // 2, kernel // 2)
    packed = pack(weight, dtype=dtype, stride=(stride, stride), padding=padding)
    expected = oracle(x, weight, None, ((stride, stride), padding, (1, 1)), 1)
    error = ((convolution(x, packed).double() - expected).norm() / expected.norm()).item()
    assert error <= (4e-3 if level == "plain" and dtype is torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("size", [5, 16, 40])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(level, size, stride):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(3, 24, size, size), torch.randn(24, 1, 3, 3), torch.randn(24)
    packed = pack(weight, dtype=torch.bfloat16, stride=(stride, stride), padding=(1, 1), groups=24)
    y = convolution(x, packed, bias, post_op="relu")
    expected = oracle(x, weight, bias, ((stride, stride), (1, 1), (1, 1)), 24, post_op="relu")
    agree(y, expected, torch.float32, level, torch.bfloat16)


def test_nan_and_infinity_stay_in_their_reach(level):
    torch.manual_seed(2)
    x = torch.randn(1, 8, 12, 12)
    x[0, 3, 5, 5], x[0, 1, 0, 11] = float("nan"), float("inf")
    y = convolution(x, pack(torch.randn(9, 8, 3, 3), dtype=torch.float32, padding=(1, 1)))
    touched = torch.zeros(12, 12, dtype=torch.bool)
    touched[4:7, 4:7] = True
    touched[0:2, 10:12] = True
    assert torch.isfinite(y[0][:, ~touched]).all()
    assert not torch.isfinite(y[0][:, touched]).any()


def test_strides_and_threads(level):
    torch.manual_seed(3)
    x, weight = torch.randn(3, 20, 17, 19), torch.randn(40, 20, 3, 3)
    packed = pack(weight, dtype=torch.bfloat16, padding=(1, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = convolution(x, packed)
        torch.set_num_threads(2)
        assert torch.equal(convolution(x, packed), alone) or level == "plain"
        last = x.to(memory_format=torch.channels_last)
        assert torch.equal(convolution(last, packed), alone) or level == "plain"
    finally:
        torch.set_num_threads(before)


def test_bad_input_names_the_argument():
    weight = torch.randn(4, 3, 3, 3)
    with pytest.raises(UsageError, match="weight"):
        pack(weight[0], dtype=torch.float32)
    with pytest.raises(UsageError, match=r"(dtype|x|weight) torch\."):
        pack(weight, dtype=torch.float16)
    with pytest.raises(UsageError, match="121 taps"):
        pack(torch.randn(2, 2, 12, 12), dtype=torch.float32)
    packed = pack(weight, dtype=torch.float32)
    with pytest.raises(UsageError, match="post_op mish"):
        convolution(torch.randn(1, 3, 5, 5), packed, post_op="mish")
    with pytest.raises(RuntimeError, match="gradient"):
        convolution(torch.randn(1, 3, 5, 5, requires_grad=True), packed)
    with pytest.raises(UsageError, match="x of shape"):
        convolution(torch.randn(1, 2, 5, 5), packed)
    with pytest.raises(RuntimeError):
        convolution(torch.randn(1, 3, 2, 5), packed)
