# SPDX-License-Identifier: Apache-2.0
"""`convolution_3x3` is torch's convolution in float64: any size, padding, dtype, tile and level, within its bound."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.channels_last.winograd import choice, convolution_3x3, pack, tiles_of
from slipstream.kernels.linear import POST_OPS, apply_post_op
from tests.kernels.conftest import SCALED_WINOGRAD

DTYPES = [torch.float32, torch.bfloat16]
VARIANTS = [(torch.float32, 2), (torch.float32, 4), (torch.bfloat16, 2)]
NORM = {(torch.float32, 2): 1e-6, (torch.float32, 4): 3e-6, (torch.bfloat16, 2): 6e-3, (torch.bfloat16, 4): 6e-3}
"""Bounds of the relative error in norm. The last of them is for levels that scale bfloat16."""


def oracle(x, weight, padding, bias=None, residual=None, post_op="none"):
    y = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), 1, padding)
    return apply_post_op(y if residual is None else y + residual.double(), post_op)


def relative(y, expected):
    return ((y.double() - expected).norm() / expected.norm()).item()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(0, 3), ins=st.integers(1, 40), outs=st.integers(1, 70), height=st.integers(1, 13),
    width=st.integers(1, 21), padding=st.sampled_from([(0, 0), (1, 1), (1, 0), (2, 1)]),
    variant=st.sampled_from(list(NORM)), x_dtype=st.sampled_from(DTYPES), out_dtype=st.sampled_from(DTYPES),
    post_op=st.sampled_from(POST_OPS), extras=st.sampled_from([(0, 0), (1, 0), (1, 1)]),
    last=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_float64(
    level, batch, ins, outs, height, width, padding, variant, x_dtype, out_dtype, post_op, extras, last, seed
):
    assume(height + 2 * padding[0] >= 3 and width + 2 * padding[1] >= 3)
    dtype, tile = variant
    assume(tile in tiles_of(dtype))
    torch.manual_seed(seed)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(batch, ins, height, width).to(x_dtype).contiguous(memory_format=layout)
    weight = torch.randn(outs, ins, 3, 3) / (9 * ins) ** 0.5
    bias = torch.randn(outs) if extras[0] else None
    expected = oracle(x, weight, padding)
    residual = torch.randn(expected.shape).to(x_dtype) if extras[1] else None
    expected = oracle(x, weight, padding, bias, residual, post_op)
    packed = pack(weight, dtype=dtype, padding=padding, tile=tile)
    y = convolution_3x3(x, packed, bias, post_op=post_op, residual=residual, out_dtype=out_dtype)
    assert y.shape == expected.shape
    assert y.dtype is out_dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype is torch.float32 else 4e-2
    rounding = 2**-8 if out_dtype is torch.bfloat16 else 0
    assert torch.allclose(y.double(), expected, rtol=rounding + tolerance, atol=tolerance * 4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("ins", "outs", "size"), [(64, 64, 14), (512, 48, 7), (96, 130, 9), (600, 16, 5)])
def test_layers_of_real_networks(level, variant, ins, outs, size):
    dtype, tile = variant
    if level == native.EMULATED:
        ins = min(ins, 100)
    torch.manual_seed(0)
    x, weight = torch.randn(2, ins, size, size), torch.randn(outs, ins, 3, 3)
    y = convolution_3x3(x, pack(weight, dtype=dtype, tile=tile))
    assert relative(y, oracle(x, weight, (1, 1))) <= NORM[variant]


@pytest.mark.parametrize("tile", [2, 4])
def test_many_tiles_are_walked_in_blocks(level, tile):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(1, 40, 62, 75), torch.randn(33, 40, 3, 3) / 19, torch.randn(33)
    residual = torch.randn(1, 33, 60, 73)
    y = convolution_3x3(x, pack(weight, padding=(0, 0), tile=tile), bias, post_op="relu", residual=residual)
    assert relative(y, oracle(x, weight, (0, 0), bias, residual, "relu")) <= 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_image_and_tiles(level, variant, bad):
    dtype, tile = variant
    torch.manual_seed(2)
    x = torch.randn(3, 20, 12, 12)
    packed = pack(torch.randn(40, 20, 3, 3), dtype=dtype, tile=tile)
    whole = convolution_3x3(x, packed)
    x[1, 7, 5, 5] = bad
    y = convolution_3x3(x, packed)
    assert not torch.isfinite(y[1][:, 4:7, 4:7]).any()
    reached = torch.zeros(3, 1, 12, 12, dtype=torch.bool)
    reached[1, :, 0:10, 0:10] = True
    same = torch.equal if level != "plain" else torch.allclose
    if level in SCALED_WINOGRAD and dtype is torch.bfloat16:  # what is not finite makes its image fit no more
        assert (y - whole)[1][~reached[1].expand_as(y[1])].abs().max() <= 4e-3 * whole.abs().max()
        reached[1] = True
    assert same(y[~reached.expand_as(y)], whole[~reached.expand_as(y)])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [4, 20])
def test_strides_threads_and_batch_change_no_bit(level, variant, size):
    dtype, tile = variant
    torch.manual_seed(3)
    x, weight = torch.randn(5, 70, size, size + 1), torch.randn(100, 70, 3, 3)
    packed = pack(weight, dtype=dtype, tile=tile)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = convolution_3x3(x, packed)
        torch.set_num_threads(2)
        assert torch.equal(convolution_3x3(x, packed), alone) or level == "plain"
        wider = torch.randn(5, size, size + 1, 80)[..., :70].copy_(x.movedim(1, -1)).movedim(-1, 1)
        assert torch.equal(convolution_3x3(wider, packed), alone) or level == "plain"
        assert torch.equal(convolution_3x3(x[3:4], packed), alone[3:4]) or level == "plain"
    finally:
        torch.set_num_threads(before)


def test_weights_in_bfloat16_and_of_any_strides(level):
    torch.manual_seed(4)
    weight = torch.randn(3, 3, 20, 30).bfloat16().permute(3, 2, 0, 1)
    x = torch.randn(1, 20, 8, 8)
    y = convolution_3x3(x.float(), pack(weight))
    assert relative(y, oracle(x, weight, (1, 1))) <= 1e-6


@pytest.mark.skipif(not native.available(), reason="operators of the extension")
@pytest.mark.parametrize("variant", VARIANTS)
def test_fakes_agree_with_the_operators(variant):
    dtype, tile = variant
    weight, bias = torch.randn(40, 20, 3, 3), torch.randn(40)
    arguments = (weight, tile, dtype is torch.bfloat16)
    torch.library.opcheck(torch.ops.slipstream.pack_winograd.default, arguments)
    packed = torch.ops.slipstream.pack_winograd(*arguments)
    x = torch.randn(2, 20, 9, 5).to(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.slipstream.winograd.default, (x, packed, 40, tile, 1, 0, bias, 1, None, True))


def test_choice_by_size_and_channels(level):
    if level == "plain":
        assert choice((1, 64, 56, 56), 64).tile is None
        return
    assert choice((1, 64, 56, 56), 64).tile == 4
    assert choice((8, 512, 7, 7), 512).tile == 4
    assert choice((1, 512, 7, 7), 512).tile == 2  # four tiles of 4 x 4 do not repay reading their weights
    for few in (choice((1, 3, 224, 224), 64), choice((0, 64, 56, 56), 64), choice((1, 512, 1, 1), 512)):
        assert few.tile is None
        assert not few.decision.taken
    half = choice((1, 256, 14, 14), 256, dtype=torch.bfloat16)
    no_gain = level in ("baseline", "amx", native.EMULATED)
    assert half.tile == (None if no_gain else 4)
    assert half.decision.reason


def test_bad_input_names_the_argument():
    weight = torch.randn(4, 3, 3, 3)
    with pytest.raises(UsageError, match="weight of shape"):
        pack(torch.randn(4, 3, 3, 1))
    with pytest.raises(UsageError, match=r"dtype torch\.float16"):
        pack(weight, dtype=torch.float16)
    with pytest.raises(UsageError, match="tile 6: not one of 2, 4"):
        pack(weight, tile=6)
    with (
        native.level("avx512") if "avx512" in native.levels() else nullcontext(),
        pytest.raises(UsageError, match=r"tile 4: not one of 2; pack it with dtype=torch\.float32"),
    ):
        pack(weight, tile=4, dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="padding"):
        pack(weight, padding=(-1, 0))
    packed = pack(weight, padding=(0, 0))
    x = torch.randn(1, 3, 5, 5)
    with pytest.raises(UsageError, match="post_op mish"):
        convolution_3x3(x, packed, post_op="mish")
    with pytest.raises(UsageError, match="x of shape"):
        convolution_3x3(torch.randn(1, 2, 5, 5), packed)
    with pytest.raises(UsageError, match="smaller than the kernel"):
        convolution_3x3(torch.randn(1, 3, 2, 5), packed)
    with pytest.raises(RuntimeError, match="gradient"):
        convolution_3x3(x.clone().requires_grad_(), packed)
    with pytest.raises(RuntimeError):
        convolution_3x3(x, packed, residual=torch.randn(1, 4, 5, 5))
