# SPDX-License-Identifier: Apache-2.0
"""Layers with a forward of their own around the stock operator: it runs, and the operator within comes from packed weights."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from judging import LIMIT, decisions, error
from torch import nn

from slipstream.kernels import native
from slipstream.optimize.pieces.linear import onednn_has_bfloat16

FUNCTIONS = {name: getattr(F, name) for name in ("linear", "conv1d", "conv2d", "conv3d")}


class Casting(nn.Linear):
    """As openai-whisper has it."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Around(nn.Linear):
    def forward(self, x, scale=2.0):
        return torch.tanh(super().forward(x + 1)) * scale


class LowRank(nn.Linear):
    """As loralib has it: one product with the layer's own weight, two with others."""

    def __init__(self, *args):
        super().__init__(*args)
        self.down, self.up = (nn.Parameter(torch.randn(*shape) / 8) for shape in ((4, args[0]), (args[1], 4)))

    def forward(self, x):
        return F.linear(x, self.weight, bias=self.bias) + F.linear(F.linear(x, self.down), self.up)


class Casting1d(nn.Conv1d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class Same2d(nn.Conv2d):
    """As timm has it: padded before."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class Activated3d(nn.Conv3d):
    def forward(self, x):
        return torch.relu(super().forward(x))


class Scaled(nn.Linear):
    """Another weight at each call."""

    def forward(self, x):
        return F.linear(x, self.weight * 0.5, self.bias)


class BiasLater(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight), self.bias


class OtherStride(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, 2, self.padding)


INSIDE = {
    "casting": (lambda: Casting(96, 64), (5, 96)),
    "no bias": (lambda: Casting(96, 64, bias=False), (2, 3, 96)),
    "around": (lambda: Around(96, 64), (5, 96)),
    "low rank": (lambda: LowRank(96, 64), (5, 96)),
    "conv1d": (lambda: Casting1d(16, 24, 3, 2, 1), (2, 16, 40)),
    "conv2d": (lambda: Same2d(16, 24, 3, 2), (2, 16, 20, 21)),
    "conv3d": (lambda: Activated3d(8, 12, 3), (2, 8, 5, 8, 9)),
}

LEFT = {
    "scaled": (lambda: Scaled(96, 64), (5, 96)),
    "bias later": (lambda: BiasLater(96, 64), (5, 96)),
    "other stride": (lambda: OtherStride(16, 24, 3), (2, 16, 20, 21)),
    "reflecting": (lambda: Same2d(16, 24, 3, padding=1, padding_mode="reflect"), (2, 16, 20, 21)),
}

packs_float32 = pytest.mark.skipif(not native.available(), reason="float32 linears are left to torch without the extension")
DTYPES = [
    pytest.param("float32", marks=packs_float32),
    pytest.param("bfloat16", marks=pytest.mark.skipif(not onednn_has_bfloat16(), reason="no bfloat16 here")),
]


class Model(nn.Module):
    """The layer with something of torch around it, so that it is not the outermost module."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def made(case):
    build, shape = case
    return Model(build()).eval(), torch.randn(*shape)


def settled(model, x):
    with torch.no_grad():
        for _ in range(6):
            answer = model(x)
    return answer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", INSIDE)
def test_the_operator_within_is_answered(engine, case, dtype):
    model, x = made(INSIDE[case])
    with torch.no_grad():
        wanted = model(x)
    engine(dtype)
    got = settled(model, x)
    assert decisions(taken=True), decisions()
    assert error(got, wanted) < LIMIT[dtype]
    assert dtype == "float32" or not torch.equal(got, wanted)
    assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_the_layers_own_operator_is_left_to_torch(engine, case):
    model, x = made(LEFT[case])
    with torch.no_grad():
        wanted = model(x)
    engine("bfloat16")
    got = settled(model, x)
    assert not decisions(taken=True)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.fixture
def casting(engine):
    """A settled layer, in float32 where that is packed."""
    model, x = made(INSIDE["casting"])
    engine("float32" if native.available() else "bfloat16")
    settled(model, x)
    return model, x


def test_functions_are_replaced_only_for_such_layers_and_given_back(engine):
    from slipstream.optimize import leaf_tier

    engine("bfloat16")
    settled(Model(nn.Linear(96, 64)).eval(), torch.randn(5, 96))
    assert {name: getattr(F, name) for name in FUNCTIONS} == FUNCTIONS
    settled(*made(INSIDE["casting"]))
    assert all(getattr(F, name) is not function for name, function in FUNCTIONS.items())
    leaf_tier.uninstall()
    assert {name: getattr(F, name) for name in FUNCTIONS} == FUNCTIONS


def test_what_the_script_put_in_their_place_stays(casting, monkeypatch):
    from slipstream.optimize import leaf_tier

    def other(*args):
        return FUNCTIONS["linear"](*args) + 1

    monkeypatch.setattr(F, "linear", other)
    leaf_tier.uninstall()
    assert F.linear is other
    monkeypatch.undo()
    F.linear = FUNCTIONS["linear"]  # undoing has put ours back


def test_changed_and_exchanged_weights_are_seen(casting):
    model, x = casting
    with torch.no_grad():
        model.layer.weight.mul_(2)
        assert error(settled(model, x), F.linear(x, model.layer.weight, model.layer.bias)) < LIMIT["bfloat16"]
        model.layer.weight = nn.Parameter(torch.randn(64, 96))
        assert error(settled(model, x), F.linear(x, model.layer.weight, model.layer.bias)) < LIMIT["bfloat16"]
        model.load_state_dict(made(INSIDE["casting"])[0].state_dict(), assign=True)
        assert error(settled(model, x), F.linear(x, model.layer.weight, model.layer.bias)) < LIMIT["bfloat16"]


def test_hooks_run_and_see_the_layer(casting):
    model, x = casting
    seen = []
    model.layer.register_forward_hook(lambda module, args, y: seen.append(y) or y + 1)
    with torch.no_grad():
        got = model(x)
    assert torch.equal(got, seen[0] + 1)
    assert error(seen[0], F.linear(x, model.layer.weight, model.layer.bias)) < LIMIT["bfloat16"]


def test_training_and_gradients(casting):
    model, x = casting
    twin = copy.deepcopy(model)
    for one in (model, twin.train()):
        one.zero_grad()
        one(x).square().sum().backward()
    assert error(model.layer.weight.grad, twin.layer.weight.grad) < LIMIT["bfloat16"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["around", "conv2d"])
def test_compilers_see_torchs_functions(engine, case):
    model, x = made(INSIDE[case])
    with torch.no_grad():
        wanted = model(x)
        engine("bfloat16")
        settled(model, x)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), wanted)
        torch._dynamo.reset()
        assert torch.equal(torch.jit.trace(model, (x,))._call_impl(x), wanted)
        exported = torch.export.export(model, (x,))
        name = "linear" if case == "around" else "conv2d"
        assert any(name in str(node.target) for node in exported.graph.nodes)
        assert torch.equal(torch.fx.symbolic_trace(model)._call_impl(x), wanted)
        if case == "conv2d":  # torch.jit.script knows no super()
            assert torch.equal(torch.jit.script(model)._call_impl(x), wanted)


