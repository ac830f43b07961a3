# SPDX-License-Identifier: Apache-2.0
"""Below a graph break of the user's torch.compile our code runs plainly; no graph is made of it."""

import pytest
import torch
from judging import decisions, error
from torch import nn


class Broken(nn.Module):
    """An LSTM in it: dynamo gives the function up, and tries the frames below."""

    def __init__(self):
        super().__init__()
        self.rnn, self.fc = nn.LSTM(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.after(self.rnn(x)[0])

    def after(self, x):
        return torch.relu(x) + self.fc(x).sum()


@pytest.fixture
def compiled():
    """``compiled(model, x)`` → (answer, the operators of each graph)."""

    def run(model, x):
        graphs = []

        def backend(graph, example_inputs):
            graphs.append([str(node.target) for node in graph.graph.nodes if node.op.startswith("call")])
            return graph.forward

        torch._dynamo.reset()
        return torch.compile(model, backend=backend)(x), graphs

    yield run
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_no_graph_is_made_of_our_code(engine, compiled):
    model, x = Broken().eval(), torch.randn(5, 2, 8)
    wanted, graphs = compiled(model, x)
    engine("float32")
    model(x), model(x)
    assert decisions(taken=True)
    answer, found = compiled(model, x)
    assert error(answer, wanted) < 1e-5
    assert found == graphs
