# SPDX-License-Identifier: Apache-2.0
"""Group norm is what it is in float64, for any shape, number of groups, layout, dtype, post-op and level."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.norm import group_norm, plain_group_norm
from slipstream.kernels.post_op import POST_OPS, apply_post_op

dtypes = st.sampled_from([torch.float32, torch.bfloat16])
CHANNELS_LAST = {3: None, 4: torch.channels_last, 5: torch.channels_last_3d}

by_level = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def oracle(x, groups, weight, bias, eps, post_op="none"):
    parts = x.double().flatten(1).reshape(x.shape[0], groups, x[:1].numel() // groups if x.numel() else 0)
    y = parts - parts.mean(-1, keepdim=True)
    y = (y / (y.square().mean(-1, keepdim=True) + eps).sqrt()).view(x.shape)
    sizes = (-1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.double().view(sizes)
    return apply_post_op(y if bias is None else y + bias.double().view(sizes), post_op)


def assert_close(actual, expected, dtype, post_op="none"):
    assert actual.dtype is dtype
    rounding = 2**-8 if dtype is torch.bfloat16 else 1e-6
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    absolute = 1.4e-4 if dtype is torch.bfloat16 and post_op == "gelu_erf" else 1e-6 * scale
    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=absolute)


def innermost(x):
    """The same values with the channels innermost in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@st.composite
