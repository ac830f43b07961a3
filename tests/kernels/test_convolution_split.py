# SPDX-License-Identifier: Apache-2.0
"""`convolution_last` of float32 weights in parts of bfloat16: as accurate as promised, for every value a float32 can have."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.channels_last.convolution_last import convolution_last, pack
from slipstream.kernels.post_op import POST_OPS, apply_post_op

TILES = ("amx", native.EMULATED)
LARGEST = torch.finfo(torch.float32).max
BOUND = {3: 2**-20, 2: 2**-15}
"""Of the sum of the terms' magnitudes, as linear's."""

ROUNDING = 2**-24
"""Of a float32 sum, where there are no tiles, by each of its terms."""

by_level = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def exact(x, weight, *, behind=None, padding=(0, 0), **numbers):
    behind = behind or padding
    image = F.pad(x.double(), (padding[1], behind[1], padding[0], behind[0]))
    return F.conv2d(image, weight.double(), **numbers)


def relative(y, expected):
    return ((y.double() - expected).norm() / expected.norm()).item()


def within_bound(level, y, x, weight, parts, by=exact, **how):
    """Where the exact sum is finite. Parts below 2^-126 may be lost, whatever they are multiplied by."""
    wanted, sizes = by(x, weight, **how), (x.double().abs(), weight.double().abs())
    lost = by(sizes[0], torch.ones_like(weight), **how) + by(torch.ones_like(x), sizes[1], **how)
    bound = BOUND[parts] if level in TILES else max(BOUND[parts], ROUNDING * weight[0].numel())
    room = bound * by(*sizes, **how) + 2**-126 * lost
    return bool(((y.double() - wanted).abs() <= room)[wanted.isfinite()].all())


@by_level
@given(
    batch=st.integers(0, 3), ins=st.sampled_from([1, 3, 5, 32, 64]), outs=st.sampled_from([1, 20, 33]),
    groups=st.integers(1, 2), size=st.tuples(st.integers(1, 9), st.integers(1, 19)),
    kernel=st.sampled_from([(3, 3), (5, 5), (1, 3), (4, 1), (2, 2), (1, 1)]), stride=pairs, dilation=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), more=st.sampled_from([None, (1, 0), (0, 2)]),
    x_dtype=st.sampled_from([torch.float32, torch.bfloat16]), last=st.booleans(), parts=st.sampled_from([2, 3]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_every_shape(
    level, batch, ins, outs, groups, size, kernel, stride, dilation, padding, more, x_dtype, last, parts, seed
):
    behind = padding if more is None else (padding[0] + more[0], padding[1] + more[1])
    assume(all(size[i] + padding[i] + behind[i] > (kernel[i] - 1) * dilation[i] for i in range(2)))
    torch.manual_seed(seed)
    x = torch.randn(batch, ins * groups, *size).to(x_dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    scales = torch.logspace(-8, 8, outs * groups).view(-1, 1, 1, 1)
    weight = torch.randn(outs * groups, ins, *kernel) * scales
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    packed = pack(weight, dtype=torch.float32, parts=parts, end_padding=None if more is None else behind, **how)
    y = convolution_last(x, packed, out_dtype=torch.float32)
    assert y.shape == exact(x, weight, behind=behind, **how).shape
    assert y.dtype is torch.float32
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert within_bound(level, y, x, weight, parts, behind=behind, **how)


@by_level
@given(
    post_op=st.sampled_from(POST_OPS), bias=st.booleans(), residual=st.booleans(), parts=st.sampled_from([2, 3]),
    out_dtype=st.sampled_from([torch.float32, torch.bfloat16]), groups=st.integers(1, 2),
)  # fmt: skip
def test_what_follows_the_sum(level, post_op, bias, residual, parts, out_dtype, groups):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 32 * groups, 6, 7), torch.randn(20 * groups, 32, 3, 3) / 17
    shift = torch.randn(20 * groups) if bias else None
    added = torch.randn(2, 20 * groups, 6, 7) if residual else None
    packed = pack(weight, dtype=torch.float32, parts=parts, padding=(1, 1), groups=groups)
    y = convolution_last(x, packed, shift, post_op=post_op, residual=added, out_dtype=out_dtype)
    wanted = exact(x, weight, padding=(1, 1), groups=groups)
    wanted = wanted if shift is None else wanted + shift.double().view(-1, 1, 1)
    wanted = apply_post_op(wanted if added is None else wanted + added.double(), post_op)
    rounding = 2**-8 if out_dtype is torch.bfloat16 else 0
    approximate = 2e-4 if out_dtype is torch.bfloat16 else 0  # GELU for results in bfloat16
    torch.testing.assert_close(y.double(), wanted, rtol=rounding + 1e-4, atol=approximate + 1e-4)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(
    ("ins", "size", "kernel", "stride"), [(3, 28, 7, 2), (64, 9, 3, 1), (64, 9, 3, 2), (160, 7, 3, 1), (512, 5, 3, 1)]
)
def test_three_parts_err_no_more_than_float32_itself(level, ins, size, kernel, stride, positive):
    torch.manual_seed(ins)
    x, weight = torch.randn(1, ins, size, size), torch.randn(24, ins, kernel, kernel)
    if positive:  # the sums grow with the depth, and with them what each addition loses
        x, weight = x.abs(), weight.abs()
    how = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    wanted = exact(x, weight, **how)
    error = relative(convolution_last(x, pack(weight, dtype=torch.float32, parts=3, **how)), wanted)
    if level in TILES:
        assert error <= relative(F.conv2d(x, weight, **how), wanted)
    assert error <= 1e-6
    assert relative(convolution_last(x, pack(weight, dtype=torch.float32, parts=2, **how)), wanted) <= 1e-5


SPECIAL = [math.nan, math.inf, -math.inf, LARGEST, -LARGEST, 3.39e38, 0.0, -0.0, 1e-39, -1.2e-38, 1.0, 2**-130]


@by_level
@given(
    parts=st.sampled_from([2, 3]), ins=st.sampled_from([3, 32]), stride=st.integers(1, 2),
    in_x=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 5), st.integers(0, 6),
                            st.sampled_from(SPECIAL)), max_size=5),
    in_weight=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2),
                                 st.sampled_from([value for value in SPECIAL if abs(value) < 1])), max_size=5),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_special_values_are_as_in_float32(level, parts, ins, stride, in_x, in_weight, seed):
    """Infinities, NaN, the largest floats, zeros; denormals are zeros on tiles. The others are small, nothing overflows."""
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, ins, 6, 7, generator=g) * 1e-3, torch.randn(20, ins, 3, 3, generator=g) * 1e-3
    for *place, value in in_x:
        x[tuple(place)] = value
    for *place, value in in_weight:
        weight[tuple(place)] = value
    how = {"stride": (stride, stride), "padding": (1, 1)}
    y = convolution_last(x, pack(weight, dtype=torch.float32, parts=parts, **how)).double()
    if level in TILES:
        x, weight = (torch.where(each.abs() < torch.finfo().tiny, 0.0, each) for each in (x, weight))
    wanted = by_taps(x, weight, **how)
    if level == "plain":  # torch's own lets what is not finite reach neighbours
        assert y[wanted.isnan()].isnan().all()
        return
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y[wanted.isinf()], wanted[wanted.isinf()])
    assert within_bound(level, y, x, weight, parts, by_taps, **how)


def by_taps(x, weight, *, stride, padding):
    """The convolution in float64, of which every output sees its own pixels only, whatever torch's does; zeros around."""
    image = F.pad(x.double(), (padding[1],) * 2 + (padding[0],) * 2)
    kernel = weight.shape[2:]
    windows = image.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])  # [N, C, oh, ow, kh, kw]
    return (windows.unsqueeze(1) * weight.double()[None, :, :, None, None]).sum((2, 5, 6))


