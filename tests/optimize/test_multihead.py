# SPDX-License-Identifier: Apache-2.0
"""nn.MultiheadAttention answers from packed projections, in whatever form it is called."""

import itertools
import warnings

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn

from slipstream.decision import log
from slipstream.kernels import native

needs_native = pytest.mark.skipif(not native.available(), reason="left to torch without native kernels")

B, L, S, E, H = 3, 7, 5, 32, 4


def check(module, *args, limit, **kwargs):
    wanted, got = module.forward(*args, **kwargs), module(*args, **kwargs)
    assert type(got) is tuple and len(got) == 2
    for ours, theirs in zip(got, wanted, strict=True):
        if theirs is None:
            assert ours is None
        else:
            assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
            assert error(ours, theirs) < limit


def tokens(batch_first, steps=L):
    return torch.randn(B, steps, E) if batch_first else torch.randn(steps, B, E)


def masks(steps, seen):
    padding = torch.zeros(B, seen, dtype=torch.bool)
    padding[1, seen - 2 :] = True
    causal = torch.ones(steps, seen, dtype=torch.bool).triu(1)
    heads = torch.rand(B * H, steps, seen) > 0.7
    heads[..., 0] = False
    yield {}
    yield {"key_padding_mask": padding}
    yield {"attn_mask": causal, "key_padding_mask": padding}
    yield {"attn_mask": heads}
    yield {"attn_mask": torch.randn(steps, seen)}
    added = torch.zeros(B, seen).masked_fill(padding, -torch.inf)
    yield {"attn_mask": torch.randn(B * H, steps, seen), "key_padding_mask": added}


@needs_native
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_every_form_of_a_call(engine, dtype, batch_first):
    engine(dtype)
    x, memory, other = tokens(batch_first), tokens(batch_first, S), tokens(batch_first, S)
    for bias, inputs in itertools.product((True, False), [(x, x, x), (x, memory, memory), (x, memory, other)]):
        attention = nn.MultiheadAttention(E, H, bias=bias, batch_first=batch_first).eval()
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.2)
        seen = inputs[1].shape[1 if batch_first else 0]
        for mask, weights in itertools.product(masks(L, seen), [{"need_weights": False}, {}, {"average_attn_weights": False}]):
            check(attention, *inputs, **mask, **weights, limit=LIMIT[dtype])
        check(attention, *inputs[:2], value=inputs[2], need_weights=False, limit=LIMIT[dtype])
    assert [what for what in decisions(taken=True) if "packed attention" in what]
    assert not [d for d in log if "failed" in d.reason or "strides" in d.reason]


@needs_native
@torch.no_grad()
def test_a_causal_call(engine):
    engine("float32")
    attention, x = nn.MultiheadAttention(E, H, batch_first=True).eval(), tokens(batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    for weights in (True, False):
        check(attention, x, x, x, attn_mask=mask, is_causal=True, need_weights=weights, limit=1e-5)
    check(attention, x, x, x, is_causal=True, need_weights=False, limit=1e-5)  # torch's fast path asks for no mask


@needs_native
@torch.no_grad()
def test_changed_weights_are_seen(engine):
    engine("float32")
    attention, x = nn.MultiheadAttention(E, H, batch_first=True).eval(), tokens(batch_first=True)
    check(attention, x, x, x, limit=1e-5)
    for parameter in attention.parameters():
        parameter.add_(torch.randn_like(parameter))
        check(attention, x, x, x, limit=1e-5)
    attention.load_state_dict(nn.MultiheadAttention(E, H).state_dict(), assign=True)
    check(attention, x, x, x, limit=1e-5)


@torch.no_grad()
def test_what_is_left_to_torch(engine):
    engine("float32")
    x = tokens(batch_first=True)
    for others in ({"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": E, "vdim": E + 0}):
        check(nn.MultiheadAttention(E, H, batch_first=True, **others).eval(), x, x, x, limit=1e-5)
    attention = nn.MultiheadAttention(E, H, batch_first=True).eval()
    check(attention, x, x, x, limit=1e-5)
    check(attention, x[0], x[0], x[0], limit=1e-5)
    hidden = torch.zeros(B, L, dtype=torch.bool)
    hidden[1] = True
    with_nothing, wanted = (call(x, x, x, key_padding_mask=hidden)[0] for call in (attention, attention.forward))
    assert torch.equal(with_nothing.isnan(), wanted.isnan())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.randn(3, E), torch.randn(5, E)])
        got = attention(nested, nested, nested, need_weights=False)[0]
        wanted = attention.forward(nested, nested, nested)[0]
        assert got.is_nested and torch.equal(got.to_padded_tensor(0), wanted.to_padded_tensor(0))
        linear = nn.Linear(E, 4).eval()
        linear(x)
        assert error(linear(nested).to_padded_tensor(0), linear.forward(nested).to_padded_tensor(0)) == 0
    with pytest.raises((AssertionError, RuntimeError)):
        attention(x, x[:, :2], x)


def test_gradients_are_torchs(engine):
    engine("float32")
    attention, x = nn.MultiheadAttention(E, H, batch_first=True).eval(), tokens(batch_first=True)
    attention(x, x, x)[0].sum().backward()
    assert attention.in_proj_weight.grad is not None


@needs_native
@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_inside_autocast(engine, batch_first):
    engine("float32")
    attention, x = nn.MultiheadAttention(E, H, batch_first=batch_first).eval(), tokens(batch_first)
    with torch.autocast("cpu", torch.bfloat16):
        for weights, given in itertools.product((True, False), (x, x.bfloat16())):
            check(attention, given, given, given, need_weights=weights, limit=2e-2)
    assert any("in autocast" in what for what in decisions(taken=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_a_whole_transformer(engine, dtype):
    model = nn.Transformer(E, H, 2, 2, 48, batch_first=True).eval()
    source, target = tokens(batch_first=True), tokens(batch_first=True, steps=S)
    wanted = model(source, target)
    engine(dtype)
    for _ in range(3):
        got = model(source, target)
        assert got.stride() == wanted.stride() and error(got, wanted) < LIMIT[dtype] * 2
    if native.available():
        assert any("multihead_attn: packed attention" in what for what in decisions(taken=True))
