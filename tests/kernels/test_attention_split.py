# SPDX-License-Identifier: Apache-2.0
"""`attention` of float32 in parts of bfloat16: all forms that the other kernels have, as accurate as promised."""

import math

import pytest
import torch
import torch.nn.functional as F
from attention_oracle import error, oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.attention import attention

TILES = ("amx", native.EMULATED)
BOUND = {3: 2e-6, 2: 2e-5}
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-39, -1.2e-38, 1.0, 2**-130]
PARTS = st.sampled_from([2, 3])

by_level = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@by_level
@given(
    batch=st.integers(1, 2), groups=st.integers(1, 2), share=st.integers(1, 2), queries=st.sampled_from([1, 15, 16, 33, 70]),
    keys=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 300])), depth=st.sampled_from([1, 8, 31, 32, 65]),
    value_depth=st.sampled_from([1, 16, 33, 64]), parts=PARTS, softcap=st.sampled_from([None, None, 2.0]),
    window=st.sampled_from([None, None, 1, 20]), seed=st.integers(0, 999),
    masked=st.sampled_from(["none", "bool", "float32", "bfloat16", "causal", "both"]),
)  # fmt: skip
def test_equals_float64(
    level, batch, groups, share, queries, keys, depth, value_depth, parts, softcap, window, seed, masked
):  # fmt: skip
    torch.manual_seed(seed)
    q = torch.randn(batch, groups * share, queries, depth)
    k, v = torch.randn(batch, groups, keys, depth), torch.randn(batch, groups, keys, value_depth)
    mask = None
    if masked in ("bool", "both"):
        mask = torch.rand(batch, 1, queries, keys) > 0.3
    elif masked in ("float32", "bfloat16"):
        mask = torch.randn(1, groups * share, 1, keys).to(getattr(torch, masked)).float()
    form = {"causal": masked in ("causal", "both"), "softcap": softcap, "window": window}
    y = attention(q, k, v, mask, parts=parts, **form)
    assert y.dtype is torch.float32 and (y.transpose(1, 2).is_contiguous() or level == "plain")
    expected = oracle(q, k, v, mask, **form)
    assert y.shape == expected.shape
    # values that cancel leave less of the result than of its error
    assert (y - expected).norm() <= BOUND[parts] * oracle(q, k, v.abs(), mask, **form).norm()


@pytest.mark.parametrize(("queries", "keys", "depth"), [(40, 70, 64), (32, 300, 128), (33, 1100, 32)])
@pytest.mark.parametrize("positive", [False, True])
def test_three_parts_err_no_more_than_torchs_float32(level, queries, keys, depth, positive):
    torch.manual_seed(keys)
    q, k, v = torch.randn(1, 2, queries, depth), torch.randn(1, 2, keys, depth), torch.randn(1, 2, keys, 64)
    if positive:  # the sums grow with the keys, and with them what each addition loses
        v = v.abs()
    expected = oracle(q, k, v)
    if level in TILES:
        assert error(attention(q, k, v, parts=3), expected) <= error(F.scaled_dot_product_attention(q, k, v), expected)
    assert error(attention(q, k, v, parts=2), expected) <= 1e-5


def test_tiles_take_their_parts_from_16_queries_on():
    """Two parts err more than float32 does, which tells that they were multiplied."""
    if not native.available():
        pytest.skip("the levels are native")
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 1, 16, 64), torch.randn(1, 1, 40, 64), torch.randn(1, 1, 40, 64)
    with native.level(native.EMULATED):
        assert error(attention(q, k, v, parts=2), oracle(q, k, v)) > 2e-6
        assert torch.equal(attention(q[:, :, :15], k, v, parts=2), attention(q[:, :, :15], k, v))
    with native.level("baseline"):
        assert torch.equal(attention(q, k, v, parts=2), attention(q, k, v))


@by_level
@given(
    parts=PARTS, seed=st.integers(0, 999),
    places=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 19), st.integers(0, 39), st.sampled_from(SPECIAL)), min_size=1, max_size=5
    ),
)  # fmt: skip
def test_special_values_are_as_in_float32(level, parts, seed, places):
    """Infinities and NaN among queries, keys and values come out where the float32 kernel has them."""
    torch.manual_seed(seed)
    q, k, v = torch.randn(1, 1, 20, 40), torch.randn(1, 1, 150, 40), torch.randn(1, 1, 150, 40)
    for which, row, column, value in places:
        (q, k, v)[which][0, 0, row if which == 0 else 7 * row, column] = value
    y, wanted = attention(q, k, v, parts=parts), attention(q, k, v)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y[wanted.isinf()], wanted[wanted.isinf()])
    finite = wanted.isfinite()
    torch.testing.assert_close(y[finite], wanted[finite], rtol=2e-4, atol=2e-4)


