# SPDX-License-Identifier: Apache-2.0
"""`linear` of float32 weights held in parts of bfloat16: as accurate as promised, for every value that a float32 can have."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from slipstream.errors import UsageError
from slipstream.kernels import linear as L
from slipstream.kernels import native
from tests.kernels.conftest import SCALED

TILES = ("amx", native.EMULATED)
LARGEST = torch.finfo(torch.float32).max
BOUND = {3: 2**-20, 2: 2**-15}
"""Of the sum of the terms' magnitudes: 2^-24 and 2^-16 a term, and the rounding of the sums."""

by_level = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def exact(x, weight):
    return x.double() @ weight.double().T


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def within_bound(y, x, weight, parts):
    """Where the exact product is finite. Parts below 2^-126 may be lost, whatever they are multiplied by."""
    wanted, sizes = exact(x, weight), (x.double().abs(), weight.double().abs())
    lost = 2**-126 * (sizes[0].sum(1, keepdim=True) + sizes[1].sum(1))
    room = BOUND[parts] * (sizes[0] @ sizes[1].T) + lost
    return bool(((y.double() - wanted).abs() <= room)[wanted.isfinite()].all())


@st.composite
def problems(draw):
    m = draw(st.sampled_from([1, 2, 5, 15, 16, 17, 31, 33, 50]))
    n = draw(st.integers(1, 70))
    k = draw(st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 160, 257])))
    return m, n, k, draw(st.sampled_from([2, 3])), draw(st.integers(0, 2**31))


@by_level
@given(problem=problems())
def test_every_shape(level, problem):
    m, n, k, parts, seed = problem
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g) * torch.logspace(-8, 8, n).unsqueeze(1)
    y = L.linear(x, L.pack(weight, dtype=torch.float32, parts=parts))
    assert y.shape == (m, n) and y.dtype is torch.float32
    assert within_bound(y, x, weight, parts)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("k", [64, 768, 4096])
def test_three_parts_err_no_more_than_float32_itself(level, k, positive):
    rows = 20
    torch.manual_seed(k)
    x, weight = torch.randn(rows, k), torch.randn(64, k)
    if positive:  # the sums grow with the depth, and with them what each addition loses
        x, weight = x.abs(), weight.abs()
    wanted = exact(x, weight)
    torchs = relative_error(F.linear(x.repeat(16, 1), weight)[:rows], wanted)
    error = relative_error(L.linear(x, L.pack(weight, dtype=torch.float32, parts=3)), wanted)
    if level in TILES:
        assert error <= torchs
    assert error <= 1e-6
    assert relative_error(L.linear(x, L.pack(weight, dtype=torch.float32, parts=2)), wanted) <= 1e-5


SPECIAL = [math.nan, math.inf, -math.inf, LARGEST, -LARGEST, 3.39e38, 0.0, -0.0, 1e-39, -1.2e-38, 1.0, 2**-130]


@by_level
@given(
    parts=st.sampled_from([2, 3]),
    in_x=st.lists(st.tuples(st.integers(0, 17), st.integers(0, 39), st.sampled_from(SPECIAL)), max_size=6),
    in_weight=st.lists(st.tuples(st.integers(0, 34), st.integers(0, 39), st.sampled_from(SPECIAL)), max_size=6),
    seed=st.integers(0, 2**31),
)
def test_special_values_are_as_in_float32(level, parts, in_x, in_weight, seed):
    """Infinities, NaN, the largest floats, zeros; denormals are zeros on tiles. The others are small, nothing overflows."""
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(18, 40, generator=g) * 1e-3, torch.randn(35, 40, generator=g) * 1e-3
    for row, column, value in in_x:
        x[row, column] = value
    for row, column, value in in_weight:
        if abs(x[:, column]).max() < 1 or abs(value) < 1e-3:
            weight[row, column] = value
    y = L.linear(x, L.pack(weight, dtype=torch.float32, parts=parts)).double()
    if level in TILES:
        x, weight = (torch.where(each.abs() < torch.finfo().tiny, 0.0, each) for each in (x, weight))
    wanted = exact(x, weight)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y[wanted.isinf()], wanted[wanted.isinf()])
    assert within_bound(y, x, weight, parts)


