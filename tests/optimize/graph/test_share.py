# SPDX-License-Identifier: Apache-2.0
"""Equal operations on equal values are one, unless the script is given the result and may write into it."""

import torch
from torch import nn

from slipstream.optimize.graph.makers.share import share
from tests.optimize.graph.conftest import needs_native
from tests.optimize.graph.test_written_out_attention import answers, lowered
from tests.optimize.judging import LIMIT, error


def traced(function):
    graph = torch.fx.symbolic_trace(function).graph
    before = len(graph.nodes)
    fewer = share(graph)
    graph.lint()
    assert len(graph.nodes) == before - fewer
    return fewer, torch.fx.GraphModule(nn.Module(), graph)


def test_equal_chains_become_one():
    def function(x):
        first = (x[:, None].exp() + 1) * torch.where(x > 0, x, 2.0)[:, None]
        return first - (x[:, None].exp() + 1) * torch.where(x > 0, x, 2.0)[:, None]

    fewer, made = traced(function)
    assert fewer == 7
    assert torch.equal(made(torch.randn(3, 4)), torch.zeros(3, 1, 4))


def test_what_only_looks_equal_stays():
    def function(x):
        return (x + 1).sum() + (x + 1.0).sum() + (x + True).sum() + x.sum(0).sum() + x.sum(1).sum() + (x * float("nan")).sum()

    assert traced(function)[0] == 0


def test_results_stay_apart():
    def function(x):
        return x + 1, (x + 1).reshape(-1), x + 1

    fewer, made = traced(function)
    assert fewer == 0
    assert len({result.untyped_storage().data_ptr() for result in made(torch.randn(2, 2))}) == 3


class Layers(nn.Module):
    """Each makes the same table for itself."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, seen):
        for part in self.parts:
            table = torch.arange(8.0).exp().neg()
            x = torch.where(seen, part(x) + table, torch.full([], -1.0))
        return x


@needs_native
def test_constants_that_are_computed_alike_are_one():
    model, given = Layers().eval(), (torch.randn(3, 8), torch.rand(3, 8) > 0.5)
    _, results, names = lowered(model, given, "float32")
    assert names.count("constant") == 2
    assert error(results[0], answers(model, given)) < LIMIT["float32"]
