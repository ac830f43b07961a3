# SPDX-License-Identifier: Apache-2.0
"""Products of two activations take a factor and a sum with them, read either dtype without casts, and round no positions."""

import pytest
import torch
from torch import nn

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.optimize import guards
from slipstream.optimize.graph.operators.batched_matmul import BatchedMatmul
from slipstream.optimize.guards import Verdict
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native


class Scores(nn.Module):
    """Attention with a tanh where the softmax would be, so that nothing takes it for attention."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x, bias):
        heads = [part(x).view(*x.shape[:2], 4, 16).transpose(1, 2) for part in (self.query, self.key, self.value)]
        scores = torch.matmul(heads[0], heads[1].transpose(-1, -2)) / 4.0 + bias
        return (torch.tanh(scores) @ heads[2]).transpose(1, 2).reshape(x.shape)


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        both = torch.stack((self.first(x), self.second(x)), dim=1)
        return torch.bmm(both, both.transpose(1, 2)).flatten(1)


class Turned(nn.Module):
    """Rotary positions as transformers makes them: a product of two float32 tensors that must not be rounded."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 32)
        self.register_buffer("speeds", 1.0 / 10 ** torch.arange(0, 4, 0.25))

    def forward(self, x, positions):
        angles = (self.speeds[None, :, None].expand(x.shape[0], -1, 1) @ positions[:, None, :].float()).transpose(1, 2)
        return self.inner(x) * torch.cat((angles.cos(), angles.sin()), dim=-1)


CASES = {
    "scores": (Scores, lambda: (torch.randn(2, 40, 64), torch.randn(4, 40, 40)), 2),
    "pairs": (Pairs, lambda: (torch.randn(8, 32),), 1),
    "positions": (Turned, lambda: (torch.randn(2, 900, 32), torch.arange(900).expand(2, -1)), 1),
}


def products(root):
    graph = root.ways[0].program.lowered.fast.graph
    return [node for node in graph.nodes if isinstance(node.target, BatchedMatmul)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ours", [True, False])
def test_same_answer(at_once, monkeypatch, case, dtype, ours):
    """Whoever won the race."""
    make, draw, count = CASES[case]
    model, args = make().eval(), draw()
    with torch.inference_mode():
        wanted = model(*args)
    at_once(dtype)
    monkeypatch.setattr(guards.speed, "known", lambda question: Verdict(ours or question[0] != "batched_matmul", 2.0))
    root = settle(model, *args)
    with torch.inference_mode():
        got = model(*args)
    assert root.ways[0].program.broken is None
    assert len(products(root)) == count
    assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    assert error(got, wanted) < LIMIT[dtype]
    assert [decision.taken for decision in log if "our kernel" in decision.what][:1] == [ours]


def test_a_factor_and_a_sum_join_the_product(at_once):
    make, draw, _ = CASES["scores"]
    at_once("bfloat16")
    first, second = products(settle(make().eval(), *draw()))
    assert (first.target.alpha, first.args[2] is not None) == (0.25, True)
    assert (second.target.alpha, second.args[2]) == (1.0, None)


def test_bfloat16_comes_in_without_casts_and_float32_is_not_rounded(at_once):
    at_once("bfloat16")
    make, draw, _ = CASES["pairs"]
    root = settle(make().eval(), *draw())
    (node,) = products(root)
    assert node.target.out is torch.float32  # the script is given it
    assert not any(user.target == "to" for source in node.all_input_nodes for user in source.users)
    (way,) = next(iter(node.target.ways))[4:5]
    assert way is torch.bfloat16
    make, draw, _ = CASES["positions"]
    (node,) = products(settle(make().eval(), *draw()))
    assert next(iter(node.target.ways))[4] is torch.float32


@pytest.mark.parametrize(("precision", "parts"), [("highest", 3), ("high", 2), ("medium", 2)])
@pytest.mark.parametrize("faster", [True, False])
def test_tiles_multiply_parts_where_they_are_faster(at_once, monkeypatch, precision, parts, faster):
    def known(question):
        return Verdict(faster or question[0] != "batched_matmul in parts", 2.0)

    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(guards.speed, "known", known)
    a, b = torch.randn(2, 20, 24), torch.randn(2, 24, 30)
    try:
        torch.set_float32_matmul_precision(precision)
        with native.level(native.EMULATED), torch.inference_mode():
            product = BatchedMatmul(torch.float32, torch.float32, 0.5)
            assert error(product(a, b, None), 0.5 * a @ b) < (1e-6 if parts == 3 else 1e-5)
            assert product(a[:, :3], b, None).shape == (2, 3, 30)  # too few rows for tiles
        assert list(product.ways.values()) == [parts if faster else 1, 1]
        decisions = {decision.what: decision.taken for decision in log}
        assert decisions[f"product of 2 x 20 x 24 by 2 x 24 x 30: {parts} parts of bfloat16"] is faster
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)


def test_levels_without_tiles_race_no_parts(at_once, monkeypatch):
    asked = []
    monkeypatch.setattr(guards.speed, "known", lambda question: asked.append(question[0]) or Verdict(True, 2.0))
    with native.level("baseline"), torch.inference_mode():
        product = BatchedMatmul(torch.float32, torch.float32, 1.0)
        product(torch.randn(2, 20, 24), torch.randn(2, 24, 30), None)
    assert asked == ["batched_matmul"] and list(product.ways.values()) == [1]


def test_sizes_are_raced_once_each(at_once):
    at_once("float32")
    model = Pairs().eval()
    root = settle(model, torch.randn(8, 32))
    (node,) = products(root)
    assert len(node.target.ways) == 1
    with torch.inference_mode():
        model(torch.randn(8, 32))
    assert len(node.target.ways) == 1
