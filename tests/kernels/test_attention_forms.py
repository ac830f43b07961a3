# SPDX-License-Identifier: Apache-2.0
"""`attention`'s forms beside the plain one (softcap, window, biases, hidden rows), and the sizes at which its kernels change
their ways: strips of 32 rows, groups of 128, blocks of 256 and 1024 keys.
"""

import math

import pytest
import torch
from attention_oracle import BOUND, DTYPES, error, oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.attention import attention, plain_attention


def operands(queries, keys, depth, *, batch=1, heads=2, groups=1, value_depth=None, seed=0):
    torch.manual_seed(seed)
    q, k = torch.randn(batch, heads, queries, depth), torch.randn(batch, groups, keys, depth)
    return q, k, torch.randn(batch, groups, keys, value_depth or depth)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    queries=st.sampled_from([1, 5, 15, 16, 17, 32, 33, 49, 70]), keys=st.sampled_from([1, 16, 31, 33, 70, 260, 300]),
    depth=st.sampled_from([8, 32, 40]), value_depth=st.sampled_from([8, 33]), groups=st.integers(1, 2), causal=st.booleans(),
    window=st.sampled_from([None, 1, 3, 33, 64, 1000]), softcap=st.sampled_from([None, 0.7, 20.0]),
    masked=st.sampled_from(["none", "bool", "float32"]), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999),
)  # fmt: skip
def test_every_form_equals_float64(
    level, queries, keys, depth, value_depth, groups, causal, window, softcap, masked, dtype, seed
):
    q, k, v = operands(queries, keys, depth, heads=2, groups=groups, value_depth=value_depth, seed=seed)
    mask = None
    if masked != "none":
        mask = torch.randn(1, 1, queries, keys)
        mask = mask > -1 if masked == "bool" else mask
    forms = {"causal": causal, "window": window, "softcap": softcap}
    expected = oracle(q, k, v, mask, **forms)
    bound = BOUND[dtype] * (2 if level == "plain" else 1)
    assert error(attention(q, k, v, mask, dtype=dtype, **forms), expected) <= bound
    assert error(plain_attention(q, k, v, mask, dtype=dtype, **forms), expected) <= BOUND[dtype] * 2


@pytest.mark.parametrize("depth", [32, 64, 80, 128, 256])
def test_head_sizes_strips_and_blocks(level, depth):
    """150 rows are a group of strips and a short one; 300 (600) keys two (three) blocks of the tile kernel, the last short."""
    queries, keys = (150, 300) if depth <= 64 else (50, 600)
    q, k, v = operands(queries, keys, depth, heads=1)
    for forms in ({}, {"causal": True}, {"causal": True, "window": 40}):
        y = attention(q, k * 3, v, dtype=torch.bfloat16, **forms)
        assert error(y, oracle(q, k * 3, v, **forms)) <= BOUND[torch.bfloat16] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_larger_scores_come_late(level, dtype):
    """Each block of keys holds larger scores than the one before, so that sums are rescaled in every one, or smaller."""
    q, k, v = operands(40, 1300 if level != native.EMULATED else 700, 16, heads=1)
    growing = torch.arange(k.shape[2]) // 6 / 16.0  # exact in bfloat16, to which the twin rounds a mask
    for bias in (growing, -growing):
        y = attention(q, k, v, bias.expand(40, -1), dtype=dtype)
        assert error(y, oracle(q, k, v, bias)) <= BOUND[dtype] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_alibi_is_a_mask_of_stride_zero(level, dtype):
    """One bias a head, the same for the batch and for all queries (row-wise softmax does not see the query's own term)."""
    q, k, v = operands(33, 70, 16, batch=3, heads=4, groups=2)
    slopes = torch.tensor([2.0 ** -(2 * head + 2) for head in range(4)])
    bias = slopes[:, None, None] * torch.arange(70.0)
    expected = oracle(q, k, v, bias, causal=True)
    for mask in (bias, bias[None].expand(3, 4, 33, 70), bias.expand(4, 33, 70).contiguous()):
        assert error(attention(q, k, v, mask, causal=True, dtype=dtype), expected) <= BOUND[dtype] * 2
    sheared = bias.expand(4, 33, 70).contiguous().transpose(1, 2).contiguous().transpose(1, 2)  # keys are not neighbours
    assert error(attention(q, k, v, sheared, causal=True, dtype=dtype), expected) <= BOUND[dtype] * 2


