# SPDX-License-Identifier: Apache-2.0
"""Operators large enough that threads take runs of each other's shares give the same bits, whoever took what.

More threads than processors make some of them late in each call, so that others do take their runs.
"""

import pytest
import torch

from slipstream.kernels import activation, attention, batched_matmul, linear, linear_int8, native, norm, transpose
from slipstream.kernels.channels_last import convolution_last, depthwise, pooling, winograd

LOW, FULL = torch.bfloat16, torch.float32
THREADS, REPEATS = (2, 3, 7), 4


def lasting(x):
    return x.contiguous(memory_format=torch.channels_last)


def linears(dtype):
    """Runs of rows, of panels where rows are few, and of a weight too large for rows to be cut."""
    for m, k, n in ((1600, 96, 200), (50, 512, 1056), (200, 640, 704), (2, 2048, 4096)):
        x, packed, bias = torch.randn(m, k), linear.pack(torch.randn(n, k), dtype=dtype), torch.randn(n)
        yield lambda x=x, packed=packed, bias=bias: linear.linear(x, packed, bias, post_op="relu", out_dtype=dtype)


def integers(dtype):
    x, packed = torch.randn(1200, 256).to(dtype), linear_int8.pack(*linear_int8.quantize_weight(torch.randn(200, 256)))
    for way in ("per_token_asymmetric", "per_tensor"):
        yield lambda way=way: linear_int8.linear_int8(x, packed, activation=way)


def images(dtype):
    x, wide = lasting(torch.randn(2, 32, 60, 40).to(dtype)), lasting(torch.randn(1, 32, 112, 112).to(dtype))
    weight = torch.randn(64, 32, 3, 3)
    minimal = winograd.pack(weight, dtype=dtype, padding=(1, 1), tile=2)
    yield lambda: winograd.convolution_3x3(wide, minimal, post_op="relu")
    direct = convolution_last.pack(weight, dtype=dtype, stride=(2, 1), padding=(1, 1))
    yield lambda: convolution_last.convolution_last(x, direct)
    planes, first = torch.randn(2, 3, 80, 80), convolution_last.pack(torch.randn(32, 3, 7, 7), dtype=dtype, padding=(3, 3))
    yield lambda: convolution_last.convolution_last(planes, first, out_dtype=dtype)
    each = depthwise.pack(torch.randn(32, 1, 7, 7), padding=(3, 3))
    yield lambda: depthwise.depthwise(wide, each, post_op="silu")
    yield lambda: pooling.max_pool(wide, (3, 3), (2, 2), (1, 1))
    yield lambda: transpose.to_channels_last(torch.ones_like(x).contiguous() * 0.3, dtype)


def sequences(dtype):
    x, weight = torch.randn(900, 768), torch.randn(768)
    yield lambda: norm.rms_norm(x, weight, 1e-6, out_dtype=dtype)
    yield lambda: activation.activation(x, "gelu_tanh")
    query, key = torch.randn(3, 5, 200, 64).to(dtype), torch.randn(3, 5, 220, 64).to(dtype)
    yield lambda: attention.attention(query, key, key, dtype=dtype)
    one = torch.randn(1, 1, 900, 64).to(dtype)
    yield lambda: attention.attention(one, one, one, dtype=dtype)
    yield lambda: batched_matmul.batched_matmul(query, key.transpose(2, 3), dtype=dtype)


@pytest.mark.parametrize("dtype", [FULL, LOW], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", [linears, integers, images, sequences])
@pytest.mark.parametrize("name", ["best", "baseline", "amx_emulated"])
def test_the_same_bits_whoever_took_what(name, family, dtype):
    if not native.available():
        pytest.skip("the twins are torch's own operators")
    torch.manual_seed(0)
    before = torch.get_num_threads()
    with native.level({"best": native.active_level()}.get(name, name)), torch.inference_mode():
        calls = list(family(dtype))
        try:
            torch.set_num_threads(1)
            expected = [call() for call in calls]
            for threads in THREADS:
                torch.set_num_threads(threads)
                for number, call in enumerate(calls):
                    repeats = REPEATS if name == "best" else 1
                    assert all(torch.equal(call(), expected[number]) for _ in range(repeats)), (number, threads)
        finally:
            torch.set_num_threads(before)
