# SPDX-License-Identifier: Apache-2.0
"""Linear in 16-bit integers at the levels that multiply bfloat16 so: what does not fit is multiplied otherwise, and alone.

Against the twin, on odd shapes and from many threads: test_linear.py and test_recurrent.py, which run at these levels too."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slipstream.kernels import linear as L
from slipstream.kernels import native
from slipstream.kernels.recurrent import pack as pack_recurrent
from slipstream.kernels.recurrent import recurrent
from tests.kernels.conftest import INT16, levels_under_test

LEVELS = [level for level in levels_under_test() if level in INT16]
LIMIT = 1e-3
"""Of operands that are normally distributed; bfloat16 would have 2.4e-3."""
INF, NAN = float("inf"), float("nan")

pytestmark = [
    pytest.mark.usefixtures("int16_level"),
    pytest.mark.skipif(not LEVELS, reason="this machine has no level that multiplies 16-bit integers"),
]


@pytest.fixture(params=LEVELS, scope="module")
def int16_level(request):
    with native.level(request.param):
        yield request.param


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def exact(x, weight):
    return x.double() @ weight.double().T


def operands(rows=60, k=200, outs=70, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, k, generator=g), torch.randn(outs, k, generator=g)


def pack(weight):
    return L.pack(weight, dtype=torch.bfloat16)


@pytest.mark.parametrize("w_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 32, 63, 127, 128, 129, 260, 3000])
def test_more_is_kept_than_bfloat16_has(x_dtype, w_dtype, k):
    x, weight = operands(k=k)
    x, weight = x.to(x_dtype), weight.to(w_dtype)
    packed = pack(weight)
    assert packed.data.dtype is torch.int16
    assert error(L.linear(x, packed, out_dtype=torch.float32), exact(x, weight)) <= LIMIT


def test_weights_that_do_not_fit_stay_bfloat16():
    _, weight = operands(k=40)
    assert L.pack(weight, dtype=torch.bfloat16, scaled=False).data.dtype is torch.bfloat16
    assert pack(weight * 2.0**37).data.dtype is torch.int16
    for bad in (INF, NAN, 2.0**42, -(2.0**42)):
        weight[69, 3] = bad
        packed = pack(weight)
        assert packed.data.dtype is torch.bfloat16
        y, expected = L.linear(torch.ones(60, 40), packed), weight.bfloat16().float().sum(1).expand(60, 70)
        torch.testing.assert_close(y, expected, rtol=4e-3, atol=4e-3, equal_nan=True)


def test_weights_of_two_scales_stay_bfloat16():
    """What features of two scales lead to: small weights for the large ones."""
    x, weight = operands(k=64)
    scales = torch.where(torch.arange(64) % 2 == 0, 2.0**12, 1.0)
    y, expected = L.linear(x * scales, pack(weight / scales)), exact(x * scales, weight / scales)
    assert pack(weight / scales).data.dtype is torch.bfloat16
    assert error(y, expected) <= 4e-3


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [45, 64, 500])
def test_rows_that_are_nothing_beside_one_element_keep_it_all(x_dtype, k):
    x, weight = operands(k=k)
    weight = weight.bfloat16()
    weight[:, 3] = 0  # which then decides nothing
    x[::7, 3] = 2.0**14
    x = x.to(x_dtype)
    y, expected = L.linear(x, pack(weight), out_dtype=torch.float32), exact(x, weight)
    for row in range(60):
        assert error(y[row], expected[row]) <= 2 * LIMIT


def test_zeros_are_no_faint_elements():
    x, weight = operands(k=640)
    x = x.relu() * (torch.arange(640) % 5 == 0)
    weight[:, ::3] = 0
    assert pack(weight).data.dtype is torch.int16
    alone = [L.linear(x[row : row + 1], pack(weight)) for row in range(60)]
    y = L.linear(x, pack(weight))
    assert error(y, exact(x, weight)) <= LIMIT
    assert torch.equal(y, torch.cat(alone))


@given(
    rows=st.lists(st.integers(-80, 58), min_size=1, max_size=30), k=st.integers(1, 300),
    columns=st.lists(st.integers(-38, 37), min_size=1, max_size=40), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_scales_of_rows_and_columns_do_not_matter(rows, columns, k, seed):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(len(rows), k, generator=g), torch.randn(len(columns), k, generator=g)
    of_rows, of_columns = (torch.tensor(powers).double().exp2()[:, None] for powers in (rows, columns))
    y = L.linear((x * of_rows).float(), pack((weight * of_columns).float())).double() / of_rows / of_columns.T
    lengths = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    assert ((y - exact(x, weight)).abs() / lengths).max() <= 2e-3


@pytest.mark.parametrize("k", [127, 128, 129, 3000])
def test_the_largest_sums_fit(k):
    for x, w in ((1.99999, 1.99999), (-1.99999, 1.99999), (1.99, -1.99)):
        y = L.linear(torch.full((50, k), x), pack(torch.full((33, k), w)))
        torch.testing.assert_close(y, torch.full_like(y, x * w * k), rtol=5e-4, atol=0)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_rows_that_do_not_fit_are_multiplied_widened_and_leave_others_alone(x_dtype):
    plain, weight = operands(rows=160, k=45)
    weight, plain = weight.bfloat16(), plain.to(x_dtype)
    packed, bias = pack(weight), torch.randn(70)
    alone = L.linear(plain, packed, bias, out_dtype=torch.float32)
    x = plain.clone()
    x[0] *= 2.0**80
    x[7] *= 2.0**70
    x[30] = 0
    x[59, 3] = INF
    x[60, 44] = NAN
    x[100:140, 5] = 2.0**65
    y, expected = L.linear(x, packed, bias, out_dtype=torch.float32), exact(x, weight) + bias
    odd = torch.zeros(160, dtype=torch.bool)
    odd[[0, 7, 30, 59, 60, *range(100, 140)]] = True
    assert torch.equal(y[~odd], alone[~odd])
    assert y[60].isnan().all() and torch.equal(y[59].double(), expected[59])
    for row in (0, 7, 30, *range(100, 140)):
        assert error(y[row], expected[row]) <= 3e-4


@pytest.mark.parametrize("exponent", [-60, -100, -124])
def test_small_rows(exponent):
    x, weight = operands(k=45)
    weight, small = weight * 2.0**30, x * 2.0**exponent
    assert error(L.linear(small, pack(weight)), exact(small, weight)) <= LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tiny_column_of_weights_leaves_the_others(dtype):
    """As batch normalization of a channel that training switched off leaves it; by itself it is of no weight."""
    x, weight = operands(k=45)
    weight[3] *= 2.0**-45
    weight[40] *= 1e-30
    weight[41] = 0
    packed = pack(weight.to(dtype))
    assert packed.data.dtype is torch.int16
    y, expected = L.linear(x, packed), exact(x, weight.to(dtype))
    assert error(y, expected) <= LIMIT
    assert y[:, 40:42].abs().max() <= 1e-11


def test_packed_weights_serve_other_levels(int16_level):
    x, weight = operands()
    packed = pack(weight)
    for other in [*native.levels(), native.EMULATED]:
        with native.level(other):
            assert error(L.linear(x, packed), exact(x, weight)) <= 4e-3, other


def test_joined_weights_give_the_same_bits(int16_level):
    x, weight = operands(k=64, outs=64)
    packs = [pack(weight), pack(weight * 3)]
    joined, _ = L.join(packs)
    together = L.linear(x, joined)
    assert torch.equal(together, torch.cat([L.linear(x, packed) for packed in packs], 1))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_layers(kind):
    torch.manual_seed(2)
    layer = getattr(torch.nn, kind.upper())(40, 50, num_layers=2, bidirectional=True)
    x = torch.randn(12, 3, 40)
    packed = pack_recurrent(kind, list(layer.parameters()), layers=2, bidirectional=True, dtype=torch.bfloat16)
    assert packed.weights.dtype is torch.int16
    with torch.no_grad():
        expected = layer.double()(x.double())[0]
    assert error(recurrent(x, packed)[0], expected) <= 2e-3
    for other in native.levels():
        with native.level(other):
            assert error(recurrent(x, packed)[0], expected) <= 6e-3, other
