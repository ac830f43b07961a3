# SPDX-License-Identifier: Apache-2.0
"""Whoever looks at a model's operators, or changes what they mean, finds the original ones."""

import functools
import io

import pytest
import torch
from judging import LIMIT, decisions, error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from slipstream.decision import log
from slipstream.optimize import gates, own_forward


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc, self.drop = nn.Linear(8, 4), nn.Dropout(0.3)

    def forward(self, x):
        return self.fc(self.drop(self.body(x).mean((2, 3))))


@pytest.fixture
def net(engine):
    engine("bfloat16")
    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model(x), model(x)
    assert decisions(taken=True)
    return model, x


def plain(model, x):
    """By the functions, past every module's call."""
    conv, norm, _ = model.body
    y = nn.functional.conv2d(x, conv.weight, conv.bias)
    y = nn.functional.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return nn.functional.linear(y.relu().mean((2, 3)), model.fc.weight, model.fc.bias)


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(str(function))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_dispatch_and_function_modes_see_original_operators(net):
    model, x = net
    with Names() as names:
        y = model(x)
    assert torch.equal(y, plain(model, x))
    assert not any("mkldnn" in name or "slipstream" in name for name in names.seen)
    with torch.overrides.BaseTorchFunctionMode():
        assert torch.equal(model(x), plain(model, x))


@torch.no_grad()
def test_fake_tensors(net):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, _ = net
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.empty(2, 3, 8, 8)).shape == (2, 4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_functorch(net):
    model, x = net
    parameters = dict(model.named_parameters())
    stacked = torch.func.vmap(lambda one: torch.func.functional_call(model, parameters, (one[None],)))(x)
    assert error(stacked[:, 0], plain(model, x)) < 1e-5
    gradient = torch.func.grad(lambda x: model(x).sum())(x)
    assert gradient.shape == x.shape and gradient.abs().sum() > 0
    _, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    assert tangent.abs().sum() > 0
    doubled = {name: 2 * parameter for name, parameter in parameters.items()}
    assert not torch.equal(torch.func.functional_call(model, doubled, (x,)), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode_gradients(net):
    model, x = net
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(model(dual)).tangent is not None


@torch.no_grad()
def test_the_users_autocast_keeps_its_meaning(net):
    model, x = net
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        assert error(model(x), plain(model, x)) < 2e-2


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(net):
    model, x = net
    traced = torch.jit.trace(model, x)
    assert "mkldnn" not in str(traced.inlined_graph) and "slipstream" not in str(traced.inlined_graph)
    assert error(torch.jit.freeze(traced)(x), plain(model, x)) < 1e-5
    scripted = torch.jit.script(model)
    assert error(scripted(x), plain(model, x)) < 1e-5
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)


@torch.no_grad()
def test_fx_and_export(net):
    model, x = net
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 5
    exported = torch.export.export(model, (x,))
    assert error(exported.module()(x), plain(model, x)) < 1e-5


@torch.no_grad()
def test_torch_compile_and_module_compile(net):
    model, x = net
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), plain(model, x))
    linear = nn.Linear(8, 8).eval()
    linear.compile(backend="eager")
    y = torch.randn(2, 8)
    assert torch.equal(linear(y), nn.functional.linear(y, linear.weight, linear.bias))


@torch.no_grad()
def test_tensor_subclasses_and_other_layouts(net):
    model, x = net

    class Marked(torch.Tensor):
        pass

    assert type(model(x.as_subclass(Marked))) is Marked
    linear = nn.Linear(8, 4).eval()
    sparse = torch.eye(8).to_sparse()
    assert error(linear(sparse), linear.weight.T + linear.bias) < 1e-5
    assert linear.double()(torch.randn(2, 8).double()).dtype == torch.float64


@torch.no_grad()
def test_hooks_of_every_kind_run_and_see_the_original(net):
    model, x = net
    seen = []
    handles = [
        model.fc.register_forward_hook(lambda m, args, y: seen.append("after")),
        model.body[0].register_forward_pre_hook(lambda m, args: seen.append("before")),
        nn.modules.module.register_module_forward_hook(lambda m, args, y: seen.append(type(m).__name__)),
    ]
    assert torch.equal(model(x), plain(model, x))
    assert seen == ["before", "Conv2d", "BatchNorm2d", "ReLU", "Sequential", "Dropout", "Linear", "after", "Net"]
    for handle in handles:
        handle.remove()
    assert not torch.equal(model(x), plain(model, x))