@pytest.mark.parametrize("parts", [2, 3])
def test_infinities_meet_weights_that_bfloat16_holds(level, parts):
    """Their lesser parts are zero, and an infinity times zero would be NaN."""
    x, weight = torch.ones(3, 4), torch.tensor([[1.0, 2.0, -0.5, 0.25], [-1.0, 1.0, 1.0, 0.0]])
    x[0, 0], x[1, 3] = math.inf, -math.inf
    y = L.linear(x, L.pack(weight, dtype=torch.float32, parts=parts))
    assert y[0].tolist() == [math.inf, -math.inf]
    assert y[1, 0] == -math.inf and y[1, 1].isnan()
    assert y[2].tolist() == [2.75, 1.0]


def test_sums_beyond_the_largest_float_are_infinite(level):
    x, weight = torch.full((2, 40), 3e38), torch.ones(3, 40)
    x[1] = -x[1]
    y = L.linear(x, L.pack(weight, dtype=torch.float32, parts=3))
    assert y.tolist() == [[math.inf] * 3, [-math.inf] * 3]


def test_operands_and_strides(level):
    torch.manual_seed(1)
    base, weight = torch.randn(3, 7, 90), torch.randn(37, 45)
    multiplier, residual, bias = torch.randn(3, 7, 37), torch.randn(3, 7, 74)[..., ::2], torch.randn(37)
    packed = L.pack(torch.randn(45, 37).copy_(weight.T).T, dtype=torch.float32, parts=3)
    for x in (base[..., :45], base[..., ::2], base[..., 45:].bfloat16()):
        y = L.linear(x, packed, bias, post_op="silu", multiplier=multiplier, residual=residual)
        wanted = F.silu(F.linear(x.float(), weight, bias)) * multiplier + residual
        assert y.dtype is x.dtype
        room = 1e-2 if x.dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(y.float(), wanted, rtol=room, atol=room)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 7), (4, 5, 0), (3, 0, 4)])
def test_empty(level, m, n, k):
    bias = torch.randn(n)
    y = L.linear(torch.randn(m, k), L.pack(torch.randn(n, k), dtype=torch.float32, parts=3), bias)
    torch.testing.assert_close(y, bias.expand(m, n))


@pytest.mark.parametrize("parts", [2, 3])
def test_neither_threads_nor_neighbours_change_a_row(level, parts):
    if level == "plain":
        pytest.skip("torch's own matmul does not promise this")
    torch.manual_seed(5)
    x, packed = torch.randn(50, 300), L.pack(torch.randn(72, 300), dtype=torch.float32, parts=parts)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = L.linear(x, packed)
        torch.set_num_threads(2)
        assert torch.equal(L.linear(x, packed), together)
    finally:
        torch.set_num_threads(before)
    x[40, 7] = math.inf
    assert torch.equal(L.linear(x, packed)[:40], together[:40])
    for rows in (1, 3, 16, 17, 33):
        assert torch.equal(L.linear(x[:rows], packed), together[:rows])


@pytest.mark.skipif(not native.available(), reason="levels are native")
def test_one_pack_serves_every_level():
    torch.manual_seed(6)
    x, weight = torch.randn(5, 50), torch.randn(40, 50)
    weight[3, 4], weight[5, 6] = LARGEST, math.inf
    packed, plain = L.pack(weight, dtype=torch.float32, parts=3), L.pack(weight, dtype=torch.float32)
    assert packed.data.numel() == 3 * 64 * 64 and packed.data.dtype is torch.bfloat16
    with native.level("baseline"):  # three parts are all bits of a float
        assert torch.equal(L.linear(x, packed), L.linear(x, plain))


