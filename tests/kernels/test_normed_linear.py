# SPDX-License-Identifier: Apache-2.0
"""A linear of normalized rows is the norm and the linear, each by itself: bit for bit, however rows are shared out."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import linear, native
from slipstream.kernels.normed_linear import Normalization, normalized, normed_linear

DTYPES = [torch.float32, torch.bfloat16]
dtypes = st.sampled_from(DTYPES)

by_level = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def both(x, weight, bias, normalization, packed, shift, **others):
    options = {"out_dtype": x.dtype, **others}
    rows = normalized(x, weight, bias, normalization)
    got = normed_linear(x, weight, bias, normalization, packed, shift, **options)
    return got, linear.linear(rows, packed, shift, **options)


@st.composite
def problems(draw):
    rows = draw(st.sampled_from([(), (0,), (1,), (2,), (13,), (50,), (2, 3), (3, 1, 2)]))
    n, k = draw(st.integers(1, 100)), draw(st.integers(1, 150))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(*rows, k + draw(st.integers(0, 3)))[..., :k].to(draw(dtypes))
    parameters = [torch.randn(k).to(draw(dtypes)) if draw(st.booleans()) else None for _ in range(2)]
    operands = [torch.randn(*rows, n).to(draw(dtypes)) if draw(st.booleans()) else None for _ in range(2)]
    return x, parameters, torch.randn(n, k), torch.randn(n) if draw(st.booleans()) else None, operands


@by_level
@given(
    problem=problems(), held=dtypes, parts=st.integers(1, 3), rows=dtypes, out=dtypes, centred=st.booleans(),
    post_op=st.sampled_from(linear.POST_OPS),
)  # fmt: skip
def test_bits_of_the_two(level, problem, held, parts, rows, out, centred, post_op):
    x, (weight, bias), matrix, shift, (multiplier, residual) = problem
    packed = linear.pack(matrix, dtype=held, parts=parts if held is torch.float32 else 1)
    got, wanted = both(
        x, weight, bias if centred else None, Normalization(1e-5, centred, rows), packed, shift,
        post_op=post_op, multiplier=multiplier, residual=residual, out_dtype=out,
    )  # fmt: skip
    assert got.dtype is out
    assert got.is_contiguous()
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 512, 512), (40, 1024, 256), (900, 160, 128), (2500, 96, 64), (16, 4096, 128)])
def test_for_a_team(level, dtype, m, n, k):
    """Whole rows a thread, or panels of all rows, whole shares or runs of them."""
    torch.manual_seed(0)
    x, weight, bias, matrix = 3 + torch.randn(m, k), torch.randn(k), torch.randn(k), torch.randn(n, k)
    packed = linear.pack(matrix, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 2, 3):
            torch.set_num_threads(torch_threads)
            got, wanted = both(x, weight, bias, Normalization(1e-6, True, dtype), packed, None, post_op="silu")
            assert torch.equal(got, wanted)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf"), 1e-40])
def test_what_is_not_finite_stays_in_its_row(level, strange):
    x, packed = torch.randn(5, 40), linear.pack(torch.randn(70, 40), dtype=torch.float32)
    plain = normed_linear(x, None, None, Normalization(1e-6, False, torch.float32), packed)
    x[2, 7] = strange
    got, wanted = both(x, None, None, Normalization(1e-6, False, torch.float32), packed, None)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got[[0, 1, 3, 4]], plain[[0, 1, 3, 4]])
    assert got[2].isfinite().all() == (strange == 1e-40)


def test_wrong_input_is_refused():
    x, packed = torch.randn(2, 40), linear.pack(torch.randn(70, 40), dtype=torch.float32)
    good = Normalization(1e-6, True, torch.float32)
    with pytest.raises(UsageError, match="norm_bias of shape"):
        normed_linear(x, None, torch.randn(40), good._replace(centred=False), packed)
    with pytest.raises(UsageError, match="rows"):
        normed_linear(x, None, None, good._replace(dtype=torch.float16), packed)
    with pytest.raises(UsageError, match="post_op"):
        normed_linear(x, None, None, good, packed, post_op="swish")
    with pytest.raises(RuntimeError, match="normed_linear"):
        normed_linear(x.requires_grad_(), None, None, good, packed)


@pytest.mark.skipif(not native.available(), reason="the twin is torch's to check")
def test_the_operator_names_what_does_not_fit():
    x, packed = torch.randn(2, 40), linear.pack(torch.randn(70, 40), dtype=torch.float32)
    good = Normalization(1e-6, True, torch.float32)
    with pytest.raises(RuntimeError, match="in_features"):
        normed_linear(x[:, :39], None, None, good, packed)
    with pytest.raises(RuntimeError, match="weight: not one value"):
        normed_linear(x, torch.randn(39), None, good, packed)
    with pytest.raises(RuntimeError, match="residual: not of the output's shape"):
        normed_linear(x, None, None, good, packed, residual=torch.randn(3, 70))
