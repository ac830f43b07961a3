# SPDX-License-Identifier: Apache-2.0
"""`convolution_last` is torch's convolution in float64: any size, stride, padding, dilation, groups, dtype and level."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.channels_last.convolution_last import convolution_last, pack
from slipstream.kernels.post_op import POST_OPS, apply_post_op
from tests.kernels.conftest import SCALED

DTYPES = [torch.float32, torch.bfloat16]
NORM = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Bounds of the relative error in norm."""

KERNELS = [(3, 3), (5, 5), (7, 7), (1, 3), (4, 1), (2, 2), (1, 1)]


def oracle(x, weight, bias=None, residual=None, post_op="none", *, behind=None, padding=(0, 0), **numbers):
    behind = behind or padding
    image = F.pad(x.double(), (padding[1], behind[1], padding[0], behind[0]))
    y = F.conv2d(image, weight.double(), None if bias is None else bias.double(), **numbers)
    return apply_post_op(y if residual is None else y + residual.double(), post_op)


def relative(y, expected):
    return ((y.double() - expected).norm() / expected.norm()).item()


def is_scaled(level, dtype):
    """Whether x and weights are multiplied scaled: operands lose digits, so that a bound cannot be tight."""
    return level in SCALED and dtype is torch.bfloat16


def rounded(tensor, dtype):
    """What is multiplied at every level, so that a bound can be tight."""
    return tensor.to(dtype).float()


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(0, 3), ins=st.sampled_from([1, 3, 5, 32]), outs=st.sampled_from([1, 20, 33]), groups=st.integers(1, 2),
    size=st.tuples(st.integers(1, 12), st.integers(1, 19)), kernel=st.sampled_from(KERNELS), stride=pairs, dilation=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), more=st.sampled_from([None, (1, 0), (0, 2)]),
    dtype=st.sampled_from(DTYPES), x_dtype=st.sampled_from(DTYPES), out_dtype=st.sampled_from(DTYPES),
    post_op=st.sampled_from(POST_OPS), extras=st.sampled_from([(0, 0), (1, 0), (1, 1)]), last=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_float64(
    level, batch, ins, outs, groups, size, kernel, stride, dilation, padding, more, dtype, x_dtype, out_dtype, post_op,
    extras, last, seed,
):  # fmt: skip
    behind = padding if more is None else (padding[0] + more[0], padding[1] + more[1])
    assume(all(size[i] + padding[i] + behind[i] > (kernel[i] - 1) * dilation[i] for i in range(2)))
    torch.manual_seed(seed)
    x = rounded(torch.randn(batch, ins * groups, *size), dtype).to(x_dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight = rounded(torch.randn(outs * groups, ins, *kernel) / (ins * kernel[0] * kernel[1]) ** 0.5, dtype)
    bias = torch.randn(outs * groups) if extras[0] else None
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    expected = oracle(x, weight, behind=behind, **how)
    residual = torch.randn(expected.shape).to(x_dtype) if extras[1] else None
    expected = oracle(x, weight, bias, residual, post_op, behind=behind, **how)
    packed = pack(weight, dtype=dtype, end_padding=None if more is None else behind, **how)
    y = convolution_last(x, packed, bias, post_op=post_op, residual=residual, out_dtype=out_dtype)
    assert y.shape == expected.shape
    assert y.dtype is out_dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if level != "plain" or dtype is torch.float32 else 2e-2
    tolerance = 8e-3 if is_scaled(level, dtype) else tolerance
    rounding = 2**-8 if out_dtype is torch.bfloat16 else 0
    approximate = 2e-4 if out_dtype is torch.bfloat16 else 0  # GELU for results in bfloat16
    assert torch.allclose(y.double(), expected, rtol=rounding + tolerance, atol=approximate + tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ins", "outs", "size", "kernel", "stride"),
    [
        (3, 64, 30, 7, 2), (3, 32, 41, 3, 2), (3, 96, 24, 4, 4), (4, 20, 19, 3, 1), (128, 64, 14, 3, 2), (96, 40, 7, 3, 1),
        (48, 32, 9, 5, 1), (1100, 8, 4, 3, 1),
    ],
)  # fmt: skip
def test_layers_of_real_networks(level, dtype, ins, outs, size, kernel, stride):
    torch.manual_seed(0)
    x, weight = torch.randn(2, ins, size, size), torch.randn(outs, ins, kernel, kernel)
    padding = 0 if stride == kernel else kernel // 2
    how = {"stride": (stride, stride), "padding": (padding, padding)}
    y = convolution_last(x, pack(weight, dtype=dtype, **how))
    assert relative(y, oracle(x, weight, **how)) <= NORM[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ins", "outs", "size", "stride", "dilation"),
    [
        (64, 33, (62, 75), 1, 1), (64, 33, (62, 75), 2, 1), (40, 9, (33, 70), 1, 3), (32, 32, (9, 260), 1, 1),
        (32, 32, (20, 500), 2, 1),
    ],
)  # fmt: skip
def test_large_images_are_walked_in_blocks(level, dtype, ins, outs, size, stride, dilation):
    if level == native.EMULATED and outs == 33 and stride == 2:
        pytest.skip("emulated tiles take seconds; one large image is enough")
    torch.manual_seed(1)
    x, weight = rounded(torch.randn(2, ins, *size), dtype), rounded(torch.randn(outs, ins, 3, 3) / 24, dtype)
    how = {"stride": (stride, stride), "padding": (dilation, 1), "dilation": (dilation, dilation)}
    bias = torch.randn(outs)
    residual = torch.randn(oracle(x, weight, **how).shape)
    y = convolution_last(x, pack(weight, dtype=dtype, **how), bias, post_op="relu", residual=residual)
    limit = NORM[dtype] if level == "plain" or is_scaled(level, dtype) else 1e-6
    assert relative(y, oracle(x, weight, bias, residual, "relu", **how)) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3.4e38])
