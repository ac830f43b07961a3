# SPDX-License-Identifier: Apache-2.0
"""A kernel bound to what does not change answers the same bits as its checked function, on whatever layouts a graph has."""

import pytest
import torch

from slipstream.kernels import attention, linear, norm
from slipstream.kernels.channels_last import convolution_last, depthwise, inverted_residual, pooling, winograd
from slipstream.optimize.graph.operators import quick
from slipstream.optimize.graph.operators.pooling import GlobalAverage

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def same(got, wanted):
    assert got.dtype == wanted.dtype and got.stride() == wanted.stride()
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


def last(*size, dtype=torch.float32):
    return torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last)


def residuals(*size, dtype):
    """None, channels last, channels first, and every second row of a larger one."""
    return [None, last(*size, dtype=dtype), torch.randn(size), last(size[0], size[1], 2 * size[2], size[3])[:, :, ::2]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [False, True])
def test_linear(dtype, first):
    packed = linear.pack(torch.randn(40, 24), dtype=dtype)
    run = quick.linear(packed, "gelu_erf", dtype, residual_first=first)
    for x in (torch.randn(2, 5, 24), torch.randn(24, 6).T, torch.randn(0, 24)):
        more = torch.randn(*x.shape[:-1], 40)
        for residual, multiplier, bias in ((None, None, None), (more, None, torch.randn(40)), (more, more.sin(), None)):
            wanted = linear.linear(
                x, packed, bias, post_op="gelu_erf", residual=residual, multiplier=multiplier, residual_first=first,
                out_dtype=dtype,
            )  # fmt: skip
            same(run(x, residual, multiplier, bias), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 24)])
def test_convolutions(dtype, bias):
    images = [last(2, 24, 9, 8, dtype=dtype), last(2, 24, 9, 16)[:, :, :, ::2], last(1, 24, 9, 8)]
    ways = [
        (quick.depthwise, depthwise.depthwise, depthwise.pack(torch.randn(24, 1, 3, 3), padding=(1, 1), end_padding=(1, 1))),
        (quick.convolution_3x3, winograd.convolution_3x3, winograd.pack(torch.randn(24, 24, 3, 3), padding=(1, 1))),
        (
            quick.convolution_last, convolution_last.convolution_last,
            convolution_last.pack(torch.randn(24, 12, 3, 3), dtype=dtype, padding=(1, 1), groups=2),
        ),
    ]  # fmt: skip
    for bound, checked, packed in ways:
        run = bound(packed, bias, "relu", dtype)
        for x in images:
            for residual in residuals(*x.shape, dtype=dtype):
                same(run(x, residual), checked(x, packed, bias, post_op="relu", residual=residual, out_dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_planes(dtype):
    packed = convolution_last.pack(torch.randn(16, 3, 5, 5), dtype=dtype, stride=(2, 2), padding=(2, 2))
    run = quick.convolution_last(packed, None, "none", dtype)
    for x in (torch.randn(2, 3, 20, 21), last(2, 3, 20, 21), torch.randn(2, 20, 3, 21).transpose(1, 2)):
        same(run(x, None), convolution_last.convolution_last(x, packed, out_dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverted_residual(dtype):
    def point(n, k):
        return inverted_residual.Pointwise(linear.pack(torch.randn(n, k), dtype=dtype), torch.randn(n), "relu6", dtype)

    middle = inverted_residual.Middle(depthwise.pack(torch.randn(48, 1, 3, 3), padding=(1, 1)), None, "relu6", dtype)
    for expand, project in ((point(48, 16), point(16, 48)), (None, point(16, 48)), (point(48, 16), None)):
        run = quick.inverted_residual(expand, middle, project)
        x = last(2, 16 if expand else 48, 10, 9)
        for residual in residuals(2, 16, 10, 9, dtype=dtype) if project else [None]:
            for image in (x, x.contiguous()):
                wanted = inverted_residual.inverted_residual(image, expand, middle, project, residual=residual)
                same(run(image, residual), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype):
    weight, bias = torch.randn(33), torch.randn(33)
    for x in (torch.randn(2, 7, 33), torch.randn(33, 4).T, torch.randn(3, 33).to(dtype), torch.randn(0, 33)):
        for residual in (None, torch.randn(x.shape)):
            wanted = norm.layer_norm(x, weight, bias, 1e-5, residual=residual, out_dtype=dtype)
            same(quick.layer_norm(1e-5, dtype, centred=True)(x, residual, weight, bias), wanted)
            wanted = norm.rms_norm(x, weight, 1e-6, residual=residual, out_dtype=dtype)
            same(quick.layer_norm(1e-6, dtype, centred=False)(x, residual, weight, None), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pooling(dtype):
    for x in (last(2, 20, 11, 8, dtype=dtype), last(2, 20, 22, 8, dtype=dtype)[:, :, ::2]):
        numbers = (3, 2), (2, 2), (1, 0), (1, 1), True
        same(quick.max_pool(*numbers)(x), pooling.max_pool(x, *numbers))
        same(quick.global_average()(x), pooling.global_average(x))


def test_an_image_without_pixels_has_no_mean():
    with pytest.raises((RuntimeError, ValueError)):
        GlobalAverage(torch.float32)(last(2, 20, 0, 8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(dtype, causal):
    query, key, value = (torch.randn(2, length, 3, 16).transpose(1, 2) for length in (9, 9, 9))
    for mask in (None, torch.rand(2, 1, 1, 9) > 0.2, torch.randn(9, 9)):
        for scale in (None, 0.3):
            wanted = attention.attention(
                query, key, value, mask, causal=causal, scale=scale, dtype=dtype, out_dtype=dtype, unseen=0.0
            )
            got = quick.attention(dtype, dtype, causal=causal, scale=scale, unseen=0.0)(query, key, value, mask)
            same(got, wanted)
