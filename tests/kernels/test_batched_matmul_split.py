# SPDX-License-Identifier: Apache-2.0
"""`batched_matmul` of float32 in parts of bfloat16: as accurate as promised, for every layout and every value of a float32."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.batched_matmul import batched_matmul

TILES = ("amx", native.EMULATED)
LARGEST = torch.finfo(torch.float32).max
BOUND = {3: 2**-20, 2: 2**-15}
"""Of the sum of the terms' magnitudes: 2^-24 and 2^-16 a term, and the rounding of the sums."""
SPECIAL = [math.nan, math.inf, -math.inf, LARGEST, -LARGEST, 3.39e38, 0.0, -0.0, 1e-39, -1.2e-38, 1.0, 2**-130]
PARTS = st.sampled_from([2, 3])
LAYOUTS = st.sampled_from(["rows", "columns", "gaps", "neither"])

by_level = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def laid(kind, x):
    """x's values in a tensor whose last two axes lie by rows, by columns, with gaps, or by neither."""
    batch, rows, columns = x.shape
    if kind == "columns":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "gaps":
        return torch.full((rows, batch, columns + 3), math.nan).movedim(0, 1)[..., 1 : columns + 1].copy_(x)
    if kind == "neither":
        return torch.full((batch, rows, 2 * columns), math.nan)[..., ::2].copy_(x)
    return x


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def within_bound(y, a, b, parts):
    """Where the exact product is finite. Parts below 2^-126 may be lost, whatever they are multiplied by."""
    sizes = a.double().abs(), b.double().abs()
    lost = 2**-126 * (sizes[0].sum(-1, keepdim=True) + sizes[1].sum(-2, keepdim=True))
    wanted = a.double() @ b.double()
    room = BOUND[parts] * (sizes[0] @ sizes[1]) + lost
    return bool(((y.double() - wanted).abs() <= room)[wanted.isfinite()].all())


@by_level
@given(
    batch=st.integers(1, 3), m=st.sampled_from([1, 2, 15, 16, 17, 31, 33, 50]), n=st.integers(1, 140),
    k=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 160, 257])), of_a=LAYOUTS, of_b=LAYOUTS, parts=PARTS,
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_every_shape_and_layout(level, batch, m, n, k, of_a, of_b, parts, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(batch, m, k, generator=g), torch.randn(batch, k, n, generator=g) * torch.logspace(-8, 8, n)
    y = batched_matmul(laid(of_a, a), laid(of_b, b), parts=parts)
    assert y.shape == (batch, m, n) and y.dtype is torch.float32 and y.is_contiguous()
    assert within_bound(y, a, b, parts)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("k", [64, 768])
def test_three_parts_err_no_more_than_float32_itself(level, k, positive):
    torch.manual_seed(k)
    a, b = torch.randn(2, 20, k), torch.randn(2, k, 64)
    if positive:  # the sums grow with the depth, and with them what each addition loses
        a, b = a.abs(), b.abs()
    wanted = a.double() @ b.double()
    error = relative_error(batched_matmul(a, b, parts=3), wanted)
    if level in TILES:
        assert error <= relative_error((a.repeat(1, 16, 1) @ b)[:, :20], wanted)
    assert error <= 1e-6
    assert relative_error(batched_matmul(a, b, parts=2), wanted) <= 1e-5


def test_tiles_take_their_parts():
    """Two parts err more than float32 does, which tells that they were multiplied."""
    if not native.available():
        pytest.skip("the levels are native")
    torch.manual_seed(1)
    a, b = torch.randn(20, 64), torch.randn(64, 40)
    with native.level(native.EMULATED):
        assert relative_error(batched_matmul(a, b, parts=2), a.double() @ b.double()) > 1e-6
    with native.level("baseline"):
        assert torch.equal(batched_matmul(a, b, parts=2), batched_matmul(a, b))


@by_level
@given(
    parts=PARTS, of_a=LAYOUTS, of_b=LAYOUTS, seed=st.integers(0, 2**31),
    in_a=st.lists(st.tuples(st.integers(0, 17), st.integers(0, 39), st.sampled_from(SPECIAL)), max_size=6),
    in_b=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 34), st.sampled_from(SPECIAL)), max_size=6),
)  # fmt: skip
def test_special_values_are_as_in_float32(level, parts, of_a, of_b, seed, in_a, in_b):
    """Infinities, NaN, the largest floats, zeros; denormals are zeros on tiles. The others are small, nothing overflows."""
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 18, 40, generator=g) * 1e-3, torch.randn(2, 40, 35, generator=g) * 1e-3
    for row, column, value in in_a:
        a[1, row, column] = value
    for row, column, value in in_b:
        if abs(a[:, :, row]).max() < 1 or abs(value) < 1e-3:
            b[1, row, column] = value
    y = batched_matmul(laid(of_a, a), laid(of_b, b), parts=parts).double()
    if level in TILES:
        a, b = (torch.where(each.abs() < torch.finfo().tiny, 0.0, each) for each in (a, b))
    wanted = a.double() @ b.double()
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y[wanted.isinf()], wanted[wanted.isinf()])
    assert within_bound(y, a, b, parts)


