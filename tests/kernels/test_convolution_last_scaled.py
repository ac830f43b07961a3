# SPDX-License-Identifier: Apache-2.0
"""`convolution_last` at the levels that scale bfloat16, to float16 or to integers of 16 bits: what does not fit is multiplied
otherwise, and alone.

Against the twin, on odd shapes: test_convolution_last.py, which runs at these levels too."""

import pytest
import torch
import torch.nn.functional as F

from slipstream.kernels import native
from slipstream.kernels.channels_last.convolution_last import convolution_last, pack

LIMIT = 1.2e-3
"""Of the relative error in norm. Rounding both sides to bfloat16 has 2.4e-3."""
INF, NAN = float("inf"), float("nan")


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


LAYERS = {"lines": (3, 64, 7, 2), "windows": (20, 33, 3, 2), "pixels": (64, 40, 3, 1)}
"""(in, out, kernel, stride): the ways in which csrc/kernels/convolution_last_image.h finds rows of products, and lines."""


def layer(way, *, images=3, seed=0):
    ins, outs, kernel, stride = LAYERS[way]
    torch.manual_seed(seed)
    x = torch.randn(images, ins, 16, 15).contiguous(memory_format=torch.channels_last)
    how = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    return x, torch.randn(outs, ins, kernel, kernel) / (ins * kernel**2) ** 0.5, how


def convolved(x, weight, how):
    return F.conv2d(x.double(), weight.double(), **how)


@pytest.mark.parametrize("way", LAYERS)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_convolution_of_any_magnitude(scaled_to, way, scale):
    x, weight, how = layer(way)
    expected = convolved(x, weight, how)
    images = torch.tensor([1.0, 2.0**-50, 2.0**50])[:, None, None, None]  # each is scaled by itself
    y = convolution_last(x * images, pack(weight * scale, dtype=torch.bfloat16, **how))
    for i in range(3):
        assert error(y[i].double() / images[i].item() / scale, expected[i]) <= LIMIT


@pytest.mark.parametrize("way", LAYERS)
@pytest.mark.parametrize("bad", [NAN, INF, 2.0**70])
def test_an_image_that_does_not_fit_is_convolved_widened(scaled_to, way, bad):
    x, weight, how = layer(way)
    packed, bias = pack(weight, dtype=torch.bfloat16, **how), torch.randn(weight.shape[0])
    residual = torch.randn(convolved(x, weight, how).shape)
    whole = convolution_last(x, packed, bias, residual=residual)
    x[1] *= bad
    y = convolution_last(x, packed, bias, residual=residual)
    expected = convolved(x, weight, how) + bias[:, None, None] + residual
    assert torch.equal(y[::2], whole[::2])
    finite = expected[1].isfinite()
    assert not y[1][~finite].isfinite().any()
    assert not finite.any() or error(y[1][finite], expected[1][finite]) <= LIMIT


@pytest.mark.parametrize("way", LAYERS)
def test_sums_of_like_signs_do_not_overflow(scaled_to, way):
    x, weight, how = layer(way)
    x, weight = torch.full_like(x, 1.99999), torch.full_like(weight, 1.99999)  # rounded to 2, beyond which float16's sums end
    y = convolution_last(x, pack(weight, dtype=torch.bfloat16, **how))
    assert error(y, convolved(x, weight, how)) <= LIMIT


def test_one_group_whose_weights_do_not_fit_leaves_all_in_bfloat16(scaled_to):
    torch.manual_seed(5)
    x, weight = torch.randn(2, 20, 9, 9), torch.randn(80, 10, 3, 3)
    assert pack(weight, dtype=torch.bfloat16, groups=2).data.dtype is scaled_to
    weight[60] *= 2.0**50
    packed = pack(weight, dtype=torch.bfloat16, groups=2)
    assert packed.data.dtype is torch.bfloat16
    y, expected = convolution_last(x, packed), F.conv2d(x.double(), weight.double(), groups=2)
    for channels in (slice(0, 60), slice(60, 61), slice(61, 80)):
        assert error(y[:, channels], expected[:, channels]) <= 4e-3


@pytest.mark.parametrize("groups", [1, 2])
def test_scaled_weights_serve_other_levels(scaled_to, groups):
    torch.manual_seed(6)
    x, weight = torch.randn(2, 20, 9, 9), torch.randn(80, 20 // groups, 3, 3)
    packed = pack(weight, dtype=torch.bfloat16, groups=groups)
    assert packed.data.dtype is scaled_to
    for level in native.levels():
        with native.level(level):
            assert error(convolution_last(x, packed), F.conv2d(x.double(), weight.double(), groups=groups)) <= 4e-3


def test_packing_inside_autocast_changes_nothing(scaled_to):
    _, weight, how = layer("pixels")
    packed = pack(weight, dtype=torch.bfloat16, **how)
    with torch.autocast("cpu", torch.bfloat16):
        inside = pack(weight, dtype=torch.bfloat16, **how)
    assert inside.data.dtype is scaled_to
    assert torch.equal(inside.data.view(torch.int16), packed.data.view(torch.int16))


@pytest.mark.parametrize("way", LAYERS)
def test_channels_that_are_nothing_beside_others_but_decide(scaled_to, way):
    """Weights are zero where the image is large, so that what is left of its other channels is all that there is."""
    x, weight, how = layer(way)
    large = torch.arange(x.shape[1]) % 4 == 0
    x = x * torch.where(large, 2.0**12, 1.0)[:, None, None]
    weight = weight * ~large[:, None, None]
    packed = pack(weight, dtype=torch.bfloat16, **how)
    assert packed.data.dtype is scaled_to
    assert error(convolution_last(x, packed), convolved(x, weight, how)) <= LIMIT


@pytest.mark.parametrize("planes", [False, True])
def test_such_an_image_leaves_others_as_they_are(scaled_to, planes):
    x, weight, how = layer("lines")
    x = x.contiguous() if planes else x
    packed = pack(weight, dtype=torch.bfloat16, **how)
    whole = convolution_last(x, packed)
    x[1, 1:] *= 2.0**-14
    y = convolution_last(x, packed)
    assert torch.equal(y[::2], whole[::2])
    assert error(y[1], convolved(x, weight, how)[1]) <= LIMIT
