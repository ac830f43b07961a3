# SPDX-License-Identifier: Apache-2.0
"""The script goes on while a capture reads its objects, and its objects go on when the capture has gone."""

import gc
import weakref

import pytest
import torch
from torch import nn

from slipstream.optimize.graph import background
from slipstream.optimize.graph.capturing import capture as capturing
from slipstream.optimize.graph.capturing.alive import Alive
from slipstream.optimize.graph.capturing.refusals import CaptureDisturbed
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import error

last = None


class Changing(nn.Module):
    """What a script may set at any time: numbers, lists, functions, tensors of another kind, in it or in its parts."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(16, 16)
        self.inside.offset = 1
        self.factor, self.name, self.steps, self.which = 2.0, "relu", [1, 2], {"a": 1}
        self.act, self.table = torch.relu, torch.ones(16)

    def forward(self, x):
        x = self.act(self.inside(x)) * self.factor + self.inside.offset + self.table
        for step in self.steps:
            x = x + step
        for key in self.which:
            x = x * self.which[key]
        return getattr(torch, self.name)(x)


CHANGES = {
    "a number": lambda model: setattr(model, "factor", 3.0),
    "a text": lambda model: setattr(model, "name", "sigmoid"),
    "a number of a part": lambda model: setattr(model.inside, "offset", 2),
    "a longer list": lambda model: model.steps.append(3),
    "another key": lambda model: model.which.update(b=2),
    "a function": lambda model: setattr(model, "act", torch.tanh),
    "another dtype": lambda model: setattr(model, "table", torch.ones(16, dtype=torch.float64)),
    "None": lambda model: setattr(model, "table", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_the_trace_and_its_guards_ends_the_capture(monkeypatch, change):
    from torch._dynamo import convert_frame

    model, x, real = Changing().eval(), torch.randn(2, 16), convert_frame.fullgraph_capture

    def fullgraph_capture(*args, **kwargs):
        traced = real(*args, **kwargs)
        CHANGES[change](model)
        return traced

    monkeypatch.setattr(convert_frame, "fullgraph_capture", fullgraph_capture)
    with torch.inference_mode(), pytest.raises(CaptureDisturbed, match="the script changed"):
        capturing.capture(model, (x,), {}, dynamic=False)


def test_what_stays_is_captured():
    model, x = Changing().eval(), torch.randn(2, 16)
    with torch.inference_mode():
        found = capturing.capture(model, (x,), {}, dynamic=False)
        assert found.holds({"self": model, "x": x})
        assert torch.equal(found.wrap(found.graph)(model, x), model(x))
        for change in CHANGES.values():
            other = Changing().eval()
            again = capturing.capture(other, (x,), {}, dynamic=False)
            change(other)
            assert not again.holds({"self": other, "x": x})


@needs_native
def test_calls_are_counted_though_captures_read_the_count(at_once):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.calls = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))), 0

        def forward(self, x):
            self.calls += 1
            return self.layers(x) + 1

    at_once("float32")
    models, x = [Counting().eval() for _ in range(2)], torch.randn(8, 64)
    with torch.inference_mode():
        for _ in range(300):
            for model in models:
                model(x)
    background.wait()
    assert [model.calls for model in models] == [300, 300]


class Leaving(nn.Module):
    """Its forward sets a global variable of this file, and gives back a function that reads another."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        global last  # noqa: PLW0603 - what it is about
        last = x
        return torch.relu(self.layer(x)), lambda: needs_native


@needs_native
def test_globals_are_the_script_s_own(at_once):
    at_once("float32")
    before = set(globals())
    model = Leaving().eval()
    root = settle(model, torch.randn(2, 16))
    (way,) = root.ways
    assert set(globals()) > before
    calls = root.account.calls
    for _ in range(3):
        x = torch.randn(2, 16)
        with torch.inference_mode():
            got, function = model(x)
            assert error(got, torch.relu(nn.functional.linear(x, model.layer.weight, model.layer.bias))) < 1e-6
        assert last is x
        assert function() is needs_native
    assert root.account.calls == calls + 3
    del model, root, way, function
    gc.collect()
    assert {name for name in set(globals()) - before if not name.startswith("__import_")} == set()


@needs_native
def test_models_that_come_and_go_leave_no_graphs_behind(at_once):
    at_once("float32")

    def left():
        gc.collect()
        graphs = sum(type(one) is torch.fx.Graph for one in gc.get_objects())
        return graphs, sorted(vars(nn.modules.container)), len(weakref.finalize._registry)

    def come_and_go():
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
        assert settle(model, torch.randn(2, 16)).ways

    come_and_go()
    before = left()
    for _ in range(3):
        come_and_go()
    assert left() == before


def test_a_capture_ends_with_what_its_guards_know_by_address(monkeypatch):
    """Python puts the next class where the last one was."""

    class Acting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), type("Act", (), {"offset": 2})()

        def forward(self, x):
            return self.layer(x) + self.act.offset

    made = []
    monkeypatch.setattr(capturing, "Alive", lambda: made.append(Alive()) or made[-1])
    model, x = Acting().eval(), torch.randn(2, 4)
    with torch.inference_mode():
        held = capturing.capture(model, (x,), {}, dynamic=False).holds
        assert held({"self": model, "x": x})
        other = Acting().eval()
        assert made[0].all
        act, model.act = model.act, other.act
        assert not held({"self": model, "x": x})
        model.act = act
        assert held({"self": model, "x": x})
        del act, model.act
        gc.collect()
        assert not made[0].all
        assert not held({"self": other, "x": x})