@pytest.mark.parametrize("ins", [3, 32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("column", [0, 5, 39])
def test_what_is_not_finite_reaches_only_who_sees_it(level, dtype, bad, ins, stride, column):
    """3.4e38 is more than the largest bfloat16. Windows of 9 elements overlap, and products take elements by twos."""
    torch.manual_seed(2)
    x = torch.randn(3, ins, 12, 40).contiguous(memory_format=torch.channels_last)
    how = {"stride": (stride, stride), "padding": (1, 1)}
    packed = pack(torch.randn(40, ins, 3, 3) * 2, dtype=dtype, **how)
    whole = convolution_last(x, packed)
    channels = slice(2, 3) if level == "plain" else slice(None)  # torch's own lets the first channel reach a neighbour
    x[1, channels, 5, column] = bad
    y = convolution_last(x, packed)
    place = torch.zeros(x.shape)
    place[1, 2, 5, column] = 1
    seen = oracle(place, torch.ones(1, ins, 3, 3), **how) != 0
    if bad != 3.4e38:
        assert not torch.isfinite(y[seen.expand_as(y)]).any()
    same = torch.equal if level != "plain" else torch.allclose
    unseen = ~seen.expand_as(y)
    if is_scaled(level, dtype):  # the image is multiplied in float32 then
        assert relative(y[1][unseen[1]], whole[1][unseen[1]].double()) <= NORM[dtype]
        unseen[1] = False
    assert same(y[unseen], whole[unseen])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "stride"), [(4, 1), (20, 1), (20, 2)])
