# SPDX-License-Identifier: Apache-2.0
"""`gated_pointwise` gives the bits of torch's product and `linear` one after the other, at every level."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import linear as L
from slipstream.kernels.channels_last import gated_pointwise as G
from slipstream.kernels.channels_last.inverted_residual import Pointwise
from slipstream.kernels.post_op import POST_OPS

DTYPES = [torch.float32, torch.bfloat16]
dtypes = st.sampled_from(DTYPES)


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def pointwise(ins, outs, dtype=torch.float32, post_op="none", out=torch.float32, bias=True):
    return Pointwise(L.pack(torch.randn(outs, ins) / ins**0.5, dtype=dtype), torch.randn(outs) if bias else None, post_op, out)


def same_bits(level, got, wanted):
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    if level == "plain":  # torch's own products do not promise bits
        assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-2, equal_nan=True)
    else:
        assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(0, 4), ins=st.integers(1, 90), outs=st.integers(1, 70), height=st.integers(1, 12),
    width=st.integers(1, 9), kinds=st.tuples(dtypes, dtypes, dtypes, dtypes), post_op=st.sampled_from(POST_OPS),
    odd=st.sampled_from(["", "nan", "inf"]),
    extras=st.tuples(st.booleans(), st.booleans(), st.booleans()), seed=st.integers(0, 999),
)  # fmt: skip
def test_bits_of_the_two_in_turn(level, batch, ins, outs, height, width, kinds, post_op, odd, extras, seed):
    torch.manual_seed(seed)
    x_dtype, gate_dtype, w_dtype, out = kinds
    bias, with_residual, contiguous = extras
    x = torch.randn(batch, ins, height, width).to(x_dtype)
    x = x if contiguous else last(x)
    gate = torch.rand(batch, ins, 1, 1).to(gate_dtype)
    if odd and gate.numel():
        gate[0, 0] = float(odd)
    stage = pointwise(ins, outs, w_dtype, post_op, out, bias)
    residual = torch.randn(batch, outs, height, width) if with_residual else None
    got = G.gated_pointwise(x, gate, stage, residual=residual)
    assert got.is_contiguous(memory_format=torch.channels_last)
    same_bits(level, got, G.plain_gated_pointwise(last(x), gate, stage, residual=residual))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("images", "side", "ins", "outs"), [(3, 56, 144, 24), (16, 7, 672, 192), (1, 40, 30, 200)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_images_cut_into_blocks(level, dtype, images, side, ins, outs, threads):
    torch.manual_seed(0)
    x, gate = last(torch.randn(images, ins, side, side).to(dtype)), torch.rand(images, ins, 1, 1).to(dtype)
    stage, residual = pointwise(ins, outs, dtype, "relu", dtype), last(torch.randn(images, outs, side, side).to(dtype))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = G.gated_pointwise(x, gate, stage, residual=residual)
        same_bits(level, got, G.plain_gated_pointwise(x, gate, stage, residual=residual))
    finally:
        torch.set_num_threads(before)


def test_what_is_refused():
    x, gate = torch.randn(2, 8, 3, 3), torch.rand(2, 8, 1, 1)
    gates = [(x, gate[:1]), (x, gate[:, :7]), (x, gate[..., 0]), (x, gate.double())]
    for bad_x, bad_gate in ((x[0], gate), (x[:, :7], gate), (x.double(), gate), *gates):
        with pytest.raises(UsageError):
            G.gated_pointwise(bad_x, bad_gate, pointwise(8, 4))
    with pytest.raises(UsageError, match="parts"):
        G.gated_pointwise(x, gate, Pointwise(L.pack(torch.randn(4, 8), dtype=torch.float32, parts=2)))
    with pytest.raises(RuntimeError, match="requires a gradient"):
        G.gated_pointwise(x.requires_grad_(), gate, pointwise(8, 4))