def test_errors_are_torchs(casting):
    model, _ = casting

    def outcome(call, x):
        with pytest.raises((RuntimeError, TypeError, AttributeError)) as caught, torch.no_grad():
            call(x)
        return type(caught.value), str(caught.value)

    def plainly(x):
        return FUNCTIONS["linear"](x, model.layer.weight.to(x.dtype), model.layer.bias.to(x.dtype))

    for x in (torch.randn(5, 7), torch.randn(()), None):
        assert outcome(model, x) == outcome(plainly, x)
    with torch.no_grad():  # and the layer that raised counts as called no more
        x, weight = torch.ones(1, 96), model.layer.weight
        assert torch.equal(F.linear(x, weight), FUNCTIONS["linear"](x, weight))


def test_a_layer_within_a_layers_forward(engine):
    class Nested(Casting):
        def __init__(self):
            super().__init__(96, 96)
            self.inner = Casting(96, 96)

        def forward(self, x):
            return super().forward(self.inner(x))

    model, x = Model(Nested()).eval(), torch.randn(5, 96)
    with torch.no_grad():
        wanted = model(x)
    engine("float32" if native.available() else "bfloat16")
    assert error(settled(model, x), wanted) < LIMIT["bfloat16"]
    assert len(decisions(taken=True)) == 2


def test_threads(casting):
    model, _ = casting
    other = Model(Casting(96, 64)).eval()
    inputs = [torch.randn(5, 96) for _ in range(4)]
    wrong = []

    def work(x):
        with torch.no_grad():
            for _ in range(100):
                for one in (model, other):
                    if error(one(x), FUNCTIONS["linear"](x, one.layer.weight, one.layer.bias)) > LIMIT["bfloat16"]:
                        wrong.append(x)

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_low_memory_leaves_them_alone(engine):
    model, x = made(INSIDE["casting"])
    with torch.no_grad():
        wanted = model(x)
    engine("bfloat16", low_memory=True)
    assert torch.equal(settled(model, x), wanted)
    assert any(reason.startswith("low memory") for reason in decisions(taken=False).values())