@pytest.mark.parametrize("parts", [2, 3])
def test_factor_sum_shared_matrix_and_bfloat16_operands(level, parts):
    torch.manual_seed(2)
    a, b, addend = torch.randn(3, 2, 20, 33), torch.randn(33, 70), torch.randn(2, 1, 70)
    wanted = -0.5 * (a.double() @ b.double()) + addend
    y = batched_matmul(a, b, addend=addend, alpha=-0.5, parts=parts)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=2e-4)
    low = b.bfloat16()
    y = batched_matmul(a, low, dtype=torch.float32, out_dtype=torch.float32, parts=parts)
    torch.testing.assert_close(y.double(), a.double() @ low.double(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty(level, sizes):
    batch, m, k, n = sizes
    addend = torch.randn(batch, m, n)
    y = batched_matmul(torch.randn(batch, m, k), torch.randn(batch, k, n), addend=addend, parts=3)
    assert y.shape == (batch, m, n)
    assert k or torch.equal(y, addend)


@pytest.mark.parametrize("shape", [(1, 200, 64, 300), (1, 3, 512, 900), (5, 64, 64, 64)])
def test_neither_threads_nor_neighbours_change_a_row(level, shape):
    if level == "plain":
        pytest.skip("torch's own matmul does not promise this")
    torch.manual_seed(3)
    batch, m, k, n = shape
    a, b = torch.randn(batch, m, k), torch.randn(batch, n, k).transpose(1, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = batched_matmul(a, b, parts=3)
        torch.set_num_threads(2)
        assert torch.equal(batched_matmul(a, b, parts=3), alone)
    finally:
        torch.set_num_threads(before)
    a[0, -1, 7] = math.inf
    assert torch.equal(batched_matmul(a, b, parts=3)[0, :-1], alone[0, :-1])


def test_bad_parts_are_named():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    with pytest.raises(UsageError, match="parts 4"):
        batched_matmul(a, b, parts=4)
    with pytest.raises(UsageError, match="parts 2"):
        batched_matmul(a.bfloat16(), b, parts=2)
    if native.available():
        with pytest.raises(RuntimeError, match="parts"):
            torch.ops.slipstream.batched_matmul(a, b, None, 1.0, True, False, 2)


@pytest.mark.skipif(not native.available(), reason="the operator is native")
def test_the_fake_takes_parts():
    with FakeTensorMode() as mode:
        a, b = mode.from_tensor(torch.randn(2, 3, 4)), mode.from_tensor(torch.randn(2, 4, 5))
        assert torch.ops.slipstream.batched_matmul(a, b, None, 1.0, False, False, 3).shape == (2, 3, 5)
