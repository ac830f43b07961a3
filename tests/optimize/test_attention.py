# SPDX-License-Identifier: Apache-2.0
"""The attention function answers as torch's for every form of call, and gives way where torch has more to say."""

import itertools
import math

import pytest
import torch
from judging import decisions, error
from torch import nn
from torch.nn import functional

from slipstream.kernels import native
from slipstream.optimize import attention
from slipstream.optimize.pieces.linear import onednn_has_bfloat16

LIMIT = {"float32": 1e-5, "bfloat16": 2e-2}
sdpa = attention._original
works = {"float32": native.available(), "bfloat16": native.available() or onednn_has_bfloat16()}


def qkv(batch=2, heads=4, length=9, keys=9, depth=16, groups=None, transposed=True):
    def one(h, n):
        x = torch.randn(batch, n, h, depth) if transposed else torch.randn(batch, h, n, depth)
        return x.transpose(1, 2) if transposed else x

    return one(heads, length), one(groups or heads, keys), one(groups or heads, keys)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_masks_strides_and_scales(engine, dtype):
    engine(dtype)
    for transposed, length, keys in itertools.product((True, False), (1, 9), (9, 12)):
        q, k, v = qkv(length=length, keys=keys, transposed=transposed)
        full = torch.randn(2, 4, length, keys)
        masks = [None, full, full[:, :1], full[0, 0], full[:1, :, :1], full > -1.0]
        for mask, scale in itertools.product(masks, (None, 0.3)):
            wanted = sdpa(q, k, v, mask, scale=scale)
            got = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
            assert error(got, wanted) < LIMIT[dtype]
        wanted = sdpa(q, k, v, is_causal=True)
        assert error(functional.scaled_dot_product_attention(q, k, v, is_causal=True), wanted) < LIMIT[dtype]
    assert bool(decisions(taken=True)) == works[dtype]


@torch.no_grad()
def test_infinite_masks_and_grouped_queries(engine):
    engine("bfloat16")
    q, k, v = qkv(groups=2)
    mask = torch.full((2, 1, 9, 9), -math.inf).triu(1)
    wanted = sdpa(q, k, v, mask, enable_gqa=True)
    assert error(functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), wanted) < 2e-2


@torch.no_grad()
def test_bfloat16_tensors_stay_so(engine):
    engine("float32")
    q, k, v = (x.bfloat16() for x in qkv())
    got = functional.scaled_dot_product_attention(q, k, v)
    assert got.dtype == torch.bfloat16 and error(got, sdpa(q, k, v)) < 2e-2


@torch.no_grad()
def test_errors_and_odd_calls_are_torchs(engine):
    engine("bfloat16")
    q, k, v = qkv()
    calls = [
        lambda f: f(q, k[:, :, :, :8], v),
        lambda f: f(q, k),
        lambda f: f(q, k, v, colour=1),
        lambda f: f(q, k, v, torch.zeros(3, 3)),
        lambda f: f(q, k, v, torch.zeros(9, 9), is_causal=True),
        lambda f: f(q, k.double(), v),
    ]

    def outcome(call, function):
        try:
            return call(function).tolist()
        except (RuntimeError, TypeError) as error:
            return type(error), str(error)

    outcomes = [(outcome(call, functional.scaled_dot_product_attention), outcome(call, sdpa)) for call in calls]
    assert all(got == wanted for got, wanted in outcomes)
    assert sum(isinstance(got, tuple) for got, _ in outcomes) >= 4
    assert functional.scaled_dot_product_attention(q[0], k[0], v[0]).shape == (4, 9, 16)
    assert functional.scaled_dot_product_attention(q.double(), k.double(), v.double()).dtype == torch.float64


def test_gradients_and_dropout_are_torchs(engine):
    engine("bfloat16")
    q, k, v = (x.requires_grad_() for x in qkv())
    got = torch.autograd.grad(functional.scaled_dot_product_attention(q, k, v).square().sum(), (q, k, v))
    wanted = torch.autograd.grad(sdpa(q, k, v).square().sum(), (q, k, v))
    assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))
    torch.manual_seed(1)
    got = functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(1)
    assert torch.equal(got, sdpa(q, k, v, dropout_p=0.5))


class Attend(nn.Module):
    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_compilers_know_the_function(engine):
    engine("bfloat16")
    q, k, v = qkv()
    model = Attend().eval()
    wanted = sdpa(q, k, v, is_causal=True)
    model(q, k, v)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(q, k, v), wanted)
    assert torch.equal(torch.jit.script(model)(q, k, v), wanted)
    assert torch.equal(torch.jit.trace(model, (q, k, v))(q, k, v), wanted)
    assert torch.equal(torch.export.export(model, (q, k, v)).module()(q, k, v), wanted)


class AttendFromTwo(nn.Module):
    """As openai-whisper: whether it is causal depends on a size."""

    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_sizes_that_vary_may_decide_whether_it_is_causal(engine):
    engine("bfloat16")
    compiled = torch.compile(AttendFromTwo().eval(), backend="eager", fullgraph=True, dynamic=True)
    for length in (9, 7, 1):
        q, k, v = qkv(length=length, keys=length)
        assert torch.equal(compiled(q, k, v), sdpa(q, k, v, is_causal=length > 1))


def test_uninstalled_it_is_torchs_own(engine):
    engine("bfloat16")
    attention.uninstall()
    assert functional.scaled_dot_product_attention is sdpa


def laid_out(order, batch=2, heads=4, length=6, depth=8):
    """A query of shape [B, H, L, E] whose memory has its axes in this order, from the outermost."""
    sizes = {"b": batch, "h": heads, "l": length, "e": depth}
    x = torch.randn([sizes[axis] for axis in order])
    return x.permute([order.index(axis) for axis in "bhle"])


@pytest.mark.parametrize("lengths", [(6, 6), (1, 6), (1, 1)])
@torch.no_grad()
def test_the_result_is_laid_out_as_torchs_whatever_the_query(engine, lengths):
    """One after the other, since calls of one size share a decision: MultiheadAttention's is "lbhe"."""
    engine("bfloat16")
    for order, batch in itertools.product(("blhe", "lbhe", "bhle", "hlbe", "lhbe"), (1, 2)):
        q, k, v = (laid_out(order, length=length, batch=batch) for length in (lengths[0], lengths[1], lengths[1]))
        wanted = sdpa(q, k, v)
        for _ in range(2):
            got = functional.scaled_dot_product_attention(q, k, v)
            assert got.stride() == wanted.stride() and error(got, wanted) < 2e-2
    short = laid_out("bhle")[:, :, :1]
    k = laid_out("bhle")
    assert functional.scaled_dot_product_attention(short, k, k).stride() == sdpa(short, k, k).stride()
    if works["bfloat16"]:
        assert decisions(taken=True) and not decisions(taken=False)


@torch.no_grad()
def test_a_value_of_another_depth(engine):
    engine("float32")
    q, k, v = laid_out("blhe"), laid_out("blhe"), laid_out("blhe", depth=16)
    for _ in range(2):
        got, wanted = functional.scaled_dot_product_attention(q, k, v), sdpa(q, k, v)
        assert got.stride() == wanted.stride() and error(got, wanted) < 1e-5