def problems(draw):
    groups, members = draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 3, 5, 16, 33]))
    pixels = draw(st.sampled_from([(), (1,), (7,), (40,), (1, 3), (5, 5), (17, 19), (2, 3, 4), (601,), (1, 1)]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x = (2 * torch.randn(draw(st.integers(0, 3)), groups * members, *pixels) + 1).to(draw(dtypes))
    weight, bias = (torch.randn(groups * members).to(draw(dtypes)) if draw(st.booleans()) else None for _ in range(2))
    return (innermost(x) if draw(st.booleans()) else x), groups, weight, bias


@by_level
@given(problem=problems(), out_dtype=dtypes, eps=st.sampled_from([1e-5, 1e-2]), post_op=st.sampled_from(POST_OPS))
def test_group_norm(level, problem, out_dtype, eps, post_op):
    x, groups, weight, bias = problem
    y = group_norm(x, groups, weight, bias, eps, post_op=post_op, out_dtype=out_dtype)
    assert y.shape == x.shape
    if x[:1].numel() // groups > 2:  # of two that are nearly the same, the result is made of their rounding
        assert_close(y, oracle(x, groups, weight, bias, eps, post_op), out_dtype, post_op)
    plain = plain_group_norm(x, groups, weight, bias, eps, post_op=post_op, out_dtype=out_dtype)
    assert (plain.shape, plain.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("shape", [(2, 64, 5000), (1, 12, 130, 131), (3, 320, 16, 16), (1, 1500, 40), (2, 6, 4, 9, 70)])
@pytest.mark.parametrize("last", [False, True])
def test_several_blocks_and_threads(level, shape, last):
    torch.manual_seed(0)
    x = 3 * torch.randn(shape) + torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2)) % 7
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    before = torch.get_num_threads()
    try:
        for groups in (1, 2, shape[1] // 2, shape[1]):
            given = innermost(x) if last else x
            wanted = oracle(x, groups, weight, bias, 1e-5)
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(group_norm(given, groups, weight, bias, 1e-5))
            assert all(torch.equal(result, results[0]) for result in results)
            assert_close(results[0], wanted, torch.float32)
    finally:
        torch.set_num_threads(before)


def test_layouts_stay_as_they_are(level):
    if level == "plain":
        pytest.skip("the twin's results are contiguous")
    for shape in ((2, 6, 30), (2, 6, 5, 7), (2, 6, 3, 4, 5)):
        x = torch.randn(shape)
        assert group_norm(x, 3, None, None, 1e-5).is_contiguous()
        y = group_norm(innermost(x), 3, None, None, 1e-5)
        assert y.stride() == innermost(x).stride()


def test_any_strides(level):
    torch.manual_seed(1)
    weight, bias = torch.randn(24)[::2], torch.randn(12)
    inputs = [
        torch.randn(3, 12, 60)[:, :, 10:50],
        torch.randn(3, 20, 9)[:, 2:14],
        innermost(torch.randn(3, 20, 9, 8))[:, 4:16],
        innermost(torch.randn(3, 12, 60))[:, :, 5:48],
        innermost(torch.randn(3, 12, 60))[:, :, ::2],
        innermost(torch.randn(3, 12, 60, 4))[:, :, ::2],
        torch.randn(1, 12, 9).expand(3, 12, 9),
        torch.randn(3, 12, 1).expand(3, 12, 9),
        torch.randn(12, 3).t(),
        torch.randn(9, 12, 3).movedim(0, 2).movedim(2, 0).permute(2, 1, 0),
    ]
    for x in inputs:
        assert_close(group_norm(x, 4, weight, bias, 1e-5), oracle(x, 4, weight, bias, 1e-5), torch.float32)


@pytest.mark.parametrize("last", [False, True])
def test_a_mean_far_from_zero_loses_no_digits(level, last):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 3000) + 1000
    y = group_norm(innermost(x) if last else x, 4, None, None, 1e-5)
    torch.testing.assert_close(y.double(), oracle(x, 4, None, None, 1e-5), rtol=0, atol=5e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("post_op", ["none", "gelu_erf"])
def test_nan_and_infinity_make_their_group_nan_and_no_other(level, value, last, post_op):
    x = torch.randn(3, 12, 2500)
    x[1, 4, 1700] = value
    y = group_norm(innermost(x) if last else x, 4, None, None, 1e-5, post_op=post_op)
    touched = torch.zeros(3, 12, 2500, dtype=torch.bool)
    touched[1, 3:6] = True
    assert torch.equal(y.isnan(), touched)
    assert y[~touched].isfinite().all()


def test_empty_input(level):
    for shape in ((0, 4, 3), (2, 4, 0), (2, 0, 3)):
        assert group_norm(torch.empty(shape), 2, None, None, 1e-5).shape == shape


def test_bad_input_names_the_argument(level):
    x = torch.randn(3, 8, 5)
    with pytest.raises(UsageError, match=r"^groups 3: not a divisor of the 8 channels"):
        group_norm(x, 3, None, None, 1e-5)
    with pytest.raises(UsageError, match=r"^groups 0"):
        group_norm(x, 0, None, None, 1e-5)
    with pytest.raises(UsageError, match=r"^weight \(7,\)"):
        group_norm(x, 2, torch.randn(7), None, 1e-5)
    with pytest.raises(UsageError, match=r"^bias torch\.float64"):
        group_norm(x, 2, None, torch.randn(8).double(), 1e-5)
    with pytest.raises(UsageError, match=r"^x of shape \(8,\)"):
        group_norm(x[0, :, 0], 2, None, None, 1e-5)
    with pytest.raises(UsageError, match=r"^out_dtype torch\.float16"):
        group_norm(x, 2, None, None, 1e-5, out_dtype=torch.float16)
    with pytest.raises(UsageError, match=r"^post_op elu"):
        group_norm(x, 2, None, None, 1e-5, post_op="elu")
    with pytest.raises(RuntimeError, match="group_norm: an input requires a gradient"):
        group_norm(x.requires_grad_(), 2, None, None, 1e-5)


@pytest.mark.skipif(not native.available(), reason="fakes stand for native operators")
def test_the_fake_tells_shapes_strides_and_dtypes():
    weight = torch.randn(12)
    for x in (torch.randn(2, 12, 5, 6), innermost(torch.randn(2, 12, 5, 6)), innermost(torch.randn(2, 12, 9))[:, :, 2:],
              torch.randn(3, 12), torch.randn(3, 12, 1), torch.randn(2, 12, 9)[:, :, 1:]):  # fmt: skip
        arguments = (x, 4, weight, None, 1e-5, 0, True)
        torch.library.opcheck(torch.ops.slipstream.group_norm.default, arguments, test_utils=("test_schema", "test_faketensor"))