@pytest.mark.parametrize("queries", [7, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_see_nothing(level, queries, dtype):
    """Hidden by minus infinity a row is zero; by the least finite number, as models do, it is the values' mean: as in torch."""
    q, k, v = operands(queries, 300, 16)
    for hidden in (torch.zeros(queries, 300, dtype=torch.bool), torch.full((queries, 300), -math.inf)):
        hidden[2:] = True if hidden.dtype is torch.bool else 0.0
        y = attention(q, k, v, hidden, dtype=dtype)
        assert (y[:, :, :2] == 0).all()
        assert error(y, oracle(q, k, v, hidden)) <= BOUND[dtype] * 2
    least = torch.zeros(queries, 300)
    least[:2] = torch.finfo(torch.float32).min
    y = attention(q, k, v, least, dtype=dtype)
    assert error(y[:, :, :2], v.double().mean(2, keepdim=True).expand(1, 2, 2, 16)) <= BOUND[dtype] * 2
    assert (attention(q, k[:, :, :3], v[:, :, :3], window=1, dtype=dtype)[:, :, 3:] == 0).all()  # beyond the last key


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_in_its_row_or_column(level, dtype):
    q, k, v = operands(40, 300, 16)
    q[:, :, 20] = math.nan
    q[:, :, 30, 0] = math.inf
    v[:, :, 290, 5] = math.nan
    y = attention(q, k, v, dtype=dtype)
    assert torch.isnan(y[:, :, [20, 30]]).all() and torch.isnan(y[..., 5]).all()
    rows, columns = [r for r in range(40) if r not in (20, 30)], [c for c in range(16) if c != 5]
    assert torch.isfinite(y[:, :, rows][..., columns]).all()
    assert error(y[:, :, rows][..., columns], oracle(q, k, v)[:, :, rows][..., columns]) <= BOUND[dtype] * 2
    if level != "plain":
        y = attention(q, k, v, causal=True, window=20, dtype=dtype)  # nobody sees key 290, and its block is left out
        assert torch.isfinite(y[:, :, rows]).all()


def test_threads_do_not_change_bits_of_any_row(level):
    if level == "plain":
        pytest.skip("the promise is the kernels'")
    q, k, v = operands(75, 300, 32, heads=2)
    q[:, :, 11] *= 30
    before = torch.get_num_threads()
    for forms in ({}, {"causal": True}, {"window": 30}, {"softcap": 5.0}):
        results = []
        try:
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                results.append(attention(q, k, v, dtype=torch.bfloat16, **forms))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(results[0], y) for y in results[1:])


def test_values_that_no_row_may_see_do_not_reach_it_whatever_the_threads(level):
    if level not in ("amx", native.EMULATED):
        pytest.skip("a promise of the tile kernel, whose strips lie at fixed rows")
    q, k, v = operands(75, 75, 32, heads=1)
    v[:, :, 40] = math.nan
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(attention(q, k, v, causal=True, dtype=torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(torch.isnan(results[0]), torch.isnan(y)) for y in results[1:])
    assert torch.isfinite(results[0][:, :, :32]).all() and torch.isnan(results[0][:, :, 40:]).all()


def test_bad_numbers_are_named():
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(UsageError, match=r"softcap 0: not a positive number; leave it out"):
        attention(q, q, q, softcap=0)
    with pytest.raises(UsageError, match=r"softcap nan"):
        attention(q, q, q, softcap=math.nan)
    with pytest.raises(UsageError, match=r"window 0: not a positive number of keys"):
        attention(q, q, q, window=0)


@pytest.mark.skipif(not native.available(), reason="needs the extension")
def test_tiles_begin_at_sixteen_rows():
    """The vector kernel of the emulated level multiplies in float32, its tiles in bfloat16: the error tells them apart."""
    with native.level(native.EMULATED):
        for queries, in_bfloat16 in ((15, False), (16, True)):
            q, k, v = operands(queries, 40, 32)
            assert (
                error(attention(q, k, v, dtype=torch.bfloat16, out_dtype=torch.float32), oracle(q, k, v)) > 1e-4
            ) == in_bfloat16
