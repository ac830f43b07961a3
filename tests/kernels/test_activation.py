# SPDX-License-Identifier: Apache-2.0
"""`activation` is its plain-torch twin, keeps strides, and passes NaN and infinity through as torch does."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels.activation import activation, plain_activation
from slipstream.kernels.post_op import POST_OPS, apply_post_op

DTYPES = [torch.float32, torch.bfloat16]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=4),
    post_op=st.sampled_from(POST_OPS),
    dtype=st.sampled_from(DTYPES),
    out_dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_equals_the_twin(level, shape, post_op, dtype, out_dtype, seed):
    torch.manual_seed(seed)
    x = (3 * torch.randn(shape)).to(dtype)
    y = activation(x, post_op, out_dtype=out_dtype)
    expected = apply_post_op(x.double(), post_op).float()
    tolerance = 2**-8 if out_dtype is torch.bfloat16 else 1e-6
    assert y.dtype is out_dtype
    bound = 1.5e-6 if level == "plain" else 4e-7  # torch's own float32 gelu is off by more than a millionth
    if post_op == "gelu_erf" and out_dtype is torch.bfloat16:
        bound = 1.4e-4
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=bound)


def test_keeps_dense_strides(level):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert activation(x, "relu").stride() == x.stride()
    assert activation(x.permute(3, 0, 2, 1), "relu").stride() == x.permute(3, 0, 2, 1).stride()
    holes = torch.randn(6, 10)[:, :7]
    torch.testing.assert_close(activation(holes, "silu"), torch.nn.functional.silu(holes))


@pytest.mark.parametrize("post_op", ["relu", "silu", "tanh", "sigmoid"])
def test_nan_and_infinity(level, post_op):
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0] * 9)
    torch.testing.assert_close(activation(x, post_op), plain_activation(x, post_op), equal_nan=True)


def test_large_tensor_on_all_threads(level):
    x = torch.randn(70001)
    bound = 1.5e-6 if level == "plain" else 4e-7
    expected = torch.nn.functional.gelu(x.double()).float()
    torch.testing.assert_close(activation(x, "gelu_erf"), expected, rtol=2e-6, atol=bound)


def test_bad_input_names_the_argument():
    with pytest.raises(UsageError, match="post_op mish"):
        activation(torch.randn(3), "mish")
    with pytest.raises(UsageError, match=r"(dtype|x|weight) torch\."):
        activation(torch.randn(3).double(), "relu")
    with pytest.raises(RuntimeError, match="gradient"):
        activation(torch.randn(3, requires_grad=True), "relu")
