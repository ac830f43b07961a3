# SPDX-License-Identifier: Apache-2.0
"""`inverted_residual` gives the bits of its three convolutions one by one, whatever is absent, at every level."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import linear as L
from slipstream.kernels import native
from slipstream.kernels.channels_last import depthwise
from slipstream.kernels.channels_last import inverted_residual as D
from slipstream.kernels.post_op import POST_OPS

DTYPES = [torch.float32, torch.bfloat16]
dtypes = st.sampled_from(DTYPES)


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def pointwise(ins, outs, dtype, post_op, out, bias=True):
    packed = L.pack(torch.randn(outs, ins) / ins**0.5, dtype=dtype)
    return D.Pointwise(packed, torch.randn(outs) if bias else None, post_op, out)


def middle(channels, post_op, out, *, kernel=(3, 3), bias=True, **numbers):
    packed = depthwise.pack(torch.randn(channels, 1, *kernel) / 3, **numbers)
    return D.Middle(packed, torch.randn(channels) if bias else None, post_op, out)


def same_bits(level, got, wanted):
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    if level == "plain":  # torch's own products do not promise bits
        assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-2)
    else:
        assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0))


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
)
@given(
    batch=st.integers(0, 3), sizes=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40)),
    height=st.integers(1, 18), width=st.integers(1, 20), kernel=st.sampled_from([(3, 3), (5, 5), (1, 3), (7, 7)]),
    stride=st.sampled_from([(1, 1), (2, 2), (3, 1), (1, 2)]), padding=st.sampled_from([(0, 0), (1, 1), (2, 2), (6, 6)]),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 1)]), which=st.sampled_from(["both", "expand", "project"]),
    kinds=st.tuples(dtypes, dtypes, dtypes, dtypes, dtypes), post_op=st.sampled_from(POST_OPS),
    extras=st.tuples(st.booleans(), st.booleans()), seed=st.integers(0, 999),
)  # fmt: skip
def test_bits_of_the_three_in_turn(
    level, batch, sizes, height, width, kernel, stride, padding, dilation, which, kinds, post_op, extras, seed
):
    assume(height + 2 * padding[0] > (kernel[0] - 1) * dilation[0])
    assume(width + 2 * padding[1] > (kernel[1] - 1) * dilation[1])
    torch.manual_seed(seed)
    ins, hidden, outs = sizes
    x_dtype, w_dtype, between, after, out = kinds
    bias, with_residual = extras
    first = None if which == "project" else pointwise(ins, hidden, w_dtype, post_op, between, bias)
    x = last(torch.randn(batch, hidden if first is None else ins, height, width).to(x_dtype))
    numbers = {"stride": stride, "padding": padding, "dilation": dilation}
    second = middle(hidden, post_op, after, kernel=kernel, bias=bias, **numbers)
    third = None if which == "expand" else pointwise(hidden, outs, w_dtype, "relu", out, bias)
    wanted = D.plain_inverted_residual(x, first, second, third)
    residual = None
    if third is not None and with_residual:
        residual = last(torch.randn(wanted.shape).to(x_dtype))
        wanted = D.plain_inverted_residual(x, first, second, third, residual=residual)
    got = D.inverted_residual(x, first, second, third, residual=residual)
    assert got.is_contiguous(memory_format=torch.channels_last)
    same_bits(level, got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "size", "hidden", "stride"), [(16, 60, 96, 2), (24, 56, 144, 1), (40, 40, 240, 2)])
@pytest.mark.parametrize("threads", [1, 2])
def test_images_that_are_cut_into_blocks(level, dtype, channels, size, hidden, stride, threads):
    torch.manual_seed(0)
    x = last(torch.randn(3, channels, size, size).to(dtype))
    kernel = 5 if channels == 40 else 3
    stages = (
        pointwise(channels, hidden, dtype, "relu6", dtype),
        middle(hidden, "relu6", dtype, kernel=(kernel, kernel), stride=(stride, stride), padding=(kernel // 2, kernel // 2)),
        pointwise(hidden, channels, dtype, "none", dtype),
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        wanted = D.plain_inverted_residual(x, *stages)
        residual = last(torch.randn(wanted.shape).to(dtype))
        wanted = D.plain_inverted_residual(x, *stages, residual=residual)
        same_bits(level, D.inverted_residual(x, *stages, residual=residual), wanted)
        same_bits(level, D.inverted_residual(x[1:2], *stages, residual=residual[1:2]), wanted[1:2])
    finally:
        torch.set_num_threads(before)


def test_any_memory_format_and_padding_that_differs_behind(level):
    torch.manual_seed(1)
    f32 = torch.float32
    first, third = pointwise(12, 40, f32, "silu", f32), pointwise(40, 12, f32, "none", f32)
    second = middle(40, "silu", f32, stride=(2, 2), padding=(0, 1), end_padding=(1, 2))
    x = torch.randn(2, 12, 9, 14)
    wanted = D.plain_inverted_residual(last(x), first, second, third)
    for image in (x, last(x), torch.cat([last(x), last(x)], 1)[:, 12:], torch.randn(2, 12, 9, 28)[..., ::2].copy_(x)):
        same_bits(level, D.inverted_residual(image, first, second, third), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_reach(level, dtype):
    torch.manual_seed(2)
    x = last(torch.randn(2, 8, 12, 12).to(dtype))
    x[0, 3, 5, 5], x[1, 2, 0, 11] = float("nan"), float("inf")
    first, third = pointwise(8, 40, dtype, "none", dtype), pointwise(40, 9, dtype, "none", dtype)
    y = D.inverted_residual(x, first, middle(40, "none", dtype, padding=(1, 1)), third)
    touched = torch.zeros(2, 12, 12, dtype=torch.bool)
    touched[0, 4:7, 4:7] = True
    touched[1, 0:2, 10:12] = True
    assert torch.equal(~torch.isfinite(y).all(1), touched)


def test_bad_input_names_the_argument():
    f32 = torch.float32
    first, second, third = pointwise(4, 8, f32, "none", f32), middle(8, "none", f32), pointwise(8, 4, f32, "none", f32)
    x = torch.randn(1, 4, 5, 5)
    with pytest.raises(UsageError, match="x of shape"):
        D.inverted_residual(x[:, :3], first, second, third)
    with pytest.raises(UsageError, match="expand of 7 hidden channels"):
        D.inverted_residual(x, pointwise(4, 7, f32, "none", f32), second, third)
    with pytest.raises(UsageError, match="project of 9 hidden channels"):
        D.inverted_residual(x, first, second, pointwise(9, 4, f32, "none", f32))
    with pytest.raises(UsageError, match="residual given without project"):
        D.inverted_residual(x, first, second, None, residual=x)
    with pytest.raises(UsageError, match="post_op mish"):
        D.inverted_residual(x, first, second._replace(post_op="mish"), third)
    with pytest.raises(UsageError, match=r"out torch\.float16"):
        D.inverted_residual(x, first._replace(out=torch.float16), second, third)
    parts = L.pack(torch.randn(8, 4), dtype=f32, parts=2)
    with pytest.raises(UsageError, match="expand packed in 2 parts"):
        D.inverted_residual(x, D.Pointwise(parts), second, third)
    with pytest.raises(RuntimeError, match="gradient"):
        D.inverted_residual(x.clone().requires_grad_(), first, second, third)
    with pytest.raises(RuntimeError):
        D.inverted_residual(x[:, :, :2], first, second, third)


@pytest.mark.skipif(not native.available(), reason="the operator is native")
def test_the_operator_checks_its_operands_and_is_seen_by_export():
    f32 = torch.float32
    first, third = pointwise(4, 8, f32, "none", f32), pointwise(8, 4, f32, "none", f32)
    second = middle(8, "none", f32, padding=(1, 1))
    x, run = last(torch.randn(2, 4, 6, 5)), torch.ops.slipstream.inverted_residual
    packs = first.packed.data, first.bias, second.packed.data, second.bias, second.packed.numbers, third.packed.data

    def arguments(x, e, eb, m, mb, numbers, p, residual=None):
        return (x, e, eb, 0, False, m, mb, 8, numbers, 0, False, p, third.bias, 4, 0, False, residual)

    torch.library.opcheck(run.default, arguments(x, *packs, x))
    with pytest.raises(RuntimeError, match="packed: not packed"):
        run(*arguments(x, packs[0][1:], *packs[1:]))
    with pytest.raises(RuntimeError, match="depthwise: not packed"):
        run(*arguments(x, *packs[:2], packs[2][1:], *packs[3:]))
    with pytest.raises(RuntimeError, match="bias"):
        run(*arguments(x, packs[0], torch.randn(5), *packs[2:]))
    with pytest.raises(RuntimeError, match="depthwise_bias"):
        run(*arguments(x, *packs[:3], torch.randn(5), *packs[4:]))
    with pytest.raises(RuntimeError, match="residual"):
        run(*arguments(x, *packs, x[:, :, 1:]))
    with pytest.raises(RuntimeError, match="x: not"):
        run(*arguments(x.contiguous(), *packs))
