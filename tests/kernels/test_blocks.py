# SPDX-License-Identifier: Apache-2.0
"""Blocks are as large as the second-level cache asks for, and what is computed by them does not depend on it: the same bits."""

import pytest
import torch

from slipstream.kernels import attention, batched_matmul, convolution, linear, linear_int8, native
from slipstream.kernels.channels_last import convolution_last, depthwise, winograd
from slipstream.kernels.channels_last.gated_pointwise import gated_pointwise
from slipstream.kernels.channels_last.inverted_residual import Middle, Pointwise, inverted_residual

KIB = 1024
DTYPES = [torch.float32, torch.bfloat16]
# So little that every block is the least there is, what small processors have, and more than any call here needs.
CACHES = [8 * KIB, 256 * KIB, 4096 * KIB]


def lasting(*size):
    return torch.randn(size).contiguous(memory_format=torch.channels_last)


def products(dtype):
    x, weight = torch.randn(131, 300), torch.randn(150, 300)
    packed = linear.pack(weight, dtype=dtype)
    yield lambda: linear.linear(x, packed, post_op="gelu_erf")
    yield lambda: linear.linear(x, packed, post_op="relu")
    deep, deep_weight = torch.randn(70, 2301), linear.pack(torch.randn(40, 2301), dtype=dtype)
    yield lambda: linear.linear(deep, deep_weight)
    many, keys = torch.randn(2, 40, 90), torch.randn(2, 90, 530)
    yield lambda: batched_matmul.batched_matmul(many, keys, dtype=dtype)
    integers = linear_int8.pack(*linear_int8.quantize_weight(weight))
    yield lambda: linear_int8.linear_int8(x, integers, activation="per_token_asymmetric")


def images(dtype):
    x, weight = lasting(1, 40, 14, 13), torch.randn(36, 40, 3, 3)
    direct = convolution_last.pack(weight, dtype=dtype, stride=(2, 1), padding=(1, 1))
    yield lambda: convolution_last.convolution_last(x, direct, post_op="relu")
    tiles = winograd.pack(weight, dtype=dtype, padding=(1, 1), tile=4 if dtype is torch.float32 else 2)
    yield lambda: winograd.convolution_3x3(x, tiles)
    pixels, deep = x.to(dtype), depthwise.pack(torch.randn(40, 1, 5, 5), padding=(2, 2))
    yield lambda: depthwise.depthwise(pixels, deep, post_op="relu6")
    planes = torch.randn(1, 24, 20, 19)
    first = convolution.pack(torch.randn(30, 24, 3, 3), dtype=dtype, padding=(1, 1))
    yield lambda: convolution.convolution(planes, first)
    wide, narrow = (
        Pointwise(linear.pack(torch.randn(size), dtype=dtype), None, "relu", dtype) for size in ((64, 40), (40, 64))
    )
    middle = Middle(depthwise.pack(torch.randn(64, 1, 3, 3), padding=(1, 1)), None, "relu6", dtype)
    yield lambda: inverted_residual(pixels, wide, middle, narrow)
    hidden, gate = lasting(2, 64, 14, 13).to(dtype), torch.rand(2, 64, 1, 1).to(dtype)
    yield lambda: gated_pointwise(hidden, gate, narrow)


def sequences(dtype):
    query, key = torch.randn(1, 3, 40, 32), torch.randn(1, 3, 300, 32)
    yield lambda: attention.attention(query, key, key, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_for_any_cache_compute_the_same(level, dtype):
    if level == "plain":
        pytest.skip("the twins are torch's own operators")
    torch.manual_seed(0)
    calls = [*products(dtype), *images(dtype), *sequences(dtype)]
    expected = [call() for call in calls]
    for size in CACHES:
        with native.blocks_for_cache(size):
            different = [number for number, call in enumerate(calls) if not torch.equal(call(), expected[number])]
        assert not different, f"blocks for {size} bytes"


def test_the_cache_is_that_of_a_core():
    if not native.available():
        assert native.second_level_cache() == 0
        return
    size = native.second_level_cache()
    assert 256 * KIB <= size <= 4096 * KIB
    with pytest.raises(RuntimeError), native.blocks_for_cache(512 * KIB):
        assert native.second_level_cache() == 512 * KIB
        raise RuntimeError("what happens within")
    assert native.second_level_cache() == size
    with pytest.raises(RuntimeError, match="bytes"):
        torch.ops.slipstream.use_second_level_cache(0)
