# SPDX-License-Identifier: Apache-2.0
"""`linear` is its plain-torch twin: for any shape, stride, dtype, operand and level, within the bound of its docstring."""

import concurrent.futures

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import linear as L
from slipstream.kernels import native
from tests.kernels.conftest import SCALED

DTYPES = [torch.float32, torch.bfloat16]
ROUNDS_X = {"avx512_bf16", "amx", "amx_emulated", "plain"}
"""Levels at which bfloat16 weights make x bfloat16 too."""
HALF = native.FLOAT16

by_level = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def oracle(x, weight, bias, level, *, post_op="none", multiplier=None, residual=None, residual_first=False):
    """In float64, on the values that the kernel sees."""
    if weight.dtype is torch.bfloat16 and level in ROUNDS_X:
        x = x.bfloat16()
    y = x.double() @ weight.double().T
    if bias is not None:
        y = y + bias.double()
    if residual is not None and residual_first:
        y = y + residual.double()
    y = L.apply_post_op(y, post_op)
    if multiplier is not None:
        y = y * multiplier.double()
    if residual is not None and not residual_first:
        y = y + residual.double()
    return y


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@st.composite
def problems(draw):
    m = draw(st.sampled_from([0, 1, 2, 3, 5, 12, 13, 16, 17, 31, 33, 50]))
    n = draw(st.integers(1, 100))
    k = draw(st.integers(1, 150))
    seed = draw(st.integers(0, 2**31))
    dtype = st.sampled_from(DTYPES)
    return m, n, k, seed, draw(dtype), draw(dtype), draw(dtype), draw(dtype)


@by_level
@given(
    problem=problems(),
    post_op=st.sampled_from(L.POST_OPS),
    with_bias=st.booleans(),
    with_multiplier=st.booleans(),
    with_residual=st.booleans(),
    residual_first=st.booleans(),
)
def test_equals_the_twin(level, problem, post_op, with_bias, with_multiplier, with_residual, residual_first):
    m, n, k, seed, x_dtype, w_dtype, o_dtype, out_dtype = problem
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=g).to(x_dtype)
    weight = (torch.randn(n, k, generator=g) / k**0.5).to(w_dtype)
    bias = torch.randn(n, generator=g).to(o_dtype) if with_bias else None
    multiplier = torch.randn(m, n, generator=g).to(o_dtype) if with_multiplier else None
    residual = torch.randn(m, n, generator=g).to(o_dtype) if with_residual else None
    y = L.linear(
        x, L.pack(weight, dtype=w_dtype), bias,
        post_op=post_op, multiplier=multiplier, residual=residual, residual_first=residual_first, out_dtype=out_dtype,
    )  # fmt: skip
    assert y.shape == (m, n)
    assert y.dtype is out_dtype
    assert y.is_contiguous()
    operands = {"multiplier": multiplier, "residual": residual, "residual_first": residual_first}
    expected = oracle(x, weight, bias, level, post_op=post_op, **operands)
    # The bound is on the whole and absolute near zero: post-ops squeeze large sums into small values.
    scale = max(1.0, expected.abs().max().item()) if m else 1.0
    rounding = 2**-8 if torch.bfloat16 in (out_dtype, w_dtype if level in SCALED else out_dtype) else 4e-6
    if level == "plain" and w_dtype is torch.bfloat16:
        rounding = 2**-6  # torch rounds the sums to bfloat16 before bias, multiplier and residual, which may cancel them
    assert torch.allclose(y.double(), expected, rtol=rounding, atol=rounding * scale)


@pytest.mark.parametrize("w_dtype", DTYPES)
@pytest.mark.parametrize("k", [768, 4096])
def test_error_is_within_the_docstring(level, w_dtype, k):
    if level == native.EMULATED and k > 1000:
        k = 1056  # emulation takes a second a million products; more than four passes of 256 is what matters
    torch.manual_seed(k)
    x, weight = torch.randn(37, k), torch.randn(70, k)
    y = L.linear(x, L.pack(weight, dtype=w_dtype))
    error = relative_error(y, x.double() @ weight.double().T)
    assert error <= (1e-6 if w_dtype is torch.float32 else 4e-3)


