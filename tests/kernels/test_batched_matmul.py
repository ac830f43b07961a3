# SPDX-License-Identifier: Apache-2.0
"""`batched_matmul` is alpha · A B + addend: any shape, strides, broadcasting and level, within its docstring's bound."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.batched_matmul import batched_matmul, plain_batched_matmul

DTYPES = [torch.float32, torch.bfloat16]
BOUND = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def error(y, expected):
    """Relative, in the norm."""
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def laid(kind, *sizes):
    """A random tensor of these sizes whose last two axes lie by rows, by columns, with gaps, or by neither."""
    *batch, rows, columns = sizes
    if kind == "rows":
        return torch.randn(*sizes)
    if kind == "columns":
        return torch.randn(*batch, columns, rows).transpose(-1, -2)
    if kind == "gaps":
        return torch.randn(rows, *batch, columns + 3).movedim(0, -2)[..., 1 : columns + 1]
    return torch.randn(*batch, rows, 2 * columns)[..., ::2]


LAYOUTS = st.sampled_from(["rows", "columns", "gaps", "neither"])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3), m=st.integers(1, 40), n=st.sampled_from([1, 5, 16, 31, 32, 33, 64, 70]),
    k=st.sampled_from([1, 2, 7, 16, 31, 32, 33, 64, 100]), of_a=LAYOUTS, of_b=LAYOUTS, a_dtype=st.sampled_from(DTYPES),
    b_dtype=st.sampled_from(DTYPES), dtype=st.sampled_from(DTYPES), out=st.sampled_from(DTYPES),
    added=st.sampled_from(["none", "whole", "row", "column", "gaps"]), alpha=st.sampled_from([1.0, 0.125, -3.0]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_float64(level, batch, m, n, k, of_a, of_b, a_dtype, b_dtype, dtype, out, added, alpha, seed):
    torch.manual_seed(seed)
    a, b = laid(of_a, batch, m, k), laid(of_b, batch, k, n)
    a, b = (x if kind is torch.float32 else x.to(kind) for x, kind in ((a, a_dtype), (b, b_dtype)))
    addend = {
        "none": None, "whole": torch.randn(batch, m, n), "row": torch.randn(1, 1, n), "column": torch.randn(m, 1),
        "gaps": torch.randn(batch, m, n + 1)[..., 1:].to(a_dtype),
    }[added]  # fmt: skip
    y = batched_matmul(a, b, addend=addend, alpha=alpha, dtype=dtype, out_dtype=out)
    more = 0 if addend is None else addend.double()
    assert y.shape == (batch, m, n) and y.dtype is out and y.is_contiguous()
    # b is rounded to what is multiplied, and a is or stays as it is, by level; what is left is the sums' error
    ways = [alpha * (left.double() @ b.to(dtype).double()) + more for left in (a, a.to(dtype))]
    scale = (alpha * (a.double().abs() @ b.double().abs())).abs() + torch.as_tensor(more).abs()  # sums may cancel
    assert min(((y.double() - way) / scale.clamp_min(1e-30)).norm() / (m * n * batch) ** 0.5 for way in ways) <= BOUND[out]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_of_the_docstring(level, dtype):
    torch.manual_seed(4)
    a, b = torch.randn(2, 30, 200), torch.randn(2, 200, 50)
    assert error(batched_matmul(a, b, dtype=dtype), a.double() @ b.double()) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_broadcast(level, dtype):
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 5, 9).to(dtype).float(), torch.randn(3, 9, 4).to(dtype).float()
    for first, second in ((a, b), (b.transpose(1, 2), b[1]), (a[0, 0], b), (a.expand(2, 3, 5, 9), b[0])):
        y = batched_matmul(first, second, dtype=dtype, out_dtype=torch.float32)
        assert error(y, first.to(dtype).double() @ second.to(dtype).double()) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [False, True])
def test_many_panels_and_a_matrix_that_the_batch_shares(level, dtype, turned):
    """More columns than are packed at a time; rows of the whole batch at one stride, and not."""
    torch.manual_seed(1)
    m, k, n = (20, 300, 330) if level == native.EMULATED else (30, 700, 700)
    b = torch.randn(n, k).to(dtype).t() if turned else torch.randn(k, n).to(dtype)
    a = torch.randn(3, m, k).to(dtype)
    for rows in (a, a.transpose(0, 1), a[:, ::2]):
        y = batched_matmul(rows, b.expand(rows.shape[0], k, n), out_dtype=torch.float32)
        half = level == native.FLOAT16 and dtype is torch.bfloat16
        assert error(y, rows.double() @ b.double()) <= (1.2e-3 if half else 1e-6)


def test_a_row_depends_on_itself_alone(level):
    torch.manual_seed(2)
    a, b = torch.randn(2, 30, 40).bfloat16(), torch.randn(2, 40, 70).bfloat16()
    y = batched_matmul(a, b)
    assert torch.equal(batched_matmul(a[1:], b[1:]), y[1:]) or level == "plain"
    a[0, 3, 5] = float("nan")
    a[1, 4, 6] = float("inf")
    changed = batched_matmul(a, b)
    assert changed[0, 3].isnan().all() and not changed[1, 4].isfinite().any()
    rest = torch.ones(2, 30, dtype=torch.bool)
    rest[0, 3] = rest[1, 4] = False
    assert torch.equal(changed[rest], y[rest])


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty(level, sizes):
    batch, m, k, n = sizes
    addend = torch.randn(batch, m, n)
    for dtype in DTYPES:
        y = batched_matmul(torch.randn(batch, m, k), torch.randn(batch, k, n), addend=addend, dtype=dtype)
        assert y.shape == (batch, m, n)
        assert k or torch.equal(y, addend)


@pytest.mark.parametrize("shape", [(1, 200, 64, 300), (1, 3, 512, 900), (5, 64, 64, 64)])
@pytest.mark.parametrize("turned", [False, True])
def test_threads_do_not_change_bits(level, shape, turned):
    torch.manual_seed(3)
    batch, m, k, n = shape
    a = laid("columns" if turned else "rows", batch, m, k)
    b = laid("columns" if turned else "rows", batch, k, n)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = batched_matmul(a, b, dtype=torch.bfloat16)
        torch.set_num_threads(2)
        together = batched_matmul(a, b, dtype=torch.bfloat16)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together) or level == "plain"


def test_by_default_bfloat16_where_either_is():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert batched_matmul(a, b).dtype is torch.float32
    assert batched_matmul(a, b.bfloat16()).dtype is torch.bfloat16
    assert torch.equal(batched_matmul(a.bfloat16(), b), plain_batched_matmul(a.bfloat16(), b)) or native.available()


def test_bad_input_names_the_argument():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    with pytest.raises(UsageError, match=r"b torch\.float64"):
        batched_matmul(a, b.double())
    with pytest.raises(UsageError, match=r"b of shape.*rows are not the 4 columns"):
        batched_matmul(a, b.transpose(1, 2))
    with pytest.raises(UsageError, match=r"a of shape.*not a matrix"):
        batched_matmul(a[0, 0], b)
    with pytest.raises(UsageError, match=r"b of shape.*broadcast"):
        batched_matmul(a, torch.randn(3, 4, 5))
    with pytest.raises(UsageError, match="addend of shape"):
        batched_matmul(a, b, addend=torch.randn(2, 4, 5))
    with pytest.raises(UsageError, match="out_dtype"):
        batched_matmul(a, b, out_dtype=torch.float16)
    with pytest.raises(RuntimeError, match="gradient"):
        batched_matmul(a.requires_grad_(), b)


@pytest.mark.skipif(not native.available(), reason="the fake is the native operator's")
def test_dynamo_sees_it():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    run = torch.compile(
        lambda a, b: torch.ops.slipstream.batched_matmul.default(a, b.transpose(1, 2), None, 0.5, False, False) + 1,
        backend="aot_eager", fullgraph=True,
    )  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(run(a, b), 0.5 * a @ b.transpose(1, 2) + 1, atol=1e-5)
