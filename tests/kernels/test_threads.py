# SPDX-License-Identifier: Apache-2.0
"""Ten thousand calls from four threads at once, each of another kernel than the last: the same bits as alone.

Scratch memory, tile configurations and teams of threads are what calls could take from each other.
"""

import threading

import pytest
import torch

from slipstream.kernels import (
    activation,
    attention,
    batched_matmul,
    convolution,
    linear,
    linear_int8,
    native,
    norm,
    recurrent,
    transpose,
)
from slipstream.kernels import concatenate as features
from slipstream.kernels.channels_last import convolution_last, depthwise, pooling, winograd

THREADS, CALLS = 4, 10_000
LOW, FULL = torch.bfloat16, torch.float32


def lasting(x):
    return x.contiguous(memory_format=torch.channels_last)


def linears():
    x, gate, bias = torch.randn(37, 200), torch.randn(37, 129), torch.randn(129)
    weight = torch.randn(129, 200)
    for dtype in (FULL, LOW):
        packed = linear.pack(weight, dtype=dtype)
        yield lambda packed=packed: linear.linear(x, packed, bias, post_op="gelu_erf", multiplier=gate)
    integers = linear_int8.pack(*linear_int8.quantize_weight(weight))
    yield lambda: linear_int8.linear_int8(x, integers, bias, activation="per_token_asymmetric")
    wide = linear.pack(torch.randn(512, 512), dtype=LOW)  # enough work for a team
    rows = torch.randn(8, 512)
    yield lambda: linear.linear(rows, wide)
    many, keys = torch.randn(5, 20, 40), torch.randn(5, 33, 40).transpose(1, 2)
    for dtype in (FULL, LOW):
        yield lambda dtype=dtype: batched_matmul.batched_matmul(many, keys, dtype=dtype)


def images():
    x, planes = lasting(torch.randn(1, 16, 9, 10)), torch.randn(1, 8, 11, 7)
    weight, deep = torch.randn(20, 16, 3, 3), depthwise.pack(torch.randn(16, 1, 3, 3), padding=(1, 1))
    for dtype, tile in ((FULL, 4), (LOW, 2)):
        packed = winograd.pack(weight, dtype=dtype, padding=(1, 1), tile=tile)
        yield lambda packed=packed: winograd.convolution_3x3(x, packed, post_op="relu")
        other = convolution.pack(torch.randn(12, 8, 3, 3), dtype=dtype, stride=(2, 1), padding=(1, 1))
        yield lambda other=other: convolution.convolution(planes, other)
        direct = convolution_last.pack(weight, dtype=dtype, stride=(2, 2), padding=(1, 1))
        yield lambda direct=direct: convolution_last.convolution_last(x, direct, post_op="relu")
        pixels = x.to(dtype)
        yield lambda pixels=pixels: depthwise.depthwise(pixels, deep, post_op="relu6")
    yield lambda: pooling.max_pool(x, (3, 3), (2, 2), (1, 1))
    yield lambda: transpose.to_channels_last(planes, LOW)


def sequences():
    x, weight, bias = torch.randn(21, 96), torch.randn(96), torch.randn(96)
    yield lambda: norm.layer_norm(x, weight, bias, 1e-5, residual=x, out_dtype=LOW)
    yield lambda: activation.activation(x, "silu")
    bags = torch.randint(0, 300, (900,)), torch.arange(0, 900, 3)
    parts = [features.Part(features.Kind.BAG_SUM, torch.randn(300, 40), bags) for _ in range(3)]
    yield lambda: features.concatenate(parts, out_dtype=FULL)
    query, key = torch.randn(1, 3, 40, 32), torch.randn(1, 3, 50, 32)
    for dtype in (FULL, LOW):
        yield lambda dtype=dtype: attention.attention(query, key, key, dtype=dtype)
        layer = torch.nn.LSTM(24, 40)
        packed = recurrent.pack("lstm", [each.detach() for each in layer.parameters()], dtype=dtype)
        steps = torch.randn(3, 2, 24)
        yield lambda packed=packed, steps=steps: recurrent.recurrent(steps, packed)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one is other or all(same(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["best", "amx_emulated", "baseline"])
def test_threads_take_nothing_from_each_other(name):
    native_level = {"best": native.active_level()}.get(name, name)
    if not native.available():
        pytest.skip("the twins are torch's own operators")
    torch.manual_seed(0)
    with native.level(native_level), torch.inference_mode():
        calls = [*linears(), *images(), *sequences()]
        expected = [call() for call in calls]
        share = (CALLS if name == "best" else CALLS // 10) // THREADS
        wrong, done = [], []

        def work(first):
            with torch.inference_mode():
                for number in range(share):
                    index = (first + number) % len(calls)
                    try:
                        if not same(calls[index](), expected[index]):
                            wrong.append(index)
                    except Exception as error:  # noqa: BLE001 - a thread's error would only be printed
                        wrong.append(error)
                done.append(first)

        threads = [threading.Thread(target=work, args=(5 * number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(done) == THREADS