def test_strides_do_not_matter(level):
    torch.manual_seed(1)
    weight = torch.randn(40, 48)
    packed = L.pack(weight, dtype=torch.float32)
    base = torch.randn(6, 9, 96)
    for x in (
        base[..., :48], base[:, ::2, :48], base[::2, :, 48:], base.transpose(0, 1)[..., :48], base[..., ::2],
        base.permute(2, 1, 0)[:48].transpose(0, 2), torch.randn(48), torch.randn(1, 1, 1, 48),
        torch.randn(1, 48).expand(5, 48),
    ):  # fmt: skip
        torch.testing.assert_close(L.linear(x, packed), x @ weight.T, rtol=1e-5, atol=1e-5)
    strided = torch.randn(48, 40).T
    torch.testing.assert_close(
        L.linear(base[0, :, :48], L.pack(strided, dtype=torch.float32)),
        base[0, :, :48] @ strided.T, rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    operand = torch.randn(9, 80)[:, ::2]
    torch.testing.assert_close(
        L.linear(base[0, :, :48], packed, residual=operand, multiplier=operand),
        (base[0, :, :48] @ weight.T) * operand + operand, rtol=1e-5, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("post_op", L.POST_OPS)
def test_nan_and_infinity_stay_in_their_rows(level, dtype, post_op):
    torch.manual_seed(2)
    x, weight = torch.randn(20, 40), torch.randn(33, 40)
    x[3, 7], x[15, 0], x[19, 39] = float("nan"), float("inf"), float("-inf")
    packed = L.pack(weight, dtype=dtype)
    y = L.linear(x, packed, post_op=post_op)
    clean = torch.ones(20, dtype=torch.bool)
    clean[[3, 15, 19]] = False
    assert torch.isfinite(y[clean]).all()
    assert torch.isnan(y[3]).all()
    expected = L.plain_linear(x, weight.to(dtype), post_op="none")
    if post_op == "none":
        assert torch.equal(y.isinf(), expected.isinf())
        assert torch.equal(y[y.isinf()], expected[expected.isinf()])


def test_large_values_do_not_overflow_in_post_ops(level):
    x = torch.linspace(-120, 120, 481).reshape(-1, 1)
    packed = L.pack(torch.ones(1, 1), dtype=torch.float32)
    for post_op in L.POST_OPS:
        expected = L.apply_post_op(x.double(), post_op)
        bound = 1e-6 if level == "plain" else 4e-7  # torch's own float32 gelu is off by 5.3e-7 at -3
        y = L.linear(x, packed, post_op=post_op).double()
        torch.testing.assert_close(y, expected, rtol=2e-6, atol=bound)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 7), (4, 5, 0), (3, 0, 4)])
def test_empty(level, m, n, k):
    bias = torch.randn(n)
    y = L.linear(torch.randn(m, k), L.pack(torch.randn(n, k), dtype=torch.float32), bias)
    torch.testing.assert_close(y, bias.expand(m, n))


def test_without_rows_strides_may_be_any(level):
    packed, beside = L.pack(torch.randn(2, 3), dtype=torch.float32), torch.randn(0, 2, 1, 4).permute(0, 2, 3, 1)
    assert L.linear(torch.randn(0, 3, 1, 4).permute(0, 2, 3, 1), packed, residual=beside).shape == beside.shape


def test_two_threads_give_the_bits_of_one(level):
    torch.manual_seed(3)
    before = torch.get_num_threads()
    shapes = [(1, 300, 200), (50, 40, 96)] if level == native.EMULATED else [(1, 1500, 768), (257, 700, 300), (5, 64, 4000)]
    try:
        for m, n, k in shapes:
            x, packed = torch.randn(m, k), L.pack(torch.randn(n, k), dtype=torch.bfloat16)
            torch.set_num_threads(1)
            alone = L.linear(x, packed)
            torch.set_num_threads(2)
            assert torch.equal(L.linear(x, packed), alone)
    finally:
        torch.set_num_threads(before)


