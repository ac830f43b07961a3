# SPDX-License-Identifier: Apache-2.0
"""`relative_scores` against float64, at every level, for index tables of every kind."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.relative_scores import plain_relative_scores, relative_scores

BOUND = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def oracle(query, key, query_table, query_index, key_table, key_index, query_scale=1.0, key_scale=1.0):
    scores = torch.zeros(*query.shape[:3], key.shape[2], dtype=torch.float64)
    if query_table is not None:
        rows = query_table.double()[:, query_index.long()]  # [H, L, S, D]
        scores += query_scale * torch.einsum("bhid,hijd->bhij", query.double(), rows)
    if key_table is not None:
        rows = key_table.double()[:, key_index.long()]
        scores += key_scale * torch.einsum("bhjd,hijd->bhij", key.double(), rows)
    return scores


def error(y, expected):
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def size_of_products(query, key, query_table, query_index, key_table, key_index, query_scale, key_scale):
    """The norm that sums of products have where they do not happen to cancel: what roundings of operands are relative to."""
    tables = [None if table is None else table.double() ** 2 for table in (query_table, key_table)]
    squares = query.double() ** 2, key.double() ** 2, tables[0], query_index, tables[1], key_index
    return oracle(*squares, query_scale**2, key_scale**2).sqrt().norm()


def operands(batch, heads, queries, keys, depth, positions, kind="random", seed=0):
    torch.manual_seed(seed)
    query, key = torch.randn(batch, heads, queries, depth), torch.randn(batch, heads, keys, depth)
    tables = torch.randn(2, heads, positions, depth)
    if kind == "random":
        index = torch.randint(0, positions, (2, queries, keys))
    elif kind == "one":
        index = torch.full((2, queries, keys), positions - 1)
    else:
        distance = torch.arange(queries)[:, None] - torch.arange(keys) + positions // 2
        index = torch.stack((distance, distance - 1)).clamp(0, positions - 1)
    first, second = index.to(torch.int32)
    return query, key, tables[0], first, tables[1], second


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(0, 3), heads=st.integers(1, 3), queries=st.sampled_from([0, 1, 5, 12, 13, 31, 50]),
    keys=st.sampled_from([0, 1, 7, 16, 33, 50]), depth=st.sampled_from([1, 8, 15, 64]),
    positions=st.sampled_from([1, 31, 32, 90]),
    kind=st.sampled_from(["random", "one", "distance"]), which=st.sampled_from(["both", "query", "key"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), given_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_float64(level, batch, heads, queries, keys, depth, positions, kind, which, dtype, given_dtype, seed):
    query, key, *tables = operands(batch, heads, queries, keys, depth, positions, kind, seed)
    query, key = query.to(given_dtype), key.to(given_dtype)
    tables[:2] = [None, None] if which == "key" else [tables[0].to(given_dtype), tables[1]]
    tables[2:] = [None, None] if which == "query" else [tables[2].to(given_dtype), tables[3]]
    scales = {"query_scale": 0.3, "key_scale": -2.0}
    expected = oracle(query, key, *tables, **scales)
    for function in (relative_scores, plain_relative_scores):
        got = function(query, key, *tables, dtype=dtype, **scales)
        assert (got.dtype, got.shape) == (torch.float32, expected.shape)
        size = max(expected.norm(), size_of_products(query, key, *tables, **scales))
        assert (got - expected).norm() <= BOUND[dtype] * 2 * size


@pytest.mark.parametrize("dtype", BOUND)
def test_strides_and_threads(level, dtype):
    query, key, *tables = operands(3, 2, 40, 40, 32, 70, "distance")
    expected = relative_scores(query, key, *tables, dtype=dtype)
    across = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key)]
    across[1] = across[1].transpose(2, 3).contiguous().transpose(2, 3)
    turned = [tables[0].transpose(0, 1).contiguous().transpose(0, 1), tables[1].T.contiguous().T, *tables[2:]]
    before = torch.get_num_threads()
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            assert torch.equal(relative_scores(*across, *turned, dtype=dtype), expected)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_finite_stays_where_it_is_looked_up(level):
    query, key, *tables = operands(1, 1, 20, 20, 16, 64, "distance")
    tables[0][0, 40], query[0, 0, 3] = torch.nan, torch.inf
    y = relative_scores(query, key, *tables)[0, 0]
    hit = tables[1] == 40
    hit[3] = True
    assert torch.isnan(y[hit] - y[hit]).all() and torch.isfinite(y[~hit]).all()


def test_what_does_not_fit_is_refused():
    query, key, *tables = operands(1, 2, 4, 6, 8, 10)
    with pytest.raises(UsageError, match="query_table"):
        relative_scores(query, key, None, None, None, None)
    with pytest.raises(UsageError):
        relative_scores(query.double(), key, *tables)
    if native.available():
        beyond = tables[1].clone()
        for wrong in (10, -1):
            beyond[2, 3] = wrong
            with pytest.raises(RuntimeError, match="beyond the table"):
                relative_scores(query, key, tables[0], beyond, *tables[2:])
        with pytest.raises(RuntimeError, match="int32"):
            relative_scores(query, key, tables[0], tables[1].long(), *tables[2:])
        with pytest.raises(RuntimeError, match="heads, positions, depth"):
            relative_scores(query, key, tables[0][:1], *tables[1:])


@pytest.mark.skipif(not native.available(), reason="there is no operator to check")
def test_the_operator_keeps_its_contract():
    query, key, *tables = operands(2, 2, 5, 7, 8, 10)
    given = query, key, tables[0], tables[1], 0.5, tables[2], tables[3], 1.0, False
    torch.library.opcheck(torch.ops.slipstream.relative_scores.default, given, test_utils=("test_schema", "test_faketensor"))
