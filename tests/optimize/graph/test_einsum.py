# SPDX-License-Identifier: Apache-2.0
"""`torch.einsum` is read as the product that it is, wherever that is one of two tensors."""

import pytest
import torch
from torch import nn

from slipstream.optimize.graph.nodes import name_of
from slipstream.optimize.graph.operators.attention import Attention
from slipstream.optimize.graph.operators.batched_matmul import BatchedMatmul
from slipstream.optimize.graph.operators.linear import Linear
from tests.optimize.graph.conftest import needs_native
from tests.optimize.graph.test_composites import lowered, operators

A, B, C, D, E, F = 2, 3, 4, 5, 6, 7

LINEARS = {
    "bnd,ed->bne": ((A, B, C), (E, C), 1),
    "bnd,de->bne": ((A, B, C), (C, E), 1),
    "oi,bi->bo": ((E, C), (A, C), 0),
    "...d,de->...e": ((A, B, F, C), (C, E), 1),
    "b n d, d e": ((A, B, C), (C, E), 1),
    "bchw,oc->bohw": ((A, C, 3, 5), (E, C), 1),
    "ibh,hnd->ibnd": ((A, B, C), (C, D, E), 1),
    "ibnd,hnd->ibh": ((A, B, D, E), (C, D, E), 1),
    "ibnd,ndh->bih": ((A, B, D, E), (D, E, C), 1),
    "nkctv,kvw->nctw": ((A, B, C, D, E), (B, E, E), 1),
}
"""The shapes of both, and which one is a weight."""

PRODUCTS = {
    "bhid,bhjd->bhij": ((A, B, D, C), (A, B, E, C)),
    "bhij,bhjd->bhid": ((A, B, D, E), (A, B, E, C)),
    "bhjd,bhij->bhid": ((A, B, E, C), (A, B, D, E)),
    "bnhd,bmhd->bhnm": ((A, D, B, C), (A, E, B, C)),
    "bhij,bjhd->bihd": ((A, B, D, E), (A, E, B, C)),
    "... i d, ... j d -> ... i j": ((A, D, C), (A, E, C)),
    "xbhid,xbhjd->xbhij": ((2, A, B, D, C), (2, A, B, E, C)),
    "bijc,bjkc->bikc": ((A, D, E, C), (A, E, F, C)),
    "bhwc,bcxy->bhwxy": ((A, D, E, C), (A, C, F, B)),
    "bhwxc,bcxy->bywh": ((A, D, E, F, C), (A, C, F, B)),
    "bdi,bdj": ((A, D, E), (A, D, F)),
    "bij,bjk->ik": ((A, B, C), (A, C, D)),
}

OTHERS = {
    "bi,bj->bij": ((A, B), (A, C)),
    "bij,bij->b": ((A, B, C), (A, B, C)),
    "bhd,bhnd->bhn": ((A, B, C), (A, B, D, C)),
    "bii,bij->bj": ((A, B, B), (A, B, C)),
    "bij,bjk->bik": ((A, B, 1), (A, C, D)),
    "bij->bji": ((A, B, C), (A, B, C)),
    "bi,bi->i": ((A, B), (A, B)),
}
"""What is no product of matrices, or not one that is told by its letters."""


class Contracts(nn.Module):
    """Weights are parameters; what comes in is computed first, and so is what goes out."""

    def __init__(self, equation, shapes, weight=None):
        super().__init__()
        self.equation = equation
        self.scale = nn.Linear(1, 1)
        self.weight = None if weight is None else nn.Parameter(torch.randn(shapes[weight]))
        self.place = weight

    def forward(self, first, second):
        operands = [first * 1.5, second * 0.5]
        if self.place is not None:
            operands[self.place] = self.weight
        count = self.equation.partition("->")[0].count(",") + 1
        y = torch.einsum(self.equation, *operands[:count]) * 2
        return y + self.scale(y.new_ones(1))


