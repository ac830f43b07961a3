# SPDX-License-Identifier: Apache-2.0
"""ScriptModules: traced, scripted, frozen, loaded. A graph answers as TorchScript does, sees every change, leaves no trace."""

import copy
import io
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.decision import log
from slipstream.optimize import leaf_tier
from slipstream.optimize.graph import background, schedule, tier
from slipstream.optimize.graph.torchscript import slot
from slipstream.optimize.optimize_model import optimize_model
from tests.optimize.graph.conftest import needs_native
from tests.optimize.graph.models import CASES
from tests.optimize.judging import LIMIT, error

pytestmark = [needs_native, pytest.mark.filterwarnings("ignore")]  # torch.jit calls itself deprecated


class Plain(nn.Module):
    """Two linears with an activation between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


class Branching(Plain):
    """What only TorchScript's compiler keeps: arguments with defaults, branches, loops, numbers."""

    def forward(self, x, twice: bool = False, rounds: int = 1):
        y = self.first(x).relu_()
        for _ in range(rounds):
            y = F.dropout(self.second(y), 0.1, self.training)
        if twice:
            y = self.second(y)
        if x.dim() == 2:
            y = y.view(x.size(0), 2, -1)
        return y, x.shape[0]


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [leaf for part in value for leaf in tensors(part)] if isinstance(value, (tuple, list, type({}.values()))) else []


def made(how, model, args):
    """A ScriptModule of the model, in one of the ways that scripts use."""
    with torch.no_grad():
        if how == "scripted":
            return torch.jit.script(model)
        traced = torch.jit.trace(model, args, strict=False, check_trace=False)
        if how == "traced":
            return traced
        if how == "frozen":
            return torch.jit.freeze(traced)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        return torch.jit.load(file)


def settle(module, *args, **kwargs):
    """Call until the graph answers; returns what answers for the module."""
    with torch.inference_mode():
        for _ in range(2):
            module(*args, **kwargs)
        background.wait()
        for _ in range(3):
            module(*args, **kwargs)
    return slot.call_of(module)


def reasons():
    return " ".join(decision.reason for decision in log if decision.what.endswith("whole model"))


def answered(call, run):
    """How many of the calls that ``run`` makes the graph answered."""
    before = call.account.calls
    with torch.inference_mode():
        result = run()
    return call.account.calls - before, result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["traced", "frozen", "loaded"])
@pytest.mark.parametrize("case", ["encoder", "encoder, masked", "residual", "residual, channels last", "lstm, states", "gates"])
def test_same_answer(at_once, case, how, dtype):
    model, args = CASES[case]()
    module = made(how, model, args)
    with torch.no_grad():
        wanted = copy.deepcopy(module)(*args)
    at_once(dtype)
    (way,) = settle(module, *args).ways
    assert list(way.won.values()) == [True]
    with torch.no_grad():
        got = module(*args)
    assert type(got) is type(wanted)
    for ours, theirs in zip(tensors(got), tensors(wanted), strict=True):
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert error(ours, theirs) < LIMIT["bfloat16" if ours.dtype is torch.bfloat16 else dtype]


@pytest.mark.parametrize("case", ["residual", "images", "waves", "volumes", "by hand", "scaled", "sequential"])
def test_scripted_models_are_walked_through(at_once, case):
    model, args = CASES[case]()
    module = made("scripted", model, args)
    with torch.no_grad():
        wanted = copy.deepcopy(module)(*args)
    at_once("float32")
    assert settle(module, *args).ways, reasons()
    with torch.no_grad():
        for ours, theirs in zip(tensors(module(*args)), tensors(wanted), strict=True):
            assert error(ours, theirs) < LIMIT["float32"]