@pytest.mark.parametrize("parts", [2, 3])
def test_joined_weights_give_the_same_bits(level, parts):
    torch.manual_seed(7)
    x, packs = torch.randn(18, 50), [L.pack(torch.randn(n, 50), dtype=torch.float32, parts=parts) for n in (64, 32, 7)]
    joint, views = L.join(packs)
    expected = [L.linear(x, each) for each in packs]
    if level == "plain":  # torch's own matmul does not promise the same bits
        torch.testing.assert_close(L.linear(x, joint), torch.cat(expected, -1))
    else:
        assert torch.equal(L.linear(x, joint), torch.cat(expected, -1))
    assert all(torch.equal(L.linear(x, view), y) for view, y in zip(views, expected, strict=True))
    with pytest.raises(UsageError, match="parts"):
        L.join([packs[0], L.pack(torch.randn(32, 50), dtype=torch.float32)])


@given(values=st.lists(st.floats(width=32, allow_subnormal=False), min_size=1, max_size=20))
@settings(deadline=None)
def test_parts_add_up(values):
    values = torch.tensor(values, dtype=torch.float32)
    values = torch.where(values.abs() < 2**-100, 0.0, values)
    parts = L.split(values, 3)
    assert all(torch.equal(part, part.bfloat16().float()) or part.isnan().any() for part in parts)
    finite = values.isfinite()
    assert torch.equal((parts[0] + (parts[1] + parts[2]))[finite], values[finite])
    assert torch.equal(parts[0].isnan(), values.isnan()) and torch.equal(parts[0].isinf(), values.isinf())
    assert all((part[~finite] == 0).all() for part in parts[1:])


def test_bad_arguments_are_named():
    with pytest.raises(UsageError, match="parts 4"):
        L.pack(torch.randn(4, 6), dtype=torch.float32, parts=4)
    with pytest.raises(UsageError, match="parts 2"):
        L.pack(torch.randn(4, 6), dtype=torch.bfloat16, parts=2)
    if native.available():
        with pytest.raises(RuntimeError, match="parts"):
            torch.ops.slipstream.pack_linear(torch.randn(4, 6), False, 2)
        packed = L.pack(torch.randn(4, 6), dtype=torch.float32, parts=2)
        with pytest.raises(RuntimeError, match="packed"):
            torch.ops.slipstream.linear(torch.randn(2, 6), packed.data[:-1], 4, 6, None, 0, None, None, False)


@pytest.mark.skipif(not native.available(), reason="the operators are native")
def test_the_fake_has_the_size_of_the_pack():
    weight = torch.randn(40, 50)
    packed = torch.ops.slipstream.pack_linear(weight, True, 3)
    with FakeTensorMode() as mode:
        fake = torch.ops.slipstream.pack_linear(mode.from_tensor(weight), True, 3)
    assert (fake.shape, fake.dtype) == (packed.shape, packed.dtype)


@pytest.fixture
def precision():
    """Sets torch's, and puts it back."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision(before)


def test_the_precision_that_torch_was_asked_for(precision):
    for name in ("highest", "high", "medium"):
        precision(name)
        assert L.asked_precision() == name
    precision("highest")
    for value, name in (("bf16", "medium"), ("tf32", "high"), ("ieee", "highest")):
        torch.backends.mkldnn.matmul.fp32_precision = value
        assert L.asked_precision() == name


def test_how_weights_are_held(level):
    tiles, faster = level in TILES, level in ("avx512_bf16", *SCALED, *TILES)
    assert L.best_held("highest", 16) == (torch.float32, 3 if tiles else 1)
    assert L.best_held("high", 16) == (torch.float32, 2 if tiles else 1)
    assert L.best_held("highest", L.SPLIT_FROM_ROWS - 1) == (torch.float32, 1)
    if level != "plain":
        assert L.best_held("medium", 1).dtype is (torch.bfloat16 if faster else torch.float32)