@pytest.mark.parametrize("ins", [64, 20, 3])
@pytest.mark.parametrize(("size", "stride"), [(4, 1), (14, 1), (14, 2)])
@pytest.mark.parametrize("parts", [2, 3])
def test_strides_threads_and_batch_change_no_bit(level, parts, size, stride, ins):
    if level == "plain":
        pytest.skip("torch's own convolution does not promise this")
    torch.manual_seed(3)
    x, weight = torch.randn(3, ins, size, size + 1), torch.randn(40, ins, 3, 3)
    packed = pack(weight, dtype=torch.float32, parts=parts, stride=(stride, stride), padding=(1, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = convolution_last(x, packed)
        torch.set_num_threads(2)
        assert torch.equal(convolution_last(x, packed), alone)
        wider = torch.randn(3, size, size + 1, ins + 9)[..., :ins].copy_(x.movedim(1, -1)).movedim(-1, 1)
        assert torch.equal(convolution_last(wider, packed), alone)
        assert torch.equal(convolution_last(x[1:2], packed), alone[1:2])
        cut = torch.randn(3, ins + 1, size + 2, size + 4)[:, 1:, 2:, 3:].copy_(x)
        assert torch.equal(convolution_last(cut, packed), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("ins", "stride"), [(3, 1), (3, 2), (32, 1), (32, 2)])
def test_what_is_not_finite_reaches_only_who_sees_it(level, bad, ins, stride):
    if level == "plain":
        pytest.skip("torch's own lets it reach a neighbour")
    torch.manual_seed(2)
    x = torch.randn(2, ins, 8, 20)
    how = {"stride": (stride, stride), "padding": (1, 1)}
    packed = pack(torch.randn(40, ins, 3, 3), dtype=torch.float32, parts=3, **how)
    whole = convolution_last(x, packed)
    x[1, :, 5, 9] = bad
    y = convolution_last(x, packed)
    place = torch.zeros(x.shape)
    place[1, 2, 5, 9] = 1
    seen = (exact(place, torch.ones(1, ins, 3, 3), **how) != 0).expand_as(y)
    assert not torch.isfinite(y[seen]).any()
    assert torch.equal(y[~seen], whole[~seen])


def test_large_images_are_walked_in_blocks(level):
    torch.manual_seed(1)
    x, weight = torch.randn(1, 40, 40, 96), torch.randn(9, 40, 3, 3) / 19
    how = {"stride": (1, 1), "padding": (3, 1), "dilation": (3, 3)}
    y = convolution_last(x, pack(weight, dtype=torch.float32, parts=3, **how))
    assert relative(y, exact(x, weight, **how)) <= 1e-6


@pytest.mark.skipif(not native.available(), reason="levels are native")
@pytest.mark.parametrize("ins", [5, 32])
def test_one_pack_serves_every_level(ins):
    torch.manual_seed(6)
    x, weight = torch.randn(2, 2 * ins, 7, 8), torch.randn(66, ins, 3, 2)
    weight[3, 4, 1, 0], weight[5, 3, 0, 0] = LARGEST, math.inf
    how = {"groups": 2, "padding": (1, 0)}
    packed, plain = pack(weight, dtype=torch.float32, parts=3, **how), pack(weight, dtype=torch.float32, **how)
    assert packed.data.dtype is torch.bfloat16
    with native.level("baseline"):  # three parts are all bits of a float
        assert torch.equal(convolution_last(x, packed).nan_to_num(), convolution_last(x, plain).nan_to_num())


@pytest.mark.skipif(not native.available(), reason="operators of the extension")
def test_the_fake_agrees_with_the_operator(level):
    packed = pack(torch.randn(40, 10, 3, 3), dtype=torch.float32, parts=2, stride=(2, 1), groups=2)
    x = torch.randn(2, 20, 9, 5).to(memory_format=torch.channels_last)
    arguments = (x, packed.data, 40, torch.randn(40), 2, packed.numbers, 1, None, True)
    torch.library.opcheck(torch.ops.slipstream.convolution_last.default, arguments)
    with pytest.raises(RuntimeError, match="packed"):
        torch.ops.slipstream.convolution_last(x, packed.data[:-1], *arguments[2:])


def test_bad_parts_are_named():
    for dtype, parts in ((torch.float32, 4), (torch.float32, 0), (torch.bfloat16, 2)):
        with pytest.raises(UsageError, match=f"parts {parts}"):
            pack(torch.randn(4, 3, 3, 3), dtype=dtype, parts=parts)