@pytest.mark.parametrize("kwargs", [{}, {"twice": True}, {"rounds": 3, "twice": False}])
def test_keywords_branches_and_numbers(at_once, kwargs):
    module, x = torch.jit.script(Branching().eval()), torch.randn(4, 64)
    with torch.no_grad():
        wanted, rows = copy.deepcopy(module)(x, **kwargs)
    at_once("float32")
    call = settle(module, x=x, **kwargs)
    count, (got, number) = answered(call, lambda: module(x, **kwargs))
    assert count == 1
    assert number == rows == 4
    assert error(got, wanted) < LIMIT["float32"]
    count, (other, _) = answered(call, lambda: module(x, rounds=7))
    assert count == 0  # another number is another graph
    with torch.no_grad():
        assert torch.equal(other, copy.deepcopy(module)(x, rounds=7)[0])


def test_wrong_arguments_raise_what_torchscript_raises(at_once):
    module, x = made("frozen", Plain().eval(), torch.randn(4, 64)), torch.randn(4, 64)
    at_once("float32")
    settle(module, x)
    for args, kwargs in (((), {}), ((x, x), {}), ((x,), {"other": 1}), ((None,), {})):
        with pytest.raises(RuntimeError) as theirs, torch.no_grad():
            module._call_impl(*args, **kwargs)
        with pytest.raises(RuntimeError, match="forward") as ours, torch.no_grad():
            module(*args, **kwargs)
        assert str(ours.value).partition("\n")[0] == str(theirs.value).partition("\n")[0]
    with pytest.raises(RuntimeError, match="shapes"), torch.no_grad():
        module(torch.randn(4, 63))
    with torch.no_grad():
        assert module(x).shape == (4, 64)


@pytest.mark.parametrize("how", ["traced", "scripted", "loaded"])
def test_a_changed_weight_is_seen(at_once, how):
    model, x = Plain().eval(), torch.randn(4, 64)
    module = made(how, model, x)
    at_once("float32")
    call = settle(module, x)

    def check():
        with torch.no_grad():
            wanted = copy.deepcopy(module)(x)
        count, got = answered(call, lambda: module(x))
        assert error(got, wanted) < LIMIT["float32"]
        return count

    with torch.no_grad():
        dict(module.named_parameters())["first.weight"].mul_(2)
    assert check() == 1
    module.load_state_dict({name: torch.randn_like(value) / 8 for name, value in module.state_dict().items()})
    assert check() == 1
    if how != "traced":
        module.second.weight = nn.Parameter(torch.randn(64, 64))
        assert check() == 1
    if how != "loaded":
        dict(module.named_parameters())["first.weight"].data.add_(1)
        assert check() == 1
    module.to(torch.bfloat16)
    with torch.no_grad():
        assert module(x.bfloat16()).dtype is torch.bfloat16
    module.to(torch.float32)
    check()


def test_training_and_gradients_are_torchscripts(at_once):
    module, x = torch.jit.script(Branching().eval()), torch.randn(4, 64)
    at_once("float32")
    call = settle(module, x)
    count, _ = answered(call, lambda: module.train()(x))
    assert count == 0
    module.eval()
    before = call.account.calls
    module(x)[0].sum().backward()
    assert call.account.calls == before
    assert module.first.weight.grad is not None
    module.zero_grad()
    assert answered(call, lambda: module(x))[0] == 1


def test_a_mode_that_a_part_is_switched_to_is_seen(at_once):
    module, x = torch.jit.script(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).eval()), torch.randn(4, 64)
    at_once("float32")
    call = settle(module, x)
    getattr(module, "1").train()
    assert answered(call, lambda: module(x))[0] == 0
    assert int(getattr(module, "1").num_batches_tracked) == 1


@pytest.mark.parametrize("how", ["traced", "scripted", "frozen"])
def test_saving_copying_and_freezing_see_nothing(at_once, how):
    model, x = Plain().eval(), torch.randn(4, 64)
    module, untouched = made(how, model, x), made(how, model, x)
    at_once("float32")
    call = settle(module, x)
    assert call.ways
    assert module.code == untouched.code
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    loaded, twin = torch.jit.load(file), copy.deepcopy(module)
    assert slot.SLOT not in loaded.__dict__
    assert slot.SLOT not in twin.__dict__
    leaf_tier.uninstall()
    assert slot.SLOT not in torch.jit.ScriptModule.__dict__
    assert slot.SLOT not in module.__dict__
    with torch.no_grad():
        wanted = untouched(x)
        for other in (module, loaded, twin):
            torch.testing.assert_close(other(x), wanted)
        if how != "frozen":
            torch.testing.assert_close(torch.jit.freeze(module)(x), wanted)


