# SPDX-License-Identifier: Apache-2.0
"""A layer does its followers' work where that is proven; nobody can tell, and everything else stays as it was."""

import copy
import io
import math
import pickle
import threading

import pytest
import torch
from torch import nn

from slipstream import decision
from slipstream.autopatch.settings import Settings
from slipstream.kernels import native
from slipstream.optimize import guards, leaf_tier, options
from slipstream.optimize.chain import hand_over

needs_native = pytest.mark.skipif(not native.available(), reason="float32 linear is left to torch without the extension")


@pytest.fixture(autouse=True)
def engine():
    decision.log.clear()
    leaf_tier.install(Settings())
    yield
    leaf_tier.uninstall()


class ConvBlock(nn.Module):
    """As a model zoo writes it: attributes called one after the other."""

    def __init__(self, channels=16):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(channels)
        self.activation = nn.ReLU()
        self.normalization.running_mean.normal_(0, 0.3)
        self.normalization.running_var.uniform_(0.5, 2)
        nn.init.uniform_(self.normalization.weight, 0.5, 2)
        nn.init.normal_(self.normalization.bias)

    def forward(self, x):
        x = self.convolution(x)
        x = self.normalization(x)
        x = self.activation(x)
        return x

    def raw(self, x):
        return self.convolution(x)