def test_rows_without_keys_and_nan_stays_in_its_row(level):
    torch.manual_seed(2)
    q, k, v = torch.randn(1, 1, 30, 16), torch.randn(1, 1, 140, 16), torch.randn(1, 1, 140, 16)
    mask = torch.ones(1, 1, 30, 140, dtype=torch.bool)
    mask[0, 0, 4] = False
    mask[0, 0, 5, :130] = False  # sees nothing in the whole first block
    y = attention(q, k, v, mask, parts=3)
    assert (y[0, 0, 4] == 0).all()
    assert error(y, oracle(q, k, v, mask)) <= BOUND[3]
    assert attention(q, k, v, mask, parts=3, unseen=math.nan)[0, 0, 4].isnan().all()
    q[0, 0, 7, 3] = math.nan
    y = attention(q, k, v, parts=3)
    assert y[0, 0, 7].isnan().all()
    assert y[0, 0, [*range(7), *range(8, 30)]].isfinite().all()


@pytest.mark.parametrize("parts", [2, 3])
def test_strides_and_bfloat16_operands(level, parts):
    torch.manual_seed(3)
    packed = torch.randn(2, 19, 3, 4, 16)  # as one projection of queries, keys and values leaves them
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    assert error(attention(q, k, v, parts=parts), oracle(q, k, v)) <= BOUND[parts]
    swapped = torch.randn(2, 4, 16, 19).transpose(2, 3)
    assert error(attention(swapped, k, swapped, parts=parts), oracle(swapped, k, swapped)) <= BOUND[parts]
    one, low = k[:, :, :1].expand(2, 4, 19, 16), v.bfloat16()
    y = attention(q, one, low, dtype=torch.float32, parts=parts)
    assert error(y, oracle(q, one, low)) <= BOUND[parts]
    assert attention(q, k, v, out_dtype=torch.bfloat16, parts=parts).dtype is torch.bfloat16


@pytest.mark.parametrize("empty", range(6))
def test_empty(level, empty):
    sizes = [1, 1, 20, 3, 8, 8]
    sizes[empty] = 0
    batch, heads, queries, keys, depth, value_depth = sizes
    q, k = torch.randn(batch, max(heads, 1), queries, depth)[:, :heads], torch.randn(batch, 1, keys, depth)
    v = torch.randn(batch, 1, keys, value_depth)
    if level == "plain" and not heads:
        pytest.skip("torch repeats no keys for no heads")
    y = attention(q, k, v, parts=3)
    assert y.shape == (batch, heads, queries, value_depth)
    assert keys or (y == 0).all()
    if not depth:  # all scores are 0
        torch.testing.assert_close(y, v.mean(2, keepdim=True).expand_as(y))


@pytest.mark.parametrize("causal", [False, True])
def test_neither_threads_nor_neighbours_change_a_row(level, causal):
    if level == "plain":
        pytest.skip("torch's own matmul does not promise this")
    torch.manual_seed(4)
    q, k, v = torch.randn(1, 1, 150, 32), torch.randn(1, 1, 264, 32), torch.randn(1, 1, 264, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attention(q, k, v, causal=causal, parts=3)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(attention(q, k, v, causal=causal, parts=3), alone)
    finally:
        torch.set_num_threads(before)
    q[0, 0, 17, 7] = math.inf
    others = [row for row in range(150) if row != 17]
    assert torch.equal(attention(q, k, v, causal=causal, parts=3)[:, :, others], alone[:, :, others])


def test_bad_parts_are_named():
    q = torch.randn(1, 1, 20, 8)
    with pytest.raises(UsageError, match="parts 4"):
        attention(q, q, q, parts=4)
    with pytest.raises(UsageError, match="parts 3"):
        attention(q, q, q, dtype=torch.bfloat16, parts=3)
    if native.available():
        with pytest.raises(RuntimeError, match="parts"):
            torch.ops.slipstream.attention(q, q, q, None, False, 1.0, True, False, 0.0, 0, 0.0, 2)


@pytest.mark.skipif(not native.available(), reason="the operator is native")
def test_the_fake_takes_parts():
    with FakeTensorMode() as mode:
        q = mode.from_tensor(torch.randn(1, 2, 20, 8))
        y = torch.ops.slipstream.attention(q, q, q, None, False, 1.0, False, False, 0.0, 0, 0.0, 3)
    assert y.shape == (1, 2, 20, 8)
