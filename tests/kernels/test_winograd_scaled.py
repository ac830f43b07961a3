# SPDX-License-Identifier: Apache-2.0
"""`convolution_3x3` at the levels that scale bfloat16, to float16 or to integers of 16 bits.

Against the twin, on odd shapes: test_winograd.py, which runs at these levels too."""

import pytest
import torch
import torch.nn.functional as F

from slipstream.kernels import native
from slipstream.kernels.channels_last.winograd import TILES, convolution_3x3, pack

LIMIT = {(torch.float16, 2): 2e-3, (torch.float16, 4): 5e-3, (torch.int16, 2): 1e-3, (torch.int16, 4): 2.5e-3}
"""Of the relative error in norm. A direct product of bfloat16 has 2.4e-3."""


def operands(seed, batch=3, ins=20, outs=70, size=(9, 13)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, ins, *size, generator=generator), torch.randn(outs, ins, 3, 3, generator=generator)


def packed_for(weight, tile):
    return pack(weight, dtype=torch.bfloat16, tile=tile)


def oracle(x, weight):
    return F.conv2d(x.double(), weight.double(), None, 1, 1)


def error(y, expected):
    return ((y.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("ins", "outs", "size"), [(64, 64, 14), (512, 48, 7), (96, 130, 9), (600, 16, 5), (33, 33, 1)])
def test_layers_of_real_networks(winograd_scaled_to, tile, ins, outs, size):
    """With activations as a relu leaves them, too: all of one sign, whose sums are the largest."""
    normal, weight = operands(0, 2, ins, outs, (size, size))
    packed = packed_for(weight, tile)
    assert packed.data.dtype is winograd_scaled_to
    for x in (normal, normal.relu(), torch.full_like(normal, 1.99999)):
        assert error(convolution_3x3(x, packed), oracle(x, weight)) <= LIMIT[winograd_scaled_to, tile]


@pytest.mark.parametrize("tile", TILES)
def test_the_largest_transformed_values_do_not_overflow(winograd_scaled_to, tile):
    """Pixels of the signs that add up: sums of a transform are as large as they can be somewhere, and all channels agree, in
    what is lost too."""
    torch.manual_seed(11)
    x = 1.99999 * (torch.randint(0, 2, (1, 1, 24, 24)) * 2 - 1.0).expand(1, 64, 24, 24)
    weight = 1.99999 * (torch.randint(0, 2, (70, 1, 3, 3)) * 2 - 1.0).expand(70, 64, 3, 3)
    assert error(convolution_3x3(x, packed_for(weight, tile)), oracle(x, weight)) <= 3 * LIMIT[winograd_scaled_to, tile]


@pytest.mark.parametrize("tile", TILES)
def test_the_longest_sums_of_the_largest_products_do_not_overflow(winograd_scaled_to, tile):
    x, weight = torch.full((1, 1024, 9, 9), 1.9999), torch.full((40, 1024, 3, 3), 1.9999)
    assert error(convolution_3x3(x, packed_for(weight, tile)), oracle(x, weight)) <= 3 * LIMIT[winograd_scaled_to, tile]


@pytest.mark.parametrize("tile", TILES)
def test_threads_and_batch_change_no_bit(winograd_scaled_to, tile):
    x, weight = operands(3, 5, 70, 100, (13, 14))
    packed = packed_for(weight, tile)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = convolution_3x3(x, packed)
        torch.set_num_threads(2)
        assert torch.equal(convolution_3x3(x, packed), alone)
        assert torch.equal(convolution_3x3(x[3:4], packed), alone[3:4])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("tile", TILES)
def test_scaled_weights_serve_other_levels(winograd_scaled_to, tile):
    x, weight = operands(8, 2, 21)
    packed = packed_for(weight, tile)
    assert packed.data.dtype is winograd_scaled_to
    for level in native.levels():
        with native.level(level):
            assert error(convolution_3x3(x, packed), oracle(x, weight)) <= LIMIT[winograd_scaled_to, tile]


@pytest.mark.parametrize("tile", TILES)
def test_weights_that_do_not_fit_are_packed_otherwise(winograd_scaled_to, tile):
    x, weight = operands(9, 2)
    weight[65] *= 2.0**50
    packed = packed_for(weight, tile)
    assert packed.data.dtype is (torch.bfloat16 if tile == 2 and native.active_level() == "avx512_bf16" else torch.float32)
    y, expected = convolution_3x3(x, packed), oracle(x, weight)
    for channels in (slice(0, 65), slice(65, 66)):
        assert error(y[:, channels], expected[:, channels]) <= 6e-3


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bad", [2.0**70, float("inf")])
def test_an_image_that_does_not_fit_is_convolved_widened(winograd_scaled_to, tile, bad):
    x, weight = operands(10)
    packed = packed_for(weight, tile)
    whole = convolution_3x3(x, packed)
    x[1] *= bad
    before = torch.ops.slipstream.images_convolved_twice()
    y = convolution_3x3(x, packed)
    assert torch.ops.slipstream.images_convolved_twice() == before + 1
    assert torch.equal(y[::2], whole[::2])
    if bad < float("inf"):
        assert error(y[1], oracle(x, weight)[1]) <= LIMIT[winograd_scaled_to, tile]
    else:
        assert not y[1].isfinite().any()


@pytest.mark.parametrize("tile", TILES)
def test_faint_images_keep_their_digits(winograd_scaled_to, tile):
    """Each is scaled by itself, down to where scales end."""
    x, weight = operands(12)
    x *= torch.tensor([1.0, 2.0**-30, 2.0**-90])[:, None, None, None]
    y, expected = convolution_3x3(x, packed_for(weight, tile)), oracle(x, weight)
    for image in range(3):
        assert error(y[image], expected[image]) <= LIMIT[winograd_scaled_to, tile]


@pytest.mark.parametrize("tile", TILES)
def test_channels_that_are_nothing_beside_others_but_decide(winograd_scaled_to, tile):
    """Weights are zero where the image is large, so that what is left of its other channels is all that there is."""
    x, weight = operands(13, ins=64)
    large = torch.arange(64) % 4 == 0
    x = x * torch.where(large, 2.0**12, 1.0)[:, None, None]
    weight = weight * ~large[:, None, None]
    packed = packed_for(weight, tile)
    assert packed.data.dtype is winograd_scaled_to
    assert error(convolution_3x3(x, packed), oracle(x, weight)) <= LIMIT[winograd_scaled_to, tile]