def check(equation, shapes, weight, kind, *, dtype=torch.float32, dynamic=False):
    torch.manual_seed(5)
    model = Contracts(equation, shapes, weight).eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    captured, graph = lowered(model, inputs, dtype, dynamic=dynamic)
    left = [node for node in graph.fast.graph.nodes if name_of(node) == "einsum"]
    assert len(left) == (kind is None)
    if kind is not None:
        assert len(operators(graph, kind)) == 1 + (kind is Linear)
    with torch.inference_mode():
        wanted, got = model(*inputs), captured.wrap(graph.fast)(model, *inputs)
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    assert (got.shape, got.stride(), got.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
    assert (got - wanted).norm() <= limit * wanted.norm()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("equation", LINEARS)
def test_a_weight_makes_a_linear(equation, dtype):
    *shapes, weight = LINEARS[equation]
    check(equation, shapes, weight, Linear, dtype=dtype)
    if "kctv" not in equation and dtype is torch.float32:
        check(equation, shapes, weight, Linear, dynamic=True)


@needs_native
@pytest.mark.parametrize("equation", PRODUCTS)
def test_two_activations_make_a_batched_product(equation):
    check(equation, PRODUCTS[equation], None, BatchedMatmul)


@pytest.mark.parametrize("equation", OTHERS)
def test_the_rest_stays_torchs(equation):
    check(equation, OTHERS[equation], None, None)


def test_sizes_that_vary_are_not_torn_apart():
    check("xbhid,xbhjd->xbhij", PRODUCTS["xbhid,xbhjd->xbhij"], None, None, dynamic=True)


class WrittenOut(nn.Module):
    """Attention as diffusion and vision models write it."""

    def __init__(self, heads, scores, weighted):
        super().__init__()
        self.heads, self.scores, self.weighted = heads, scores, weighted
        self.into = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, x):
        query, key, value = (self.heads(layer(x)) for layer in self.into)
        weights = (torch.einsum(self.scores, query, key) * 8**-0.5).softmax(dim=-1)
        return torch.einsum(self.weighted, weights, value)


def with_heads(x):
    return x.view(x.shape[0], x.shape[1], 4, 8)


def before_rows(x):
    return with_heads(x).transpose(1, 2)


def in_batch(x):
    return with_heads(x).permute(0, 2, 1, 3).reshape(x.shape[0] * 4, x.shape[1], 8)


@needs_native
@pytest.mark.parametrize(
    ("heads", "scores", "weighted"),
    [
        (before_rows, "b h i d, b h j d -> b h i j", "b h i j, b h j d -> b h i d"),
        (in_batch, "b i d, b j d -> b i j", "b i j, b j d -> b i d"),
        (with_heads, "bnhd,bmhd->bhnm", "bhnm,bmhd->bnhd"),
    ],
)
def test_attention_is_seen_through_it(heads, scores, weighted):
    model, x = WrittenOut(heads, scores, weighted).eval(), torch.randn(2, 9, 32)
    captured, graph = lowered(model, (x,))
    assert len(operators(graph, Attention)) == 1
    with torch.inference_mode():
        wanted, got = model(x), captured.wrap(graph.fast)(model, x)
    assert (got.shape, got.stride(), got.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@needs_native
def test_a_folded_weight_that_changes_is_packed_again():
    model, x = Contracts("ibh,hnd->ibnd", ((A, B, C), (C, D, E)), 1).eval(), torch.randn(A, B, C)
    captured, graph = lowered(model, (x, torch.zeros(1)))
    run = captured.wrap(graph.fast)
    with torch.inference_mode():
        run(model, x, torch.zeros(1))
    with torch.no_grad():
        model.weight.mul_(-2)
    with torch.inference_mode():
        torch.testing.assert_close(run(model, x, torch.zeros(1)), model(x, torch.zeros(1)), atol=1e-5, rtol=1e-4)
