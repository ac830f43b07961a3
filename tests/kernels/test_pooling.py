# SPDX-License-Identifier: Apache-2.0
"""Pooling is torch's: any size, window, padding, dtype, memory format and level; a maximum exactly, a mean within its bound."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.channels_last.pooling import average_pool, global_average, max_pool

DTYPES = [torch.float32, torch.bfloat16]
CHECKS_OFF = [HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]

windows = st.sampled_from([
    ((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 3), (1, 1), (1, 1)), ((5, 5), (1, 1), (2, 2)),
    ((1, 1), (2, 2), (0, 0)), ((2, 3), (3, 1), (1, 0)), ((1, 4), (1, 3), (0, 2)), ((7, 7), (7, 7), (0, 0)),
])  # fmt: skip
images = {
    "batch": st.integers(0, 3), "channels": st.one_of(st.integers(1, 70), st.sampled_from([128, 144, 200])),
    "height": st.integers(1, 17), "width": st.integers(1, 19), "dtype": st.sampled_from(DTYPES), "seed": st.integers(0, 99),
}  # fmt: skip


def image(batch, channels, height, width, dtype, seed):
    torch.manual_seed(seed)
    return torch.randn(batch, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)


def room(size, kernel, padding, dilation=(1, 1)):
    return all(n + 2 * p > (k - 1) * d for n, k, p, d in zip(size, kernel, padding, dilation, strict=True))


def close(y, expected):
    rounding = 2**-8 if y.dtype is torch.bfloat16 else 2e-6
    scale = expected.abs().max().clamp_min(1).item() if expected.numel() else 1.0
    return torch.allclose(y.double(), expected, rtol=rounding, atol=rounding * scale)


@settings(deadline=None, max_examples=60, suppress_health_check=CHECKS_OFF)
@given(window=windows, ceil=st.booleans(), dilation=st.sampled_from([(1, 1), (1, 1), (2, 3)]), **images)
def test_maximum_is_exact(level, window, ceil, dilation, **size):
    kernel, stride, padding = window
    x = image(**size)
    assume(room(x.shape[2:], kernel, padding, dilation))
    y = max_pool(x, kernel, stride, padding, dilation, ceil)
    assert torch.equal(y, F.max_pool2d(x, kernel, stride, padding, dilation, ceil))
    assert y.dtype is x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=60, suppress_health_check=CHECKS_OFF)
@given(window=windows, ceil=st.booleans(), counted=st.booleans(), divisor=st.sampled_from([None, None, 5, -2]), **images)
def test_mean_equals_float64(level, window, ceil, counted, divisor, **size):
    kernel, stride, padding = window
    x = image(**size)
    assume(room(x.shape[2:], kernel, padding))
    y = average_pool(x, kernel, stride, padding, ceil, counted, divisor)
    expected = F.avg_pool2d(x.double(), kernel, stride, padding, ceil, counted, divisor)
    assert y.shape == expected.shape
    assert y.dtype is x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert close(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_global_average_of_real_sizes(level, dtype):
    for channels, size in [(2048, 7), (144, 56), (33, 1)]:
        x = image(2, channels, size, size, dtype, 0)
        y = global_average(x)
        assert y.shape == (2, channels, 1, 1)
        assert close(y, x.double().mean((2, 3), keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_reach(level, dtype):
    x = image(1, 41, 12, 12, dtype, 2)
    x[0, 3, 5, 5], x[0, 18, 0, 11], x[0, 40, 11, 0] = float("nan"), float("inf"), float("-inf")
    y, mean = max_pool(x, (3, 3), (1, 1), (1, 1)), average_pool(x, (3, 3), (1, 1), (1, 1))
    touched = torch.zeros(1, 41, 12, 12, dtype=torch.bool)
    touched[0, 3, 4:7, 4:7] = True
    assert torch.equal(y.isnan(), touched)
    assert torch.equal(mean.isnan(), touched)
    assert torch.equal(y.nan_to_num(7), F.max_pool2d(x, 3, 1, 1).nan_to_num(7))
    assert torch.equal(mean.isinf(), F.avg_pool2d(x.float(), 3, 1, 1).isinf())
    assert max_pool(torch.full((1, 5, 2, 2), float("-inf")), (2, 2)).isneginf().all()


def test_strides_and_threads_do_not_matter(level):
    wide = image(3, 96, 9, 22, torch.bfloat16, 3)
    before = torch.get_num_threads()
    try:
        for x in (wide[:, :40], wide[:, 33:, ::2], wide[:, ::2], wide.contiguous(), wide[:1].expand(3, 96, 9, 22)):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert torch.equal(max_pool(x, (3, 3), (2, 2), (1, 1)), F.max_pool2d(x, 3, 2, 1))
                assert close(global_average(x), x.double().mean((2, 3), keepdim=True))
    finally:
        torch.set_num_threads(before)


def test_bad_input_names_the_argument():
    x = torch.randn(1, 4, 5, 5)
    with pytest.raises(UsageError, match="x of shape"):
        max_pool(x[0], (2, 2))
    with pytest.raises(UsageError, match=r"x torch\.float64"):
        average_pool(x.double(), (2, 2))
    with pytest.raises(UsageError, match="padding"):
        max_pool(x, (2, 2), padding=(2, 1))
    with pytest.raises(UsageError, match="divisor_override 0"):
        average_pool(x, (2, 2), divisor_override=0)
    with pytest.raises(UsageError, match="x of shape"):
        global_average(x[:, :, :0])
    with pytest.raises(RuntimeError, match="gradient"):
        max_pool(x.requires_grad_(), (2, 2))
    with pytest.raises(RuntimeError):
        max_pool(torch.randn(1, 4, 2, 5), (3, 3))


@pytest.mark.skipif(not native.available(), reason="the operator is native")
def test_operator_is_seen_by_export():
    for numbers in ((3, 3, 2, 2, 1, 1, 1, 1), (2, 3, 3, 2, 1, 0, 1, 2), (2, 2, 2, 2, 0, 0, 1, 1)):
        for ceil in (False, True):
            x = image(2, 20, 9, 8, torch.bfloat16, 0)
            torch.library.opcheck(torch.ops.slipstream.pooling.default, (x, True, numbers, ceil, True, 0))
    with pytest.raises(RuntimeError, match="x: channels are not innermost"):
        torch.ops.slipstream.pooling(torch.randn(1, 4, 5, 5), True, (1, 1, 1, 1, 0, 0, 1, 1), False, True, 0)
