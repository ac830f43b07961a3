# SPDX-License-Identifier: Apache-2.0
"""A norm that one linear alone reads is part of it, and sees its own weights change as the linear does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native


class Block(nn.Module):
    """Normalizes, then multiplies, as a transformer's MLP does; with queries, keys and values where ``heads``."""

    def __init__(self, norm=None, *, returned=False, added=False, heads=False):
        super().__init__()
        self.norm = nn.LayerNorm(64) if norm is None else norm
        self.up = nn.Linear(64, 96)
        self.qkv = nn.ModuleList(nn.Linear(64, 64) for _ in range(3)) if heads else ()
        self.down = nn.Linear(96, 64)
        self.returned, self.added = returned, added
        nn.init.normal_(self.norm.weight, 1, 0.2)

    def forward(self, x):
        if self.qkv:
            rows = self.norm(x)
            q, k, v = (part(rows).view(*x.shape[:2], 2, 32).transpose(1, 2) for part in self.qkv)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        rows = self.norm(x + x.abs() if self.added else x)
        y = x + self.down(F.gelu(self.up(rows)))
        return (y, rows) if self.returned else y


def kinds(root):
    graph = root.ways[0].program.lowered.fast.graph
    return sorted(node.target.kind for node in graph.nodes if hasattr(node.target, "kind"))


def plainly(model, x):
    """By functions, of which none is ours."""
    with torch.inference_mode():
        rows = F.layer_norm(x, (64,), model.norm.weight, model.norm.bias, model.norm.eps)
        if model.qkv:
            parts = [F.linear(rows, part.weight, part.bias) for part in model.qkv]
            q, k, v = (part.view(*x.shape[:2], 2, 32).transpose(1, 2) for part in parts)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        up = F.gelu(F.linear(rows, model.up.weight, model.up.bias))
        return x + F.linear(up, model.down.weight, model.down.bias)


def first(result):
    return result[0] if isinstance(result, tuple) else result


CASES = {
    "layer norm": ({}, ["linear", "normed_linear"]),
    "RMS norm": ({"norm": nn.RMSNorm(64, eps=1e-6)}, ["linear", "normed_linear"]),
    "without a bias": ({"norm": nn.LayerNorm(64, bias=False)}, ["linear", "normed_linear"]),
    "queries, keys and values": ({"heads": True}, ["attention", "normed_linear"]),
    "it is returned as well": ({"returned": True}, ["layer_norm", "linear", "linear"]),
    "a sum is normalized": ({"added": True}, ["layer_norm", "linear", "linear"]),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_fused(at_once, case, dtype):
    given, wanted = CASES[case]
    torch.manual_seed(1)
    model, x = Block(**given).eval(), torch.randn(2, 9, 64)
    with torch.inference_mode():
        expected = first(model(x))
    at_once(dtype)
    root = settle(model, x)
    assert kinds(root) == wanted
    with torch.inference_mode():
        got = first(model(x))
    assert got.stride() == expected.stride()
    assert got.dtype is expected.dtype
    assert error(got, expected) < LIMIT[dtype]


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("part", ["norm.weight", "norm.bias", "the linear's weight", "the linear's bias"])
def test_each_weight_is_seen_changing(at_once, heads, part):
    model, x = Block(heads=heads).eval(), torch.randn(2, 9, 64)
    at_once("float32")
    root = settle(model, x)
    settle(model, x)
    assert root.ways[0].program.settling.settled is not None
    linear = model.qkv[1] if heads else model.up
    changed = model.get_parameter(part) if part.startswith("norm") else getattr(linear, part.split()[-1])
    for factor in (-2, 3):
        with torch.no_grad():
            changed.mul_(factor).add_(0.1)
        wanted = plainly(model, x)
        for _ in range(3):
            with torch.inference_mode():
                got = model(x)
            assert error(got, wanted) < LIMIT["float32"]
    assert root.ways[0].program.broken is None


def test_rows_of_another_number(at_once):
    """As the tokens of a prompt and those that follow one by one."""
    model = Block().eval()
    at_once("float32")
    settle(model, torch.randn(2, 9, 64))
    for sizes in ((2, 9), (2, 1), (1, 1), (3, 200)):
        x = torch.randn(*sizes, 64)
        for _ in range(4):
            with torch.inference_mode():
                got = model(x)
            assert error(got, plainly(model, x)) < LIMIT["float32"]