@torch.no_grad()
def test_errors_of_the_user_are_torchs_own(net):
    model, x = net
    for call, kind, text in [
        (lambda: model.fc(torch.randn(2, 9)), RuntimeError, "mat1 and mat2"),
        (model.fc, TypeError, "missing 1 required positional argument: 'input'"),
        (lambda: model.fc(x, x), TypeError, "takes 2 positional arguments"),
        (lambda: model.body(torch.randn(2, 4, 8, 8)), RuntimeError, "expected input"),
        (lambda: model.fc(torch.ones(2, 8, dtype=torch.long)), RuntimeError, "same dtype"),
        (lambda: model.fc([1.0]), TypeError, "must be Tensor"),
    ]:
        with pytest.raises(kind, match=text) as caught:
            call()
        assert caught.value.__context__ is None
    assert error(model(x), plain(model, x)) < 2e-2


@torch.no_grad()
def test_empty_unbatched_and_one_dimensional_input(net):
    model, _ = net
    assert model.fc(torch.randn(8)).shape == (4,)
    assert model.fc(torch.randn(0, 8)).shape == (0, 4)
    conv = nn.Conv2d(3, 8, 3).eval()
    assert conv(torch.randn(3, 8, 8)).shape == (8, 6, 6)


def test_eval_and_train_flip_freely(net):
    model, x = net
    for _ in range(2):
        model.train()
        model(x).sum().backward()
        assert model.fc.weight.grad is not None
        model.eval()
        with torch.no_grad():
            assert error(model(x), plain(model, x)) < 2e-2


@torch.no_grad()
def test_a_forgotten_eval_is_named(engine):
    engine("bfloat16")
    layer, x = nn.Linear(8, 4), torch.randn(2, 8)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert [d.reason for d in log if d.what == "training mode"] != []


class Loud(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class Quiet(nn.Linear):
    extra = 3


@torch.no_grad()
def test_a_subclass_keeps_what_it_has_of_its_own(engine):
    loud, quiet, x = Loud(8, 4).eval(), Quiet(8, 4).eval(), torch.randn(2, 8)
    wanted = loud(x)
    engine("bfloat16")
    assert error(loud(x), wanted) < LIMIT["bfloat16"]  # its forward adds one
    quiet(x)
    assert list(decisions(taken=True)) == ["Loud: packed linear", "Quiet: packed linear"]


@torch.no_grad()
def test_only_and_skip_patterns(engine, monkeypatch):
    engine("bfloat16")
    monkeypatch.setenv("SLIPSTREAM_SKIP", "1, nothing*")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    model(torch.randn(2, 8))
    assert list(decisions(taken=True)) == ["Sequential.0: packed linear"]
    monkeypatch.setenv("SLIPSTREAM_ONLY", "Sequential#2.1")
    monkeypatch.delenv("SLIPSTREAM_SKIP")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    model(torch.randn(2, 8))
    assert list(decisions(taken=True))[1:] == ["Sequential#2.1: packed linear"]


def twice(self, x):
    return 2 * nn.functional.linear(x, self.weight, self.bias)


REPLACED = {
    "plainly": twice,
    "under the original's name": functools.wraps(nn.Linear.forward)(twice),
    "by no function": functools.partial(twice),
}


@pytest.mark.parametrize("how", REPLACED)
def test_a_forward_that_was_replaced_before_we_came_is_not_taken_for_the_librarys(monkeypatch, how):
    monkeypatch.setattr(gates, "_meanings", {})
    gates.answers_stand_for(nn.Linear)
    assert gates.class_is_plain(nn.Linear)
    gates._meanings.clear()
    monkeypatch.setattr(nn.Linear, "forward", REPLACED[how])
    gates.answers_stand_for(nn.Linear)
    assert not gates.class_is_plain(nn.Linear)


def test_a_function_that_was_replaced_before_we_came_is_not_taken_for_torchs(monkeypatch):
    monkeypatch.setattr(gates, "_meanings", {})
    monkeypatch.setattr(gates, "_same", {})
    monkeypatch.setattr(nn.functional, "linear", functools.wraps(nn.functional.linear)(lambda *args: torch.zeros(1)))
    gates.answers_stand_for(nn.Linear)
    assert not gates.class_is_plain(nn.Linear) and not gates.function_is_plain("linear")


@torch.no_grad()
def test_a_layer_with_a_forward_of_its_own_finds_the_scripts_function(engine, monkeypatch):
    class Own(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight, self.bias) + 1

    real = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *args: real(*args) * 2)
    monkeypatch.setitem(own_forward._originals, "linear", nn.functional.linear)  # as it is where it was there before us
    engine("bfloat16")
    layer, x = Own(32, 32).eval(), torch.randn(4, 32)
    for _ in range(4):
        assert torch.equal(layer(x), real(x, layer.weight, layer.bias) * 2 + 1)
    assert not decisions(taken=True)
