# SPDX-License-Identifier: Apache-2.0
"""`concatenate` against float64, at every level: parts of every kind, bags of every size, numbers of every stride and width."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.concatenate import Kind, Part, concatenate, plain_concatenate

DTYPES = (torch.float32, torch.bfloat16)


def bag_of(part, row):
    index, offsets = part.numbers
    return index[offsets[row] : offsets[row + 1] if row + 1 < len(offsets) else None].long()


def oracle(parts, rows):
    """[rows, sum of C] in float64, one row of one part at a time."""
    made = []
    for part in parts:
        x, numbers = part.x.double(), part.numbers
        for row in range(rows):
            match part.kind:
                case Kind.ROWS:
                    made.append(x[row])
                case Kind.EMBEDDING:
                    made.append(x[numbers[0][row].long()])
                case Kind.PICKED:
                    made.append(x[row, numbers[0].long()])
                case _:
                    chosen = x[bag_of(part, row)]
                    divisor = max(1, len(chosen)) if part.kind is Kind.BAG_MEAN else 1
                    made.append(chosen.sum(0) / divisor)
    columns = [torch.stack(made[i * rows : (i + 1) * rows]) for i in range(len(parts))]
    return torch.cat(columns, dim=1)


def random_part(kind, rows, columns, dtype, wide, spread, generator):
    """A part whose source has rows to spare, gaps between them and between its numbers where ``spread``."""
    count = int(torch.randint(1, 30, (), generator=generator))
    height = rows if kind in (Kind.ROWS, Kind.PICKED) else count
    x = torch.randn(height, columns + 3, generator=generator).to(dtype)[:, :columns]
    x = x if spread else x.contiguous()
    if kind is Kind.ROWS:
        return Part(kind, x)
    if kind is Kind.PICKED:
        return Part(kind, x, (torch.randint(0, columns, (count,), generator=generator, dtype=torch.int32),))
    bags = kind is not Kind.EMBEDDING
    entries = int(torch.randint(0, 3 * rows + 1, (), generator=generator)) if bags else rows
    index = torch.randint(0, height, (entries, 2), generator=generator, dtype=torch.int64 if wide else torch.int32)
    index = index[:, 0] if spread else index[:, 0].contiguous()
    if not bags:
        return Part(kind, x, (index,))
    offsets = torch.randint(0, entries + 1, (rows,), generator=generator, dtype=index.dtype).sort().values
    offsets[0] = 0
    return Part(kind, x, (index, offsets))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(list(Kind)), min_size=1, max_size=6), rows=st.sampled_from([1, 2, 7, 40, 300]),
    columns=st.sampled_from([1, 5, 8, 16, 31, 64, 129, 256]), dtype=st.sampled_from(DTYPES), out=st.sampled_from(DTYPES),
    wide=st.booleans(), spread=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_float64(level, kinds, rows, columns, dtype, out, wide, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [random_part(kind, rows, columns + number, dtype, wide, spread, generator) for number, kind in enumerate(kinds)]
    expected = oracle(parts, rows)
    y = concatenate(parts, out_dtype=out)
    assert (y.dtype, y.shape, y.is_contiguous()) == (out, expected.shape, True)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if out is torch.float32 else {"atol": 1e-2, "rtol": 4e-3}
    torch.testing.assert_close(y.double(), expected, **tolerance)
    torch.testing.assert_close(y, plain_concatenate(parts, out_dtype=out))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit_and_float32_bags_are_as_torch_has_them(level, dtype):
    torch.manual_seed(0)
    tables = [torch.randn(500, 96).to(dtype) for _ in range(5)]
    numbers = [(torch.randint(0, 500, (4000,)), torch.arange(0, 4000, 4)) for _ in tables]
    parts = [Part(Kind.ROWS, torch.randn(1000, 40).to(dtype))]
    parts += [Part(Kind.BAG_SUM, table, pair) for table, pair in zip(tables, numbers, strict=True)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = concatenate(parts, out_dtype=dtype)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(concatenate(parts, out_dtype=dtype), alone)
    finally:
        torch.set_num_threads(before)
    if dtype is torch.float32:
        assert torch.equal(alone, plain_concatenate(parts, out_dtype=dtype))


def test_what_is_not_finite_stays_in_its_bag(level):
    table = torch.ones(4, 40)
    table[1, 3], table[2] = torch.nan, torch.inf
    bags = Part(Kind.BAG_SUM, table, (torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 1, 2, 3, 5])))
    y = concatenate([bags], out_dtype=torch.bfloat16)
    assert torch.isnan(y).nonzero().tolist() == [[1, 3]] and torch.isinf(y[2]).all()
    assert (y[0] == 1).all() and (y[4] == 0).all() and (y[3] == 2).all()


def test_nothing_is_put_together_of_nothing(level):
    none = torch.zeros(0, dtype=torch.long)
    for out in DTYPES:
        assert concatenate([Part(Kind.EMBEDDING, torch.randn(3, 5), (none,))], out_dtype=out).shape == (0, 5)
        assert concatenate([Part(Kind.BAG_SUM, torch.randn(3, 5), (none, none))], out_dtype=out).shape == (0, 5)
        assert concatenate([Part(Kind.ROWS, torch.randn(4, 0)), Part(Kind.ROWS, torch.ones(4, 2))], out_dtype=out).sum() == 8
        all_empty = concatenate([Part(Kind.BAG_MEAN, torch.randn(3, 5), (none, torch.zeros(4).long()))], out_dtype=out)
        assert torch.equal(all_empty, torch.zeros(4, 5, dtype=out))


def test_what_does_not_fit_is_refused():
    x, index = torch.randn(3, 5), torch.tensor([0, 2])
    with pytest.raises(UsageError, match="parts"):
        concatenate([], out_dtype=torch.float32)
    with pytest.raises(UsageError, match="x of part 0"):
        concatenate([Part(Kind.ROWS, x.double())], out_dtype=torch.float32)
    with pytest.raises(RuntimeError, match="gradient"):
        concatenate([Part(Kind.ROWS, x.clone().requires_grad_())], out_dtype=torch.float32)
    rows = Part(Kind.ROWS, x)
    refused = [[rows, Part(Kind.EMBEDDING, x, (index,))]]  # three rows and two
    refused += [[Part(Kind.EMBEDDING, x, (torch.tensor([0, wrong]),))] for wrong in (3, -1, 1 << 40)]
    refused += [[Part(Kind.PICKED, x, (torch.tensor([0, wrong], dtype=torch.int32),))] for wrong in (5, -1)]
    refused += [[Part(Kind.BAG_SUM, x, (index, torch.tensor(wrong)))] for wrong in ([1, 2], [0, 3], [0, -1])]
    for parts in refused if native.available() else []:
        with pytest.raises(RuntimeError):
            concatenate(parts, out_dtype=torch.float32)


@pytest.mark.skipif(not native.available(), reason="there is no operator to check")
def test_the_operator_keeps_its_contract():
    x, index, offsets = torch.randn(4, 8), torch.tensor([0, 2, 1, 1, 3]), torch.tensor([0, 0, 2, 5])
    picked = torch.tensor([7, 0, 0], dtype=torch.int32)
    given = [x] * 5, [0, 1, 2, 3, 4], [offsets.clamp(max=3), index, offsets, index, offsets, picked], True
    torch.library.opcheck(torch.ops.slipstream.concatenate.default, given, test_utils=("test_schema", "test_faketensor"))