def test_sizes_that_vary_share_a_graph(at_once):
    model, args = CASES["encoder"]()
    module = made("frozen", model, args)
    plain = copy.deepcopy(module)
    at_once("float32")
    sizes = [(2, 9), (3, 12), (2, 17), (4, 11)]
    inputs = [torch.randint(50, size) for size in sizes]
    call = settle(module, inputs[0])
    with torch.no_grad():
        for _ in range(3):
            for x in inputs[1:]:
                module(x)
            background.wait()
        before = call.account.calls
        for x in inputs:
            got, wanted = module(x), plain(x)
            for ours, theirs in zip(tensors(got), tensors(wanted), strict=True):
                assert error(ours, theirs) < LIMIT["float32"]
        assert call.account.calls == before + len(inputs)


class Reading(Plain):
    def forward(self, x):
        y = self.first(x)
        if bool(y.sum() > 0):
            y = self.second(y)
        return y


class Counting(Plain):
    def __init__(self):
        super().__init__()
        self.calls: int = 0

    def forward(self, x):
        self.calls += 1
        return self.second(self.first(x))


class Writing(Plain):
    def forward(self, x):
        x.add_(1)
        return self.second(self.first(x))


class Dropping(Plain):
    def forward(self, x):
        return self.second(F.dropout(self.first(x), 0.5, True))


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Reading, "value"), (Writing, "changes an input"), (Dropping, "dropout is active")],
)
def test_what_is_no_graph_is_left_alone(at_once, kind, why):
    module, x = torch.jit.script(kind().eval()), torch.randn(4, 64)
    at_once("float32")
    call = settle(module, x)
    assert not call.ways
    assert why in reasons()
    torch.manual_seed(1)
    y = x.clone()
    with torch.no_grad():
        got = module(y)
        torch.manual_seed(1)
        z = x.clone()
        assert torch.equal(got, module._call_impl(z))
    assert torch.equal(y, z)


def test_a_module_that_writes_into_itself_is_not_watched(at_once):
    """Its graph shows that at once, without what a capture has to load."""
    module, x = torch.jit.script(Counting().eval()), torch.randn(4, 64)
    at_once("float32")
    assert settle(module, x) is None
    assert "SetAttr" in reasons()
    assert module.calls == 5
    with torch.no_grad():
        assert torch.equal(module(x), module._call_impl(x))


@pytest.mark.parametrize("scripted", [True, False])
def test_a_model_that_is_refused_twice_is_let_go(at_once, monkeypatch, scripted):
    begin, begun = schedule.Schedule.begin, []
    monkeypatch.setattr(schedule.Schedule, "begin", lambda self: begun.append(1) or begin(self))
    model = Dropping().eval()
    module = torch.jit.script(model) if scripted else model
    at_once("float32")
    with torch.no_grad():
        for _ in range(3 * schedule.MOST_CAPTURES):
            module(torch.randn(4, 64))
            background.wait()
    assert "dropout is active" in reasons()
    assert len(begun) == 2  # a third would be refused for the same reason
    assert tier.root_call(module) is None
    torch.manual_seed(1)
    with torch.no_grad():
        got = module(torch.ones(4, 64))
    torch.manual_seed(1)
    assert torch.equal(got, module._call_impl(torch.ones(4, 64)))


def test_onednns_own_tensors_are_left_alone(at_once):
    model, args = CASES["residual"]()
    with torch.no_grad():
        module = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, args)))
        wanted = copy.deepcopy(module)(*args)
        at_once("float32")
        assert settle(module, *args) is None
        assert torch.equal(module(*args), wanted)


def test_hooks_are_called_and_what_they_return_counts(at_once):
    module, x = made("frozen", Plain().eval(), torch.randn(4, 64)), torch.randn(4, 64)
    at_once("float32")
    settle(module, x)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, result: result * 0)
    with torch.no_grad():
        assert not module(x).any()
        handle.remove()
        assert module(x).any()


