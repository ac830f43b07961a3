# SPDX-License-Identifier: Apache-2.0
"""Channels change places exactly, at every level, for any size, and from any strides."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.kernels import native
from slipstream.kernels.transpose import (
    plain_to_channels_first,
    plain_to_channels_last,
    to_channels_first,
    to_channels_last,
)

DTYPES = [torch.float32, torch.bfloat16]
dtypes = st.sampled_from(DTYPES)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(0, 3), channels=st.sampled_from([1, 15, 16, 17, 40, 64]), height=st.integers(1, 12),
    width=st.integers(1, 12), depth=st.sampled_from([None, 1, 3]), dtype=dtypes, out_dtype=dtypes,
)  # fmt: skip
def test_there_and_back(level, batch, channels, height, width, depth, dtype, out_dtype):
    size = (batch, channels, height, width) if depth is None else (batch, channels, depth, height, width)
    x = torch.randn(size).to(dtype)
    last = to_channels_last(x, out_dtype)
    expected = plain_to_channels_last(x, out_dtype)
    assert last.stride() == expected.stride() or 1 in size or 0 in size
    assert last.is_contiguous(memory_format=torch.channels_last if depth is None else torch.channels_last_3d)
    assert torch.equal(last, expected)
    first = to_channels_first(last, dtype)
    assert first.is_contiguous()
    assert torch.equal(first, plain_to_channels_first(expected, dtype))


@pytest.mark.skipif(not native.available(), reason="the operator is native")
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(0, 3), rows=st.integers(0, 70), columns=st.integers(0, 70), dtype=dtypes, out_dtype=dtypes,
)  # fmt: skip
def test_any_matrix(level, batch, rows, columns, dtype, out_dtype):
    x = torch.randn(batch, rows, columns).to(dtype)
    y = torch.ops.slipstream.transpose(x, out_dtype is torch.bfloat16)
    assert y.is_contiguous()
    assert torch.equal(y, x.transpose(1, 2).to(out_dtype))


@pytest.mark.skipif(not native.available(), reason="the operator is native")
def test_nan_and_infinity_and_threads(level):
    x = torch.randn(3, 130, 77)
    x[0, 0, 0], x[1, 3, 5], x[2, 129, 76] = float("nan"), float("inf"), float("-inf")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        y = torch.ops.slipstream.transpose(x, True)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(y, x.transpose(1, 2).bfloat16(), equal_nan=True, rtol=0, atol=0)


def test_other_strides_and_dtypes_are_left_to_torch(level):
    x = torch.randn(2, 20, 9, 9, dtype=torch.float64)
    assert torch.equal(to_channels_last(x, torch.float64), x)
    holes = torch.randn(2, 40, 9, 9)[:, ::2]
    assert torch.equal(to_channels_last(holes, torch.float32), holes)
    assert to_channels_first(holes, torch.float32).is_contiguous()
