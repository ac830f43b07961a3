# SPDX-License-Identifier: Apache-2.0
"""torch's attention function answers from our kernel in inference, with its own dtype, shape and strides; else it is itself."""

import pytest
import torch
import torch.nn.functional as F

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.optimize import attention

original = attention._original


def inputs(heads=3, queries=20, keys=24, depth=16):
    q = torch.randn(2, queries, heads, depth).transpose(1, 2)
    k, v = (torch.randn(2, keys, heads, depth).transpose(1, 2) for _ in range(2))
    return q, k, v


def tolerance(dtype):
    return {"rtol": 3e-2, "atol": 2e-2} if dtype == "bfloat16" else {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["plain", "causal", "bool", "float", "two dimensions", "scale", "keyword", "grouped"])
@torch.no_grad()
def test_same_meaning(engine, dtype, case):
    engine(dtype)
    q, k, v = inputs()
    args, kwargs = (q, k, v), {}
    match case:
        case "causal":
            kwargs["is_causal"] = True
        case "bool":
            args = (*args, torch.rand(2, 1, 20, 24) > 0.4)
        case "float":
            kwargs["attn_mask"] = torch.randn(2, 1, 1, 24)
        case "two dimensions":
            kwargs["attn_mask"] = torch.rand(20, 24) > 0.4
        case "scale":
            kwargs["scale"] = 0.3
        case "keyword":
            args, kwargs = (), {"query": q, "key": k, "value": v}
        case "grouped":
            args, kwargs = (q, k[:, :1], v[:, :1]), {"enable_gqa": True}
    y = F.scaled_dot_product_attention(*args, **kwargs)
    expected = original(*args, **kwargs)
    assert (y.dtype, y.shape, y.stride()) == (expected.dtype, expected.shape, expected.stride())
    torch.testing.assert_close(y, expected, **tolerance(dtype))
    if native.available() and case != "keyword":
        assert [d.taken for d in log if d.what.startswith("attention in")] == [True]


def test_gradients_are_torchs_own(engine):
    engine("bfloat16")
    q, k, v = (x.detach().requires_grad_() for x in inputs())
    F.scaled_dot_product_attention(q, k, v).sum().backward()
    wanted = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    original(q, k, v).sum().backward()
    for x, expected in zip((q, k, v), wanted, strict=True):
        torch.testing.assert_close(x.grad, expected)


@torch.no_grad()
def test_errors_are_torchs_own(engine):
    engine("bfloat16")
    q, k, v = inputs()
    with pytest.raises(RuntimeError) as ours:
        F.scaled_dot_product_attention(q, k[..., :5], v)
    with pytest.raises(RuntimeError) as theirs:
        original(q, k[..., :5], v)
    assert str(ours.value) == str(theirs.value)


@torch.no_grad()
def test_other_dtypes_and_dropout_are_left_alone(engine):
    engine("bfloat16")
    q, k, v = (x.double() for x in inputs())
    assert torch.equal(F.scaled_dot_product_attention(q, k, v), original(q, k, v))
    q, k, v = inputs()
    torch.manual_seed(5)
    ours = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(5)
    assert torch.equal(ours, original(q, k, v, dropout_p=0.5))
    assert not list(log) or all(not d.what.startswith("attention in") for d in log)


def test_undone(engine):
    engine("bfloat16")
    assert F.scaled_dot_product_attention is not original
    attention.uninstall()
    assert F.scaled_dot_product_attention is original


@torch.no_grad()
def test_export_sees_torchs_operator(engine):
    engine("bfloat16")

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    q, k, v = inputs()
    graph = torch.export.export(Model(), (q, k, v)).graph
    assert any("scaled_dot_product_attention" in str(node.target) for node in graph.nodes)
