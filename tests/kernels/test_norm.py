# SPDX-License-Identifier: Apache-2.0
"""Layer norm and RMS norm are what they are in float64, of a tensor and of a sum, for any shape, stride, dtype and level."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native, norm

DTYPES = [torch.float32, torch.bfloat16]
dtypes = st.sampled_from(DTYPES)

by_level = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def oracle(x, residual, weight, bias, eps, *, centred, one_more=False):
    """(sum, norm) in float64."""
    total = x.double() if residual is None else x.double() + residual.double()
    y = total - total.mean(-1, keepdim=True) if centred else total
    y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * (weight.double() + one_more)
    return total, y if bias is None else y + bias.double()


def assert_close(actual, expected, dtype):
    assert actual.dtype is dtype
    assert actual.is_contiguous()
    rounding = 2**-8 if dtype is torch.bfloat16 else 1e-6
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=1e-6 * scale)


@st.composite
def problems(draw):
    rows = draw(st.sampled_from([(), (0,), (1,), (2,), (5,), (2, 3), (3, 1, 2)]))
    columns = draw(st.one_of(st.integers(1, 150), st.sampled_from([768, 1030])))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x = (2 * torch.randn(*rows, columns) + 1).to(draw(dtypes))
    residual = torch.randn(*rows, columns).to(draw(dtypes)) if draw(st.booleans()) else None
    parameters = [torch.randn(columns).to(draw(dtypes)) if draw(st.booleans()) else None for _ in range(2)]
    return x, residual, *parameters


@by_level
@given(problem=problems(), out_dtype=dtypes, eps=st.sampled_from([1e-5, 1e-12]))
def test_layer_norm(level, problem, out_dtype, eps):
    x, residual, weight, bias = problem
    total, expected = oracle(x, residual, weight, bias, eps, centred=True)
    if x.shape[-1] <= 2 and eps < 1e-6:
        return  # two bfloat16 that are nearly the same: the norm is then made of the rounding of their sum
    assert_close(norm.layer_norm(x, weight, bias, eps, residual=residual, out_dtype=out_dtype), expected, out_dtype)
    if residual is not None:
        kept, y = norm.layer_norm_of_sum(x, residual, weight, bias, eps, out_dtype=out_dtype)
        assert_close(y, expected, out_dtype)
        assert_close(kept, total, x.dtype)


@by_level
@given(problem=problems(), out_dtype=dtypes, sum_dtype=dtypes, one_more=st.booleans())
def test_rms_norm(level, problem, out_dtype, sum_dtype, one_more):
    x, residual, weight, _ = problem
    total, expected = oracle(x, residual, weight, None, 1e-6, centred=False, one_more=one_more)
    y = norm.rms_norm(x, weight, 1e-6, residual=residual, one_more=one_more, out_dtype=out_dtype)
    assert_close(y, expected, out_dtype)
    if residual is not None:
        kept, y = norm.rms_norm_of_sum(x, residual, weight, 1e-6, one_more=one_more, sum_dtype=sum_dtype, out_dtype=out_dtype)
        assert_close(y, expected, out_dtype)
        assert_close(kept, total, sum_dtype)


def test_without_out_dtype_it_is_that_of_x(level):
    x, residual = torch.randn(3, 40).bfloat16(), torch.randn(3, 40)
    assert norm.layer_norm(x, None, None, 1e-5, residual=residual).dtype is torch.bfloat16
    assert [y.dtype for y in norm.rms_norm_of_sum(residual, x, None, 1e-5)] == [torch.float32, torch.float32]


def test_any_strides(level):
    weight, bias = torch.randn(80)[::2], torch.randn(40)
    image = torch.randn(2, 40, 3, 5)
    inputs = [
        torch.randn(7, 60)[:, 10:50],
        torch.randn(40, 9).t(),
        torch.randn(3, 1, 40).expand(3, 4, 40),
        image.permute(0, 2, 3, 1),
        image.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
    ]
    for x in inputs:
        residual = torch.randn(x.shape)
        expected = oracle(x, residual, weight, bias, 1e-5, centred=True)[1]
        assert_close(norm.layer_norm(x, weight, bias, 1e-5, residual=residual), expected, torch.float32)
        assert_close(norm.layer_norm(residual, weight, bias, 1e-5, residual=x), expected, torch.float32)


def test_a_mean_far_from_zero_loses_no_digits(level):
    if level == "plain":
        pytest.skip("torch's own is less exact")
    torch.manual_seed(0)
    x = torch.randn(4, 500) + 3000
    expected = oracle(x, None, None, None, 1e-5, centred=True)[1]
    torch.testing.assert_close(norm.layer_norm(x, None, None, 1e-5).double(), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_stay_in_their_row(level, value):
    x = torch.randn(3, 50)
    x[1, 17] = value
    for y, plain in (
        (norm.layer_norm(x, None, None, 1e-5), norm.plain_layer_norm(x, None, None, 1e-5)),
        (norm.rms_norm(x, None, 1e-5), norm.plain_rms_norm(x, None, 1e-5)),
    ):
        assert torch.equal(y.isnan(), plain.isnan())
        assert y[[0, 2]].isfinite().all()


def test_bits_depend_on_neither_threads_nor_neighbours(level):
    x = torch.randn(173, 800)
    weight, bias = torch.randn(800), torch.randn(800)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(norm.layer_norm(x, weight, bias, 1e-5))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    if level != "plain":
        assert torch.equal(norm.layer_norm(x[77:78], weight, bias, 1e-5), results[0][77:78])


def test_empty_rows(level):
    assert norm.layer_norm(torch.empty(3, 0), None, None, 1e-5).shape == (3, 0)
    assert norm.rms_norm(torch.empty(0, 3), None, 1e-5).shape == (0, 3)


def test_bad_input_names_the_argument(level):
    x = torch.randn(3, 8)
    with pytest.raises(UsageError, match=r"^weight \(7,\)"):
        norm.layer_norm(x, torch.randn(7), None, 1e-5)
    with pytest.raises(UsageError, match=r"^residual \(8,\)"):
        norm.rms_norm_of_sum(x, torch.randn(8), None, 1e-5)
    with pytest.raises(UsageError, match=r"^bias torch\.float64"):
        norm.layer_norm(x, None, torch.randn(8).double(), 1e-5)
    with pytest.raises(UsageError, match=r"^out_dtype torch\.float64"):
        norm.rms_norm(x, None, 1e-5, out_dtype=torch.float64)
    with pytest.raises(UsageError, match=r"^sum_dtype torch\.float16"):
        norm.rms_norm_of_sum(x, x, None, 1e-5, sum_dtype=torch.float16)
    with pytest.raises(UsageError, match=r"^x without dimensions"):
        norm.rms_norm(torch.tensor(1.0), None, 1e-5)
    with pytest.raises(RuntimeError, match="layer_norm: an input requires a gradient"):
        norm.layer_norm(x.requires_grad_(), None, None, 1e-5)


@pytest.mark.skipif(not native.available(), reason="fakes stand for native operators")
def test_the_fakes_tell_shapes_and_dtypes():
    x, weight = torch.randn(2, 3, 40), torch.randn(40)
    for operator, arguments in (
        (torch.ops.slipstream.norm.default, (x, None, weight, None, 1e-5, True, False, True)),
        (torch.ops.slipstream.norm_of_sum.default, (x, x, weight, None, 1e-5, False, True, True, False)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