def test_a_row_does_not_depend_on_the_rows_beside_it(level):
    torch.manual_seed(5)
    if level == "plain":
        pytest.skip("torch's own matmul does not promise this")
    for dtype in DTYPES:
        x, packed = torch.randn(35, 600), L.pack(torch.randn(140, 600), dtype=dtype)
        together = L.linear(x, packed)
        for rows in (1, 2, 3, 5, 14, 33):
            assert torch.equal(L.linear(x[:rows], packed), together[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k, n, post_op", [(101, 1500, 70, "none"), (120, 2501, 33, "gelu_erf"), (61, 4096, 40, "relu")])
def test_a_deep_product_is_that_of_its_rows(level, dtype, m, k, n, post_op):
    """So deep that few rows fit into a cache: many are multiplied piece by piece of the depth, in the same order of sums."""
    torch.manual_seed(0)
    x, weight, bias, residual = torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(n), torch.randn(m, n)
    packed = L.pack(weight, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        y = L.linear(x, packed, bias, post_op=post_op, residual=residual)
        rows = [L.linear(x[r : r + 1], packed, bias, post_op=post_op, residual=residual[r : r + 1]) for r in (0, m // 2, m - 1)]
    finally:
        torch.set_num_threads(before)
    expected = oracle(x, weight.to(dtype), bias, level, post_op=post_op, residual=residual)
    assert relative_error(y, expected) <= (1e-6 if dtype is torch.float32 else 2e-3)
    check_same_bits(level, torch.cat(rows), y[[0, m // 2, m - 1]])


def test_concurrent_calls_give_the_same_bits(level):
    torch.manual_seed(4)
    calls = 40 if level == native.EMULATED else 2500
    x, packed = torch.randn(9, 64), L.pack(torch.randn(48, 64), dtype=torch.bfloat16)
    wide, wide_packed = torch.randn(33, 200), L.pack(torch.randn(96, 200), dtype=torch.bfloat16)
    expected, wide_expected = L.linear(x, packed), L.linear(wide, wide_packed)

    def work(_):
        return all(
            torch.equal(L.linear(x, packed), expected)
            and (i % 10 or torch.equal(L.linear(wide, wide_packed), wide_expected))
            for i in range(calls)
        )

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_bad_input_names_the_argument():
    weight = torch.randn(4, 6)
    with pytest.raises(UsageError, match="weight"):
        L.pack(torch.randn(4), dtype=torch.float32)
    with pytest.raises(UsageError, match=r"(dtype|x|weight) torch\."):
        L.pack(weight, dtype=torch.float16)
    with pytest.raises(UsageError, match=r"weight torch\.float64"):
        L.pack(weight.double(), dtype=torch.float32)
    packed = L.pack(weight, dtype=torch.float32)
    with pytest.raises(UsageError, match="post_op mish"):
        L.linear(torch.randn(2, 6), packed, post_op="mish")
    with pytest.raises(UsageError, match=r"(dtype|x|weight) torch\."):
        L.linear(torch.randn(2, 6).double(), packed)
    with pytest.raises(RuntimeError):
        L.linear(torch.randn(2, 5), packed)
    with pytest.raises(RuntimeError, match="gradient"):
        L.linear(torch.randn(2, 6, requires_grad=True), packed)


@pytest.mark.skipif(not native.available(), reason="the operators are native")
def test_native_checks_its_operands():
    packed = L.pack(torch.randn(4, 6), dtype=torch.float32)
    x = torch.randn(2, 6)
    with pytest.raises(RuntimeError, match="bias"):
        L.linear(x, packed, torch.randn(5))
    with pytest.raises(RuntimeError, match="residual"):
        L.linear(x, packed, residual=torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="multiplier"):
        L.linear(x, packed, multiplier=torch.randn(2, 5))
    with pytest.raises(RuntimeError, match="packed"):
        torch.ops.slipstream.linear(x, packed.data[:-1], 4, 6, None, 0, None, None, False)


@pytest.mark.skipif(not native.available(), reason="the operators are native")
def test_operators_are_seen_by_export():
    packed = L.pack(torch.randn(4, 6), dtype=torch.bfloat16)

    class Model(torch.nn.Module):
        def forward(self, x):
            return torch.ops.slipstream.linear(x, packed.data, 4, 6, None, 1, None, None, False)

    x = torch.randn(3, 6)
    with torch.no_grad():
        exported = torch.export.export(Model(), (x,), strict=False)
        assert torch.equal(exported.module()(x), Model()(x))


def check_same_bits(level, actual, expected):
    if level == "plain":  # torch's own matmul does not promise this
        torch.testing.assert_close(actual, expected, rtol=2**-7, atol=2**-5)
    else:
        assert torch.equal(actual, expected)


@by_level
@given(
    widths=st.lists(st.sampled_from([32, 64, 96]), min_size=1, max_size=3), last=st.integers(1, 70), k=st.integers(1, 70),
    m=st.sampled_from([0, 1, 3, 14]), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_joined_weights_give_the_same_bits(level, widths, last, k, m, dtype):
    torch.manual_seed(0)
    x = torch.randn(m, k)
    parts = [L.pack(torch.randn(n, k), dtype=dtype) for n in (*widths, last)]
    joint, views = L.join(parts)
    expected = [L.linear(x, part) for part in parts]
    check_same_bits(level, L.linear(x, joint), torch.cat(expected, -1))
    for view, y in zip(views, expected, strict=True):
        check_same_bits(level, L.linear(x, view), y)
        assert view.data.untyped_storage().data_ptr() == joint.data.untyped_storage().data_ptr()


def test_what_cannot_be_joined():
    def packed(n, k, dtype=torch.float32):
        return L.pack(torch.randn(n, k), dtype=dtype)

    with pytest.raises(UsageError, match=r"^parts \[31, 32\].*multiple of 32"):
        L.join([packed(31, 8), packed(32, 8)])
    with pytest.raises(UsageError, match="of k 9"):
        L.join([packed(32, 8), packed(32, 9)])
    with pytest.raises(UsageError, match=r"in torch\.bfloat16"):
        L.join([packed(32, 8), packed(32, 8, torch.bfloat16)])


@by_level
@given(
    n=st.integers(1, 130), k=st.integers(1, 70), m=st.sampled_from([0, 1, 3, 14]), dtype=st.sampled_from(DTYPES),
    data=st.data(),
)  # fmt: skip
def test_a_part_of_the_outputs_gives_the_same_bits(level, n, k, m, dtype, data):
    torch.manual_seed(0)
    start = 32 * data.draw(st.integers(0, (n - 1) // 32))
    stop = data.draw(st.sampled_from([*range(start + 32, n, 32), n]))
    x, packed = torch.randn(m, k), L.pack(torch.randn(n, k), dtype=dtype)
    check_same_bits(level, L.linear(x, L.part(packed, start, stop)), L.linear(x, packed)[:, start:stop])


@pytest.mark.parametrize("rows", [(1, 32), (0, 33), (32, 32), (0, 128), (-32, 32)])
def test_a_part_that_is_none(rows):
    with pytest.raises(UsageError, match=r"^start and stop"):
        L.part(L.pack(torch.randn(100, 4), dtype=torch.float32), *rows)


def half_error(x, weight):
    """Of products in float16, against float64, relative to the length of each row times that of each column of weights."""
    y = L.linear(x, L.pack(weight, dtype=torch.bfloat16), out_dtype=torch.float32)
    lengths = x.double().norm(dim=1)[:, None] * weight.bfloat16().double().norm(dim=1)
    return ((y.double() - x.double() @ weight.bfloat16().double().T).abs() / lengths.clamp_min(1e-300)).max().item()


def test_weights_are_held_in_float16_where_they_fit(float16_level):
    weight = torch.rand(70, 40) - 0.5
    assert L.pack(weight, dtype=torch.bfloat16).data.dtype is torch.float16
    assert L.pack(weight, dtype=torch.bfloat16, scaled=False).data.dtype is torch.bfloat16
    assert L.pack(weight * 2.0**39, dtype=torch.bfloat16).data.dtype is torch.float16
    for bad in (float("inf"), float("nan"), 2.0**42, -(2.0**42)):
        weight[69, 3] = bad
        packed = L.pack(weight, dtype=torch.bfloat16)
        assert packed.data.dtype is torch.bfloat16
        y, expected = L.linear(torch.ones(60, 40), packed), weight.bfloat16().float().sum(1).expand(60, 70)
        torch.testing.assert_close(y, expected, rtol=4e-3, atol=4e-3, equal_nan=True)


@by_level
@given(
    rows=st.lists(st.integers(-80, 58), min_size=1, max_size=9), k=st.integers(1, 300),
    columns=st.lists(st.integers(-38, 38), min_size=1, max_size=40), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_scales_of_rows_and_columns_do_not_matter_in_float16(float16_level, rows, columns, k, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(len(rows), k, generator=g) * torch.tensor(rows).double().exp2().float()[:, None]
    weight = torch.randn(len(columns), k, generator=g).bfloat16() * torch.tensor(columns).double().exp2().float()[:, None]
    assert half_error(x, weight) <= 2**-8


@pytest.mark.parametrize("k", [31, 64, 65, 768, 3000])
def test_sums_of_like_signs_do_not_overflow_in_float16(float16_level, k):
    """The largest products that scaling allows, all of one sign; and an outlier beside what it must not swallow."""
    x, weight = torch.full((50, k), 1.99), torch.full((33, k), 1.99)
    assert half_error(x, weight) <= 2**-8
    almost_two = torch.full((33, k), 1.99999)  # both are rounded to 2, whose products' sums are just beyond float16
    y = L.linear(almost_two, L.pack(almost_two, dtype=torch.bfloat16))
    torch.testing.assert_close(y, torch.full_like(y, 4.0 * k), rtol=2e-3, atol=0)
    x[:, 3] = 2000
    assert half_error(x, weight) <= 2**-8
    assert half_error(x, -weight) <= 2**-8


def test_rows_that_do_not_fit_float16_are_multiplied_widened(float16_level):
    torch.manual_seed(5)
    weight = torch.randn(70, 45).bfloat16()
    packed = L.pack(weight, dtype=torch.bfloat16)
    plain = torch.randn(60, 45)
    alone = L.linear(plain, packed)
    x = plain.clone()
    x[0] *= 2.0**80
    x[7] *= 2.0**70
    x[30] = 0
    x[59, 3] = float("inf")
    y = L.linear(x, packed)
    expected = x.double() @ weight.double().T
    for row in (0, 7):
        assert relative_error(y[row], expected[row]) <= 1e-5
    assert (y[30] == 0).all()
    assert torch.equal(y[59].double(), expected[59])
    others = torch.ones(60, dtype=torch.bool)
    others[[0, 7, 30, 59]] = False
    assert torch.equal(y[others], alone[others])


@pytest.mark.parametrize("exponent", [-60, -100, -124, -128])
def test_small_rows_fit_float16(float16_level, exponent):
    """The last of them are denormal numbers; weights bring the results back into float32's range."""
    torch.manual_seed(8)
    weight = torch.randn(70, 45) * 2.0**30
    x = torch.randn(60, 45)
    small = x * 2.0**exponent
    y, expected = L.linear(small, L.pack(weight, dtype=torch.bfloat16)), small.double() @ weight.double().T
    assert relative_error(y, expected) <= (1.2e-3 if exponent > -126 else 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiny_column_of_weights_leaves_the_others_in_float16(float16_level, dtype):
    """As batch normalization of a channel that training switched off leaves it; by itself it is of no weight."""
    torch.manual_seed(9)
    x, weight = torch.randn(60, 45), torch.randn(70, 45)
    weight[3] *= 2.0**-50
    weight[40] *= 1e-30
    weight[41] = 0
    packed = L.pack(weight.to(dtype), dtype=torch.bfloat16)
    assert packed.data.dtype is torch.float16
    y, expected = L.linear(x, packed), x.double() @ weight.double().T
    assert relative_error(y, expected) <= 4e-3
    assert relative_error(y[:, 3], expected[:, 3]) <= 2e-2
    assert y[:, 40:42].abs().max() <= 1e-27
    assert L.pack(weight * 1e-30, dtype=torch.bfloat16).data.dtype is torch.bfloat16


def test_weights_in_float16_serve_other_levels(float16_level):
    torch.manual_seed(6)
    x, weight = torch.randn(20, 50), torch.randn(70, 50).bfloat16()
    packed = L.pack(weight, dtype=torch.bfloat16)
    assert packed.data.dtype is torch.float16
    for other in native.levels():
        with native.level(other):
            y, expected = L.linear(x, packed), L.linear(x, L.pack(weight, dtype=torch.bfloat16, scaled=False))
        assert relative_error(y, expected.double()) <= (2e-3 if other == HALF else 1e-7)


def test_float32_weights_keep_more_in_float16(float16_level):
    torch.manual_seed(7)
    x, weight = torch.randn(40, 300), torch.randn(70, 300)
    weight[5] = 0
    weight[6] *= 1e-9
    exact = x.double() @ weight.double().T
    y, rounded = (L.linear(x, L.pack(held, dtype=torch.bfloat16)) for held in (weight, weight.bfloat16()))
    assert relative_error(y, exact) <= 1.1e-3 < relative_error(rounded, exact)
    assert relative_error(y[:, 6], exact[:, 6]) <= 1.5e-3
    assert (y[:, 5] == 0).all()