def test_within_autocast_it_is_another_graph(at_once):
    module, x = made("frozen", Plain().eval(), torch.randn(4, 64)), torch.randn(4, 64)
    at_once("float32")
    call = settle(module, x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            got = module(x)
        wanted = copy.deepcopy(module)(x)
    assert got.dtype is wanted.dtype is torch.bfloat16
    assert answered(call, lambda: module(x))[1].dtype is torch.float32


def test_threads_share_it(at_once):
    module, x = made("frozen", Plain().eval(), torch.randn(4, 64)), torch.randn(4, 64)
    plain = copy.deepcopy(module)
    at_once("float32")
    settle(module, x)
    wrong = []

    def work(seed):
        y = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            for _ in range(50):
                if error(module(y), plain(y)) > LIMIT["float32"]:
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("how", ["traced", "frozen", "scripted"])
def test_what_is_made_from_an_optimized_model_has_its_dtype(at_once, how):
    """The recipe of intel_extension_for_pytorch: optimize, trace, freeze. No engine covers the process."""
    x = torch.randn(4, 64)
    other = made(how, Plain().eval(), x)
    module = made(how, optimize_model(Plain().eval(), dtype=torch.bfloat16), x)
    (way,) = settle(module, x).ways
    assert way.program.dtype is torch.bfloat16
    with torch.no_grad():
        other(x)
    assert slot.call_of(other) is None


def test_a_script_module_may_be_optimized_itself(at_once):
    module = optimize_model(made("frozen", Plain().eval(), torch.randn(4, 64)), dtype=torch.bfloat16)
    (way,) = settle(module, torch.randn(4, 64)).ways
    assert way.program.dtype is torch.bfloat16


@pytest.mark.parametrize("case", ["encoder", "encoder, gated", "residual", "gates"])
def test_exported_programs_get_a_graph(at_once, case):
    """Theirs is of aten's operators, which the passes know by torch's names."""
    model, args = CASES[case]()
    with torch.no_grad():
        wanted = model(*args)
    at_once("float32")
    module = torch.export.export(model, args).module()
    call = settle(module, *args)
    assert call.ways, reasons()
    count, got = answered(call, lambda: module(*args))
    assert count == 1
    for ours, theirs in zip(tensors(got), tensors(wanted), strict=True):
        assert error(ours, theirs) < LIMIT["float32"]


def test_an_exported_program_is_copied_pickled_and_checked_as_ever(at_once):
    x = torch.randn(4, 64)
    at_once("float32")
    module = torch.export.export(Plain().eval(), (x,)).module()
    call = settle(module, x)
    assert call.ways
    with torch.no_grad():
        wanted = module(x)
        torch.testing.assert_close(copy.deepcopy(module)(x), wanted)
        with pytest.raises((AssertionError, RuntimeError)):
            module(torch.randn(5, 64))
        handle = module.register_forward_hook(lambda module, args, result: result * 0)
        assert not module(x).any()
        handle.remove()
        module.first.weight.mul_(2)
        torch.testing.assert_close(module(x), copy.deepcopy(module)(x), rtol=1e-4, atol=1e-5)


def test_statistics_that_a_trace_keeps_up_to_date_are_torchscripts(at_once):
    model, x = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)), torch.randn(8, 64)
    module = torch.jit.trace(model, x, check_trace=False).eval()
    at_once("float32")
    call = settle(module, x)
    assert not call.ways
    assert int(getattr(module, "1").num_batches_tracked) == 6  # one was in the trace


def test_frozen_modules_of_other_architectures_are_told_apart():
    """They have no parts and no parameters: what is kept of races for later processes goes by their graphs."""
    from slipstream.optimize.graph.torchscript.call import _fingerprint

    x = torch.randn(4, 64)
    first, second = (made("frozen", Plain().eval(), x) for _ in range(2))
    other = made("frozen", nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32)).eval(), x)
    assert _fingerprint(first) == _fingerprint(second) != _fingerprint(other)
