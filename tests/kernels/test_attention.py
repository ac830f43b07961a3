# SPDX-License-Identifier: Apache-2.0
"""`attention` is softmax(scale · Q Kᵀ + mask) V: any shape, strides, mask, grouping and level, within its docstring's bound."""

import math

import pytest
import torch
from attention_oracle import BOUND, DTYPES, error, oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.attention import attention


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2), groups=st.integers(1, 2), share=st.integers(1, 3),
    queries=st.integers(1, 40) | st.sampled_from([48, 61]),
    keys=st.integers(1, 70), depth=st.sampled_from([1, 8, 31, 32, 64, 65]), value_depth=st.sampled_from([1, 16, 33, 64]),
    dtype=st.sampled_from(DTYPES), in_dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999),
    masked=st.sampled_from(["none", "bool", "float32", "bfloat16", "causal", "both"]),
)  # fmt: skip
def test_equals_float64(level, batch, groups, share, queries, keys, depth, value_depth, dtype, in_dtype, seed, masked):
    torch.manual_seed(seed)
    q = torch.randn(batch, groups * share, queries, depth).to(in_dtype)
    k, v = torch.randn(batch, groups, keys, depth).to(in_dtype), torch.randn(batch, groups, keys, value_depth).to(in_dtype)
    mask = None
    if masked in ("bool", "both"):
        mask = torch.rand(batch, 1, queries, keys) > 0.3
        mask[..., 0] = True
    elif masked in ("float32", "bfloat16"):
        mask = torch.randn(1, groups * share, 1, keys).to(getattr(torch, masked))
    causal = masked in ("causal", "both")
    y = attention(q, k, v, mask, causal=causal, dtype=dtype, out_dtype=torch.float32)
    expected = oracle(q, k, v, mask, causal=causal)
    assert y.shape == expected.shape
    assert error(y, expected) <= BOUND[dtype] * (2 if level == "plain" else 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_blocks_of_keys(level, dtype):
    if level == native.EMULATED:
        pytest.skip("the vector kernel serves so few rows, and is tested at the others")
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 13, 32), torch.randn(1, 1, 2500, 32) * 3, torch.randn(1, 1, 2500, 48)
    mask = torch.rand(1, 1, 13, 2500) > 0.1
    mask[..., 0] = True
    mask[0, 0, 3, :1100] = False  # a row that sees nothing in the whole first block
    for causal in (False, True):
        y = attention(q, k, v, mask, causal=causal, dtype=dtype)
        assert error(y, oracle(q, k, v, mask, causal=causal)) <= BOUND[dtype] * 2


def test_strides_and_layout(level):
    torch.manual_seed(1)
    packed = torch.randn(2, 9, 3, 4, 16)  # as one projection of queries, keys and values leaves them
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    y = attention(q, k, v)
    assert error(y, oracle(q, k, v)) <= 2e-6
    assert y.transpose(1, 2).is_contiguous()
    swapped = torch.randn(2, 4, 16, 9).transpose(2, 3)
    assert error(attention(swapped, k, v), oracle(swapped, k, v)) <= 2e-6


def test_rows_without_keys_are_zero_and_nan_stays_in_its_row(level):
    torch.manual_seed(2)
    q, k, v = torch.randn(1, 1, 30, 16), torch.randn(1, 1, 20, 16), torch.randn(1, 1, 20, 16)
    mask = torch.ones(1, 1, 30, 20, dtype=torch.bool)
    mask[0, 0, 4] = False
    y = attention(q, k, v, mask)
    assert (y[0, 0, 4] == 0).all()
    q[0, 0, 7, 3] = float("nan")
    y = attention(q, k, v)
    assert torch.isnan(y[0, 0, 7]).all()
    assert torch.isfinite(y[0, 0, [*range(7), *range(8, 30)]]).all()


@pytest.mark.parametrize("size", [(0, 1, 3, 3), (1, 0, 3, 3), (1, 1, 0, 3)])
def test_empty(level, size):
    batch, heads, queries, keys = size
    y = attention(torch.randn(batch, max(heads, 1), queries, 8)[:, :heads], torch.randn(batch, 1, keys, 8),
                  torch.randn(batch, 1, keys, 8))  # fmt: skip
    assert y.shape == (batch, heads, queries, 8)