@pytest.mark.parametrize("ins", [64, 20, 3])
def test_strides_threads_and_batch_change_no_bit(level, dtype, size, stride, ins):
    torch.manual_seed(3)
    x, weight = torch.randn(5, ins, size, size + 1), torch.randn(100, ins, 3, 3)
    packed = pack(weight, dtype=dtype, stride=(stride, stride), padding=(1, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = convolution_last(x, packed)
        torch.set_num_threads(2)
        assert torch.equal(convolution_last(x, packed), alone) or level == "plain"
        wider = torch.randn(5, size, size + 1, ins + 9)[..., :ins].copy_(x.movedim(1, -1)).movedim(-1, 1)
        assert torch.equal(convolution_last(wider, packed), alone) or level == "plain"
        assert torch.equal(convolution_last(x[3:4], packed), alone[3:4]) or level == "plain"
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(convolution_last(last, packed), alone) or level == "plain"
        cut = torch.randn(5, ins + 1, size + 2, size + 4)[:, 1:, 2:, 3:].copy_(x)
        assert torch.equal(convolution_last(cut, packed), alone) or level == "plain"
    finally:
        torch.set_num_threads(before)


def test_silu_rounded_to_bfloat16_is_right_everywhere(level):
    x = torch.cat([torch.linspace(-95, 95, 3001), torch.tensor([0.0, -1e30, 1e30, -3e38, torch.nan, torch.inf, -torch.inf])])
    packed = pack(torch.ones(1, 1, 1, 1), dtype=torch.float32)
    y = convolution_last(x.view(1, 1, 1, -1), packed, post_op="silu", out_dtype=torch.bfloat16).flatten().double()
    torch.testing.assert_close(y, F.silu(x.double()), rtol=1.03 * 2**-8, atol=1e-34, equal_nan=True)


def test_weights_in_bfloat16_and_of_any_strides(level):
    torch.manual_seed(4)
    weight = torch.randn(3, 3, 20, 30).bfloat16().permute(3, 2, 0, 1)
    x = torch.randn(1, 20, 8, 8)
    y = convolution_last(x, pack(weight, dtype=torch.float32))
    assert relative(y, oracle(x, weight)) <= 1e-6


@pytest.mark.skipif(not native.available(), reason="operators of the extension")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fake_agrees_with_the_operator(dtype):
    packed = pack(torch.randn(40, 10, 3, 3), dtype=dtype, stride=(2, 1), groups=2)
    x = torch.randn(2, 20, 9, 5).to(memory_format=torch.channels_last)
    arguments = (x, packed.data, 40, torch.randn(40), 2, packed.numbers, 1, None, True)
    torch.library.opcheck(torch.ops.slipstream.convolution_last.default, arguments)
    packed = pack(torch.randn(40, 3, 3, 3), dtype=dtype)
    arguments = (torch.randn(2, 3, 9, 5), packed.data, 40, None, 1, packed.numbers, 0, None, False)
    torch.library.opcheck(torch.ops.slipstream.convolution_last.default, arguments)


@pytest.mark.skipif(not native.available(), reason="operators of the extension")
def test_the_operator_reads_few_planes_only(level):
    packed = pack(torch.randn(40, 9, 3, 3), dtype=torch.float32)
    with pytest.raises(RuntimeError, match="channels are not innermost"):
        torch.ops.slipstream.convolution_last(torch.randn(2, 9, 9, 5), packed.data, 40, None, 1, packed.numbers, 0, None, False)


def test_bad_input_names_the_argument():
    weight = torch.randn(4, 3, 3, 3)
    with pytest.raises(UsageError, match="weight of shape"):
        pack(torch.randn(4, 3, 3), dtype=torch.float32)
    with pytest.raises(UsageError, match=r"dtype torch\.float16"):
        pack(weight, dtype=torch.float16)
    with pytest.raises(UsageError, match="groups 3"):
        pack(weight, dtype=torch.float32, groups=3)
    packed = pack(weight, dtype=torch.float32)
    x = torch.randn(1, 3, 5, 5)
    with pytest.raises(UsageError, match="post_op mish"):
        convolution_last(x, packed, post_op="mish")
    with pytest.raises(UsageError, match="x of shape"):
        convolution_last(torch.randn(1, 2, 5, 5), packed)
    with pytest.raises(UsageError, match="smaller than the kernel"):
        convolution_last(torch.randn(1, 3, 2, 5), packed)
    with pytest.raises(RuntimeError, match="gradient"):
        convolution_last(x.clone().requires_grad_(), packed)
    with pytest.raises(RuntimeError):
        convolution_last(x, packed, residual=torch.randn(1, 4, 5, 5))
