# SPDX-License-Identifier: Apache-2.0
"""Linears on one input are one call, with one copy of the weights, which sees each of them change."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.kernels import native
from slipstream.kernels.linear import Held
from slipstream.optimize import packs
from slipstream.optimize.graph.operators.linear import shared_kind
from slipstream.optimize.options import set_up
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native


class Three(nn.Module):
    """Queries, keys and values, to which something may be done before attention, and which may be returned."""

    def __init__(self, widths=(64, 64, 64), bias=(True, True, True), between=None, returned=()):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(48, width, bias=has) for width, has in zip(widths, bias, strict=True))
        self.between, self.returned = between, returned

    def forward(self, x):
        found = [part(x) for part in self.parts]
        q, k, v = (part.view(*x.shape[:2], -1, 32).transpose(1, 2) for part in found)
        if self.between is not None:
            q, k = self.between(q), self.between(k)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        return (y, *(found[number] for number in self.returned))


def rotated(x):
    return x * 0.8 + torch.cat([-x[..., 16:], x[..., :16]], -1) * 0.6


def kinds(root):
    graph = root.ways[0].program.lowered.fast.graph
    return [node.target.kind for node in graph.nodes if hasattr(node.target, "kind")]


CASES = {
    "plain": ({}, ["joint_linear", "attention"]),
    "grouped, one without a bias": ({"widths": (64, 32, 32), "bias": (True, False, True)}, ["joint_linear", "attention"]),
    "no biases": ({"bias": (False, False, False)}, ["joint_linear", "attention"]),
    "rotated": ({"between": rotated}, ["joint_linear", "attention"]),
    "one is returned": ({"returned": (1,)}, ["joint_linear", "linear", "attention"]),
    "two are returned": ({"returned": (0, 2)}, ["linear", "linear", "linear", "attention"]),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_joined(at_once, case, dtype):
    given, wanted = CASES[case]
    model, x = Three(**given).eval(), torch.randn(2, 9, 48)
    with torch.inference_mode():
        expected = model(x)
    at_once(dtype)
    root = settle(model, x)
    assert sorted(kinds(root)) == sorted(wanted)
    with torch.inference_mode():
        got = model(x)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.stride() == theirs.stride()
        assert error(ours, theirs) < LIMIT[dtype]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_each_weight_and_bias_is_seen_changing(at_once, which, name):
    model, x = Three().eval(), torch.randn(2, 9, 48)
    at_once("float32")
    root = settle(model, x)
    with torch.no_grad():
        getattr(model.parts[which], name).mul_(-2)
    wanted = plainly(model, x)
    with torch.inference_mode():
        (got,) = model(x)
    assert root.ways[0].program.broken is None
    assert error(got, wanted) < LIMIT["float32"]


def test_a_weight_that_the_script_holds_is_not_packed(at_once):
    model, x = Three().eval(), torch.randn(2, 9, 48)
    at_once("float32")
    settle(model, x)
    data = model.parts[1].weight.data
    for factor in (2, 3):
        data.mul_(factor)
        with torch.inference_mode():
            (got,) = model(x)
        assert error(got, plainly(model, x)) < LIMIT["float32"]


def plainly(model, x):
    q, k, v = (
        F.linear(x, part.weight, part.bias).detach().view(*x.shape[:2], -1, 32).transpose(1, 2) for part in model.parts
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_one_copy_of_the_packed_weights(at_once):
    model, x = Three().eval(), torch.randn(300, 9, 48)
    at_once("bfloat16")
    gc.collect()  # models of other tests count as packed until they are gone
    before = set_up.packed_bytes
    settle(model, x)
    found = [packs.find(shared_kind(part.weight, Held(torch.bfloat16)), part.weight) for part in model.parts]
    assert all(found), "the layers answered first"
    memory = {pack.content[0].data.untyped_storage().data_ptr() for pack in found}
    assert len(memory) == 1
    scales = 3 * 64 * 4 if native.scaled_dtype("linear") is not torch.bfloat16 else 0
    assert set_up.packed_bytes - before == 3 * 64 * 64 * 2 + scales, "48 deep is packed as 64"