class Intermediate(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.dense = nn.Linear(64, 256)
        self.act = act or nn.GELU()

    def forward(self, x):
        x = self.dense(x)
        return self.act(x)


def always_fast(monkeypatch):
    """Speed is not what is tested here: let every trial be won."""
    monkeypatch.setattr(guards.speed, "known", lambda question: guards.Verdict(True, 2.0))
    monkeypatch.setattr(options.set_up.allowance, "share", math.inf)


def plain(module, *args):
    """What torch computes, with the engine out of the way."""
    return module_without_engine(module)(*args)


def module_without_engine(module):
    twin = copy.deepcopy(module)
    for child in twin.modules():
        child.__dict__["_compiled_call_impl"] = None
    return twin


def fused_names():
    return [d.what for d in decision.log if d.taken and " + " in d.what]


@torch.no_grad()
def test_conv_norm_activation(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    expected = plain(block, x)
    for _ in range(3):
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    assert fused_names() == ["ConvBlock.convolution: prepacked convolution + BatchNorm2d + ReLU"]


@needs_native
@torch.no_grad()
def test_linear_activation(monkeypatch):
    always_fast(monkeypatch)
    block, x = Intermediate().eval(), torch.randn(7, 5, 64)
    expected = plain(block, x)
    for _ in range(3):
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert fused_names() == ["Intermediate.dense: packed linear + GELU"]


@torch.no_grad()
def test_the_layer_alone_is_the_layer_alone(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    expected, raw = plain(block, x), module_without_engine(block).raw(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.raw(x), raw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.convolution(x), raw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.normalization(x), module_without_engine(block).normalization(x))


@torch.no_grad()
def test_first_met_elsewhere(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    raw, expected = module_without_engine(block).raw(x), plain(block, x)
    torch.testing.assert_close(block.raw(x), raw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_two_parents_share_a_layer(monkeypatch):
    always_fast(monkeypatch)
    first, second, x = ConvBlock().eval(), ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    second.convolution = first.convolution
    expected = plain(first, x), plain(second, x)
    for _ in range(2):
        torch.testing.assert_close(first(x), expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(second(x), expected[1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_hook_on_a_follower_sees_its_input(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    block(x)
    seen = []
    handle = block.normalization.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    expected, raw = plain(block, x), module_without_engine(block).raw(x)
    seen.clear()  # the copy carries the hook too
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0][0], raw, rtol=1e-4, atol=1e-4)
    handle.remove()
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    assert len(seen) == 1


@torch.no_grad()
@pytest.mark.parametrize("change", ["statistics", "scale", "weight", "epsilon", "replaced", "activation", "training"])
def test_changes_are_seen_by_the_next_call(monkeypatch, change):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    block(x)
    block(x)
    match change:
        case "statistics":
            block.normalization.running_mean.add_(1)
        case "scale":
            block.normalization.weight.data.mul_(3)
        case "weight":
            block.convolution.weight.data = torch.randn_like(block.convolution.weight)
        case "epsilon":
            block.normalization.eps = 0.5
        case "replaced":
            block.normalization = nn.InstanceNorm2d(16).eval()
        case "activation":
            block.activation = nn.Tanh()
        case "training":
            block.normalization.train()
    expected = plain(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_gradients_and_training_are_untouched(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    with torch.no_grad():
        block(x)
    twin = module_without_engine(block)
    for train in (False, True):
        block.train(train)
        twin.train(train)
        block(x).sum().backward()
        twin(x).sum().backward()
        for (name, parameter), (_, other) in zip(block.named_parameters(), twin.named_parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-3, msg=name)
    torch.testing.assert_close(block.normalization.running_mean, twin.normalization.running_mean)


@torch.no_grad()
def test_copies_pickles_and_state_are_what_they_were(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    keys = list(block.state_dict())
    y = block(x)
    twin = copy.deepcopy(block)
    twin.normalization.running_mean.add_(1)
    torch.testing.assert_close(twin(x), plain(twin, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pickle.loads(pickle.dumps(block))(x), y, rtol=1e-4, atol=1e-4)
    torch.save(block, io.BytesIO())
    assert list(block.state_dict()) == keys


@torch.no_grad()
def test_an_exception_leaves_nothing_behind(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    expected = plain(block, x)
    block(x)
    with pytest.raises(RuntimeError):
        block(torch.randn(2, 5, 24, 24))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    assert hand_over._expected.result is None


@torch.no_grad()
def test_tracing_compiling_and_tracing_debuggers(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    expected = plain(block, x)
    block(x)
    graph = torch.fx.symbolic_trace(block)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == [
        "convolution", "normalization", "activation",
    ]  # fmt: skip
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-4)
    exported = torch.export.export(block, (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(block, backend="eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_threads_do_not_see_each_other(monkeypatch):
    always_fast(monkeypatch)
    block = ConvBlock().eval()
    inputs = [torch.randn(1, 16, 20, 20) for _ in range(4)]
    expected = [plain(block, x) for x in inputs]
    wrong = []

    def work(index):
        with torch.no_grad():
            for _ in range(30):
                if not torch.allclose(block(inputs[index]), expected[index], rtol=1e-4, atol=1e-4):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_undone_without_a_trace(monkeypatch):
    always_fast(monkeypatch)
    block, x = ConvBlock().eval(), torch.randn(2, 16, 24, 24)
    block(x)
    leaf_tier.uninstall()
    assert "_compiled_call_impl" not in block.normalization.__dict__
    assert "_compiled_call_impl" not in block.activation.__dict__


def test_transformers_activations_have_their_names():
    transformers = pytest.importorskip("transformers")
    from slipstream.optimize.pieces.followers import fusable

    x = torch.linspace(-6, 6, 1001)
    for name, expected in {
        "gelu": "gelu_erf", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
        "silu": "silu", "relu": "relu", "gelu_python": None, "quick_gelu": None,
    }.items():  # fmt: skip
        module = transformers.activations.ACT2FN[name]
        form = fusable(module)
        assert (form.post_op if form else None) == expected, name
        if form:
            from slipstream.kernels.activation import activation

            torch.testing.assert_close(activation(x, form.post_op), module(x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "caller", ["y = layer(x)", "class A:\n    kept = 1\n    y = layer(x)\ny = A.y\nassert A.kept", "y = (lambda: layer(x))()"]
)
def test_a_layer_called_outside_any_method_leaves_the_scripts_variables(caller):
    variables = {"layer": nn.Linear(64, 256).eval(), "x": torch.randn(8, 64), "mine": 42}
    with torch.no_grad():
        exec(compile(caller, "script.py", "exec"), variables)
        exec(compile(caller, "script.py", "exec"), variables)
    assert variables["mine"] == 42 and variables["y"].shape == (8, 256)


class Projections(nn.Module):
    """What has no norm and no activation, like attention in transformers."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.dropout = nn.Linear(64, 64), nn.Linear(64, 64), nn.Dropout(0.1)

    def forward(self, x):
        return self.query(x) + self.dropout(self.key(x))


@torch.no_grad()
def test_a_caller_without_norm_and_activation_is_not_read(monkeypatch):
    read = []
    monkeypatch.setattr(hand_over.dataflow, "find", lambda *arguments: read.append(arguments))
    model, x = Projections().eval(), torch.randn(32, 64)
    wanted = model.query.forward(x) + model.key.forward(x)
    options.set_up.allowance.earn(1000.0)  # enough for all set-up on any machine
    for _ in range(20):
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    assert not read
    block = Intermediate().eval()
    block(x)
    assert read
