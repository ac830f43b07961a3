# SPDX-License-Identifier: Apache-2.0
"""Products of two activations, and direct convolutions, in float16 at the level that has it: what does not fit is multiplied
otherwise, and alone.

Linear and minimal filtering: test_linear.py and test_winograd.py."""

import pytest
import torch
import torch.nn.functional as F

from slipstream.kernels import native
from slipstream.kernels.attention import attention
from slipstream.kernels.batched_matmul import batched_matmul
from slipstream.kernels.channels_last.convolution_last import convolution_last, pack

LIMIT = 8e-3
INF, NAN = float("inf"), float("nan")

pytestmark = pytest.mark.usefixtures("float16_level")


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def exact(q, k, v):
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v.double()


def heads(queries, keys, depth=40, width=33):
    torch.manual_seed(queries)
    return tuple(torch.randn(2, 3, *size).bfloat16() for size in ((queries, depth), (keys, depth), (keys, width)))


@pytest.mark.parametrize(("queries", "keys"), [(48, 48), (75, 300), (64, 1100)])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_attention_of_any_magnitude(queries, keys, scale):
    q, k, v = heads(queries, keys)
    assert error(attention(q, k, v * scale), exact(q, k, v * scale)) <= LIMIT
    assert error(attention(q * scale, k / scale, v), exact(q * scale, k / scale, v)) <= LIMIT


@pytest.mark.parametrize("bad", [NAN, INF, 2.0**70])
def test_a_query_that_does_not_fit_reaches_no_other(bad):
    q, k, v = heads(60, 90)
    whole = attention(q, k, v)
    q[1, 2, 17] *= bad
    q[0, 0, 59] *= bad
    y = attention(q, k, v)
    expected = exact(q, k, v)
    others = torch.ones(60, dtype=torch.bool)
    others[[17, 59]] = False  # in float32 in all heads of its batch
    assert torch.equal(y[:, :, others], whole[:, :, others])
    finite = expected.isfinite()
    assert torch.equal(y.isnan(), expected.isnan())
    assert error(y[finite], expected[finite]) <= LIMIT


@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize("bad", [NAN, INF, 2.0**60])
def test_keys_and_values_that_do_not_fit(which, bad):
    q, k, v = heads(60, 90)
    (k if which == "key" else v)[1, 2, 30, 5] = bad
    y, expected = attention(q, k, v), exact(q, k, v)
    finite = expected.isfinite()
    assert torch.equal(y.isnan(), expected.isnan())
    assert error(y[finite], expected[finite]) <= LIMIT
    assert error(y[0], expected[0]) <= LIMIT


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("bad", "columns"), [(None, 0), (NAN, 1), (INF, 1), (2.0**60, 1)])
def test_products_of_two_activations(turned, bad, columns):
    torch.manual_seed(1)
    a, b = torch.randn(3, 70, 100).bfloat16(), torch.randn(3, 100, 45).bfloat16()
    if turned:
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    if bad is not None:
        b[1, 7, 3] = bad
    y, expected = batched_matmul(a, b, out_dtype=torch.float32), a.double() @ b.double()
    clean = torch.ones(3, 45, dtype=torch.bool)
    clean[1, 3] = not columns
    clean = clean[:, None].expand(y.shape)
    assert error(y[clean], expected[clean]) <= 1.2e-3
    assert torch.equal(y[~clean].isnan(), expected[~clean].isnan())


LAYERS = {"lines": (3, 64, 7, 2), "windows": (20, 33, 3, 2), "pixels": (64, 40, 3, 1)}
"""(in, out, kernel, stride): the ways in which csrc/kernels/convolution_last_image.h finds rows of products, and lines."""


def layer(kind, *, images=3, seed=0):
    ins, outs, kernel, stride = LAYERS[kind]
    torch.manual_seed(seed)
    x = torch.randn(images, ins, 16, 15).contiguous(memory_format=torch.channels_last)
    how = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    return x, torch.randn(outs, ins, kernel, kernel) / (ins * kernel**2) ** 0.5, how


def convolved(x, weight, how):
    return F.conv2d(x.double(), weight.double(), **how)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_convolution_of_any_magnitude(kind, scale):
    x, weight, how = layer(kind)
    expected = convolved(x, weight, how)
    images = torch.tensor([1.0, 2.0**-50, 2.0**50])[:, None, None, None]  # each is scaled by itself
    y = convolution_last(x * images, pack(weight * scale, dtype=torch.bfloat16, **how))
    for i in range(3):
        assert error(y[i].double() / images[i].item() / scale, expected[i]) <= 1.2e-3


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bad", [NAN, INF, 2.0**70])
def test_an_image_that_does_not_fit_is_convolved_widened(kind, bad):
    x, weight, how = layer(kind)
    packed, bias = pack(weight, dtype=torch.bfloat16, **how), torch.randn(weight.shape[0])
    residual = torch.randn(convolved(x, weight, how).shape)
    whole = convolution_last(x, packed, bias, residual=residual)
    x[1] *= bad
    y = convolution_last(x, packed, bias, residual=residual)
    expected = convolved(x, weight, how) + bias[:, None, None] + residual
    assert torch.equal(y[::2], whole[::2])
    finite = expected[1].isfinite()
    assert not y[1][~finite].isfinite().any()
    assert not finite.any() or error(y[1][finite], expected[1][finite]) <= 1.2e-3


@pytest.mark.parametrize("kind", LAYERS)
def test_sums_of_like_signs_do_not_overflow_in_a_convolution(kind):
    x, weight, how = layer(kind)
    x, weight = torch.full_like(x, 1.99999), torch.full_like(weight, 1.99999)  # rounded to 2, beyond which float16's sums end
    y = convolution_last(x, pack(weight, dtype=torch.bfloat16, **how))
    assert error(y, convolved(x, weight, how)) <= 1.2e-3


def test_one_group_whose_weights_do_not_fit_leaves_all_in_bfloat16():
    torch.manual_seed(5)
    x, weight = torch.randn(2, 20, 9, 9), torch.randn(80, 10, 3, 3)
    assert pack(weight, dtype=torch.bfloat16, groups=2).data.dtype is torch.float16
    weight[60] *= 2.0**50
    packed = pack(weight, dtype=torch.bfloat16, groups=2)
    assert packed.data.dtype is torch.bfloat16
    y, expected = convolution_last(x, packed), F.conv2d(x.double(), weight.double(), groups=2)
    for channels in (slice(0, 60), slice(60, 61), slice(61, 80)):
        assert error(y[:, channels], expected[:, channels]) <= 4e-3


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_packed_in_float16_serve_other_levels(groups):
    torch.manual_seed(6)
    x, weight = torch.randn(2, 20, 9, 9), torch.randn(80, 20 // groups, 3, 3)
    packed = pack(weight, dtype=torch.bfloat16, groups=groups)
    for level in native.levels():
        with native.level(level):
            assert error(convolution_last(x, packed), F.conv2d(x.double(), weight.double(), groups=groups)) <= 4e-3


def test_packing_inside_autocast_changes_nothing():
    _, weight, how = layer("pixels")
    packed = pack(weight, dtype=torch.bfloat16, **how)
    with torch.autocast("cpu", torch.bfloat16):
        inside = pack(weight, dtype=torch.bfloat16, **how)
    assert inside.data.dtype is torch.float16
    assert torch.equal(inside.data.view(torch.int16), packed.data.view(torch.int16))
