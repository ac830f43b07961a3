# SPDX-License-Identifier: Apache-2.0
"""`depthwise` is torch's convolution in float64: any size, stride, padding, dilation, dtype, memory format and level."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.channels_last.depthwise import depthwise, pack
from slipstream.kernels.post_op import POST_OPS, apply_post_op

DTYPES = [torch.float32, torch.bfloat16]
dtypes = st.sampled_from(DTYPES)


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def oracle(x, weight, bias, numbers, *, post_op="none", residual=None):
    stride, padding, dilation = numbers
    y = F.conv2d(x.double(), weight.double(), None, stride, padding, dilation, x.shape[1])
    if bias is not None:
        y = y + bias.double().reshape(-1, 1, 1)
    if residual is not None:
        y = y + residual.double()
    return apply_post_op(y, post_op)


def agree(y, expected):
    rounding = 2**-8 if y.dtype is torch.bfloat16 else 4e-6
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert torch.allclose(y.double(), expected, rtol=rounding, atol=rounding * scale)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
)
@given(
    batch=st.integers(0, 3), channels=st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 64])),
    height=st.integers(1, 18), width=st.integers(1, 33),
    kernel=st.sampled_from([(3, 3), (5, 5), (7, 7), (11, 11), (1, 1), (1, 3), (5, 2), (2, 7), (1, 31)]),
    stride=st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 2), (1, 2), (3, 2), (2, 3)]),
    padding=st.sampled_from([(0, 0), (1, 1), (1, 1), (2, 2), (3, 3), (0, 4), (15, 15)]),
    dilation=st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (2, 3)]),
    x_dtype=dtypes, w_dtype=dtypes, o_dtype=dtypes, out_dtype=dtypes,
    post_op=st.sampled_from(POST_OPS), extras=st.sampled_from([(0, 0), (1, 0), (1, 1)]), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_float64(
    level, batch, channels, height, width, kernel, stride, padding, dilation, x_dtype, w_dtype, o_dtype, out_dtype,
    post_op, extras, seed,
):  # fmt: skip
    assume(height + 2 * padding[0] > (kernel[0] - 1) * dilation[0])
    assume(width + 2 * padding[1] > (kernel[1] - 1) * dilation[1])
    torch.manual_seed(seed)
    x = last(torch.randn(batch, channels, height, width).to(x_dtype))
    weight = (torch.randn(channels, 1, *kernel) / (kernel[0] * kernel[1]) ** 0.5).to(x_dtype).to(w_dtype)
    bias = torch.randn(channels) if extras[0] else None
    numbers = stride, padding, dilation
    expected = oracle(x, weight, bias, numbers)
    residual = last(torch.randn(expected.shape).to(o_dtype)) if extras[1] else None
    expected = oracle(x, weight, bias, numbers, post_op=post_op, residual=residual)
    packed = pack(weight, stride=stride, padding=padding, dilation=dilation)
    y = depthwise(x, packed, bias, post_op=post_op, residual=residual, out_dtype=out_dtype)
    assert y.shape == expected.shape
    assert y.dtype is out_dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    agree(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride"),
    [(32, 56, 3, 1), (144, 28, 3, 2), (960, 7, 3, 1), (96, 14, 7, 1), (72, 28, 5, 2), (120, 14, 5, 1)],
)
def test_layers_of_real_networks_within_the_docstrings_bound(level, dtype, channels, size, kernel, stride):
    torch.manual_seed(0)
    x, weight = last(torch.randn(2, channels, size, size).to(dtype)), torch.randn(channels, 1, kernel, kernel)
    padding = (kernel // 2, kernel // 2)
    y = depthwise(x, pack(weight, stride=(stride, stride), padding=padding), out_dtype=torch.float32)
    expected = oracle(x, weight, None, ((stride, stride), padding, (1, 1)))
    assert ((y.double() - expected).norm() / expected.norm()).item() <= (4e-3 if dtype is torch.bfloat16 else 1e-6)


def test_strides_do_not_matter(level):
    torch.manual_seed(1)
    weight, bias = torch.randn(40, 1, 3, 3), torch.randn(80)[::2]
    packed = pack(weight, padding=(1, 1))
    wide = last(torch.randn(4, 96, 9, 22))
    for x in (
        wide[:, :40], wide[:, 56:], wide[::2, 3:43], wide[:, :40, ::2], wide[:, :40, 1:-1, ::3], wide[:, ::2][:, :40],
        torch.randn(4, 40, 9, 22), torch.randn(9, 40, 22, 4).movedim(3, 0).movedim(1, 2), wide[:1, :40].expand(3, 40, 9, 22),
    ):  # fmt: skip
        expected = oracle(x, weight, bias, ((1, 1), (1, 1), (1, 1)), residual=x)
        y = depthwise(x, packed, bias, residual=x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        agree(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_reach(level, dtype):
    torch.manual_seed(2)
    x = last(torch.randn(1, 41, 12, 12).to(dtype))
    x[0, 3, 5, 5], x[0, 18, 0, 11], x[0, 40, 11, 0] = float("nan"), float("inf"), float("-inf")
    y = depthwise(x, pack(torch.randn(41, 1, 3, 3), padding=(1, 1)))
    touched = torch.zeros(41, 12, 12, dtype=torch.bool)
    touched[3, 4:7, 4:7] = True
    touched[18, 0:2, 10:12] = True
    touched[40, 10:12, 0:2] = True
    assert torch.equal(torch.isfinite(y[0]), ~touched)


def test_threads_and_neighbours_do_not_change_bits(level):
    if level == "plain":
        pytest.skip("torch's own convolution does not promise this")
    torch.manual_seed(3)
    before = torch.get_num_threads()
    try:
        for batch, channels, size, kernel in [(3, 72, 30, 3), (1, 200, 7, 7), (1, 100, 1, 3)]:
            x = last(torch.randn(batch, channels, size, size).bfloat16())
            packed = pack(torch.randn(channels, 1, kernel, kernel), padding=(kernel // 2, kernel // 2))
            torch.set_num_threads(1)
            alone = depthwise(x, packed)
            torch.set_num_threads(2)
            assert torch.equal(depthwise(x, packed), alone)
            assert torch.equal(depthwise(x[-1:], packed), alone[-1:])
    finally:
        torch.set_num_threads(before)


def test_bad_input_names_the_argument():
    weight = torch.randn(4, 1, 3, 3)
    with pytest.raises(UsageError, match="weight"):
        pack(weight[0])
    with pytest.raises(UsageError, match=r"weight of shape \(4, 2, 3, 3\)"):
        pack(torch.randn(4, 2, 3, 3))
    with pytest.raises(UsageError, match=r"weight torch\.float16"):
        pack(weight.half())
    with pytest.raises(UsageError, match="121 taps"):
        pack(torch.randn(2, 1, 12, 12))
    packed = pack(weight)
    with pytest.raises(UsageError, match="post_op mish"):
        depthwise(torch.randn(1, 4, 5, 5), packed, post_op="mish")
    with pytest.raises(UsageError, match=r"x torch\.float64"):
        depthwise(torch.randn(1, 4, 5, 5).double(), packed)
    with pytest.raises(UsageError, match="x of shape"):
        depthwise(torch.randn(1, 2, 5, 5), packed)
    with pytest.raises(RuntimeError, match="gradient"):
        depthwise(torch.randn(1, 4, 5, 5, requires_grad=True), packed)
    with pytest.raises(RuntimeError):
        depthwise(torch.randn(1, 4, 2, 5), packed)


@pytest.mark.skipif(not native.available(), reason="the operators are native")
def test_native_checks_its_operands():
    packed, x = pack(torch.randn(4, 1, 3, 3)), last(torch.randn(1, 4, 5, 5))
    with pytest.raises(RuntimeError, match="bias"):
        depthwise(x, packed, torch.randn(5))
    with pytest.raises(RuntimeError, match="residual"):
        depthwise(x, packed, residual=torch.randn(1, 4, 5, 5))
    with pytest.raises(RuntimeError, match="packed"):
        torch.ops.slipstream.depthwise(x, packed.data[1:], None, packed.numbers, 0, None, False)
    with pytest.raises(RuntimeError, match="x: channels are not innermost"):
        torch.ops.slipstream.depthwise(x.contiguous(), packed.data, None, packed.numbers, 0, None, False)


@pytest.mark.skipif(not native.available(), reason="the operators are native")
def test_operators_are_seen_by_export():
    packed = pack(torch.randn(4, 1, 3, 3), stride=(2, 2))
    x = last(torch.randn(2, 4, 9, 8))

    class Model(torch.nn.Module):
        def forward(self, x):
            return torch.ops.slipstream.depthwise(x, packed.data, None, packed.numbers, 1, None, True)

    with torch.no_grad():
        exported = torch.export.export(Model(), (x,), strict=False)
        assert torch.equal(exported.module()(x), Model()(x))
    torch.library.opcheck(torch.ops.slipstream.depthwise.default, (x, packed.data, None, packed.numbers, 1, None, True))
    torch.library.opcheck(torch.ops.slipstream.pack_depthwise.default, (torch.randn(40, 1, 3, 3),))


@pytest.mark.parametrize("size", [(9, 12), (2, 3), (8, 8)])
def test_padding_that_differs_behind_the_image(level, size):
    x, weight = torch.randn(2, 20, *size), torch.randn(20, 1, 3, 3)
    packed = pack(weight, stride=(2, 2), padding=(0, 1), end_padding=(1, 2))
    padded = F.pad(x, (1, 2, 0, 1))
    wanted = F.conv2d(padded.double(), weight.double(), None, 2, 0, 1, 20)
    got = depthwise(x, packed)
    assert got.shape == wanted.shape
    agree(got, wanted)