def test_threads_do_not_change_bits(level):
    torch.manual_seed(3)
    q, k, v = torch.randn(1, 1, 50, 32), torch.randn(1, 1, 64, 32), torch.randn(1, 1, 64, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attention(q, k, v, dtype=torch.bfloat16)
        torch.set_num_threads(2)
        together = attention(q, k, v, dtype=torch.bfloat16)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together) or level == "plain"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_dtype", DTYPES)
def test_queries_are_read_in_place_or_copied(level, dtype, in_dtype):
    """Rows one after the other, as a projection leaves them, at strides that are multiples of 2048 bytes, and of odd depth; the
    results are the same numbers, wherever the other heads lie."""
    torch.manual_seed(4)
    for heads, length, depth in ((3, 49, 32), (32, 26, 64), (2, 77, 31), (4, 50, 64)):
        whole = torch.randn(2, length, 3, heads, depth).to(in_dtype)
        q, k, v = (whole[:, :, i].transpose(1, 2) for i in range(3))
        y = attention(q, k, v, dtype=dtype)
        assert error(y, oracle(q, k, v)) <= BOUND[torch.bfloat16 if torch.bfloat16 in (dtype, in_dtype) else dtype]
        dense = attention(q.contiguous(), k.contiguous(), v.contiguous(), dtype=dtype)
        assert torch.equal(y, dense) or level == "plain"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
def test_any_scale(level, dtype, scale):
    torch.manual_seed(5)
    q, k, v = torch.randn(1, 2, 20, 16), torch.randn(1, 2, 37, 16), torch.randn(1, 2, 37, 16)
    for causal in (False, True):
        if causal and scale <= 0 and level == "plain":
            continue  # torch's kernel scales the infinities, too, that hide keys
        y = attention(q, k, v, causal=causal, scale=scale, dtype=dtype)
        assert error(y, oracle(q, k, v, causal=causal, scale=scale)) <= BOUND[dtype] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("huge", [1e9, 1e17])
def test_huge_scores(level, dtype, huge):
    """One key takes all of a row, by scores whose products with the logarithm's base are no longer exact."""
    torch.manual_seed(3)
    q = torch.stack([torch.randperm(32) + 1.0 for _ in range(64)])[None, None] * huge
    k, v = torch.eye(32)[None, None], torch.randn(1, 1, 32, 20)
    assert error(attention(q, k, v, dtype=dtype), v[:, :, q[0, 0].argmax(-1)].double()) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_of_any_number_of_keys(level, dtype):
    """The last keys of a mask are fewer than a register has lanes, and what lies behind them is not read as theirs."""
    torch.manual_seed(6)
    for keys in (1, 3, 17, 49):
        q, k, v = torch.randn(2, 2, 13, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
        behind = torch.full((2, 1, 13, keys + 16), math.nan)
        behind[..., :keys] = torch.randn(2, 1, 13, keys)
        for mask in (behind[..., :keys], behind.bfloat16()[..., :keys], (behind > -1)[..., :keys]):
            assert error(attention(q, k, v, mask, dtype=dtype), oracle(q, k, v, mask)) <= BOUND[dtype] * 2


def test_bad_input_names_the_argument():
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(UsageError, match=r"key torch\.float64"):
        attention(q, q.double(), q)
    with pytest.raises(RuntimeError, match="gradient"):
        attention(q.requires_grad_(), q, q)


@pytest.mark.skipif(not native.available(), reason="the checks are native")
def test_native_checks_its_operands():
    q = torch.randn(1, 3, 4, 8)
    with pytest.raises(RuntimeError, match="multiple"):
        attention(q, q[:, :2], q[:, :2])
    with pytest.raises(RuntimeError, match="depth"):
        attention(q, q[..., :4], q)
    with pytest.raises(RuntimeError, match="query"):
        attention(q[0], q, q)
