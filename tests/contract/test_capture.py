# SPDX-License-Identifier: Apache-2.0
"""The user's own torch.compile, torch.export and torch.jit.trace get the original operators and right answers."""

import pytest
import torch
from zoo import A_FEW, LIMIT, call, check_same, made, parts, plain_answer

TRACED = ["resnet", "unet", "residual", "normalized mlp", "wave", "encoder stack", "shared weights", "volume"]
EXPORTED = [*TRACED, "bert", "vit", "convnext", "lstm tagger"]


def operators_of_ours(names):
    return [name for name in map(str, names) if "slipstream" in name or "mkldnn" in name]


@pytest.fixture
def compiled():
    """``compiled(model, inputs)`` → (answer, operators of each graph that dynamo found)."""

    def run(model, inputs):
        graphs = []

        def backend(graph, example_inputs):
            graphs.append([str(node.target) for node in graph.graph.nodes if node.op.startswith("call")])
            return graph.forward

        torch._dynamo.reset()
        return call(torch.compile(model, backend=backend), inputs), graphs

    yield run
    torch._dynamo.reset()


@pytest.mark.parametrize("name", A_FEW)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_torch_compile_finds_the_same_graphs(engine, compiled, name):
    model, inputs = made(name)
    wanted, graphs = compiled(model, inputs)
    engine("float32")
    call(model, inputs)
    answer, found = compiled(model, inputs)
    check_same(answer, wanted, LIMIT["float32"])
    assert found == graphs
    check_same(call(model, inputs), wanted, LIMIT["float32"])


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_torch_export(engine, name):
    wanted, _ = plain_answer(name)
    model, inputs = made(name)
    engine("float32")
    call(model, inputs)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    exported = torch.export.export(model, args, kwargs)
    assert not operators_of_ours(node.target for node in exported.graph.nodes)
    got = exported.module()(*args, **kwargs)
    for y, w in zip(parts(got)[0], parts(wanted)[0], strict=True):
        torch.testing.assert_close(y, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_torch_jit_trace(engine, name):
    wanted, _ = plain_answer(name)
    model, inputs = made(name)
    engine("float32")
    call(model, inputs)
    args = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    traced = torch.jit.trace(model, args, strict=False)
    assert not operators_of_ours(node.kind() for node in traced.inlined_graph.nodes())
    for made_of_it in (traced, torch.jit.freeze(traced)):
        for y, w in zip(parts(made_of_it(*args))[0], parts(wanted)[0], strict=True):
            torch.testing.assert_close(y, w, rtol=1e-4, atol=1e-5)
