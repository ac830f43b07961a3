# SPDX-License-Identifier: Apache-2.0
"""Where a model is no graph, the models that it is made of may be: each is captured, proved and raced by itself."""

import copy
import os

import pytest
import torch
from torch import nn

from slipstream.optimize.graph import background, tier
from slipstream.optimize.graph.capturing.refusals import CaptureTakesLong
from slipstream.optimize.graph.root import RootCall
from slipstream.optimize.unrecorded import unrecorded
from tests.optimize.graph.conftest import needs_native
from tests.optimize.judging import LIMIT, decisions, error

pytestmark = needs_native


class Part(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Draws(Part):
    """A part that is no graph itself, of parts that are."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, x):
        return self.inside(x) + torch.rand(16)


class Whole(nn.Module):
    """It draws random numbers, and calls parts by attribute, from a list, and from a dictionary."""

    def __init__(self, kind=Part):
        super().__init__()
        self.first = kind()
        self.several = nn.ModuleList(kind() for _ in range(2))
        self.named = nn.ModuleDict({"last": kind()})
        self.out = nn.Linear(16, 8)

    def forward(self, x):
        x = self.first(x) + torch.rand(16)
        for part in self.several:
            x = part(x)
        return self.out(self.named["last"](x))


def called(model, x, times=1):
    results = []
    for _ in range(times):
        torch.manual_seed(3)
        with torch.inference_mode():
            results.append(model(x))
        background.wait()
    return results[-1]


def graphs(model):
    """The modules that a graph answers for, by name."""
    found = {name: tier.root_call(part) for name, part in model.named_modules()}
    return {name for name, call in found.items() if call is not None and call.ways}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_part_has_a_graph(at_once, dtype):
    model, x = Whole().eval(), torch.randn(2, 5, 16)
    wanted = called(model, x)
    at_once(dtype)
    called(model, x, 12)
    assert graphs(model) == {"first", "several.0", "several.1", "named.last"}
    assert tier.root_call(model) is None
    for weight in (1.0, -2.0):
        with torch.no_grad():
            model.several[1].up.weight.mul_(weight)
        if weight == 1.0:
            assert error(called(model, x), wanted) < LIMIT[dtype]
        else:
            assert error(called(model, x), wanted) > 0.01
    assert {"Whole.first.graph: whole model", "Whole.several.0.graph: whole model"} <= set(decisions(taken=True))


def test_what_one_of_a_kind_was_refused_for_others_are_not_tried_for(at_once, monkeypatch):
    captured = []
    real = RootCall._captured

    def counted(self, module, *args, **kwargs):
        captured.append(type(module).__name__)
        return real(self, module, *args, **kwargs)

    monkeypatch.setattr(RootCall, "_captured", counted)
    model, x = Whole(Draws).eval(), torch.randn(2, 5, 16)
    wanted = called(model, x)
    at_once("float32")
    called(model, x, 24)
    assert graphs(model) == {"first.inside", "several.0.inside", "several.1.inside", "named.last.inside"}
    assert captured.count("Whole") == 2
    assert captured.count("Draws") == 2
    assert error(called(model, x), wanted) < LIMIT["float32"]


@pytest.mark.parametrize("why", ["nothing in it is ours", "it takes long"])
def test_what_holds_of_its_parts_too_ends_it(at_once, monkeypatch, why):
    class Sum(nn.Module):
        def forward(self, x):
            return x.sin() * 3

    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.sum, self.unused = nn.Sequential(Sum(), Sum()), nn.Linear(2, 2)

        def forward(self, x):
            return self.sum(x) + (self.unused(x[..., :2]).sum() if x.shape[0] > 100 else 0)

    model, x = (Sums() if why == "nothing in it is ours" else Whole()).eval(), torch.randn(101, 5, 16)

    def too_long(*_, **__):
        raise CaptureTakesLong("reading its code takes long")

    if why == "it takes long":
        monkeypatch.setattr(RootCall, "_captured", too_long)
    at_once("float32")
    called(model, x)  # meets the layers
    x = x[:3]
    called(model, x, 8)
    assert not graphs(model)
    assert sum("graph: whole model" in what for what in decisions()) == 1


def test_calls_that_record_gradients_still_need_not(at_once, monkeypatch):
    """The model's own call, which sees to that, stays for them."""

    class Logs(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Part()

        def forward(self, x):
            with open(os.devnull, "w") as log:
                log.write("seen")
            return self.part(x) * 2

    monkeypatch.setattr(unrecorded, "SHARE", 1e9)  # however short they are
    model, x = Logs().eval(), torch.randn(2, 5, 16)
    wanted = called(model, x)
    at_once("float32")
    for _ in range(40):
        got = model(x)
        background.wait()
    assert tier.root_call(model) is not None
    assert graphs(model) == {"part"}
    assert error(got.detach(), wanted) < LIMIT["float32"]
    got.sum().backward()
    assert model.part.up.weight.grad.norm() > 0


def test_a_part_that_is_to_be_skipped_is(at_once, monkeypatch):
    monkeypatch.setenv("SLIPSTREAM_SKIP", "Whole.first.graph, Whole.several.0.up")
    model, x = Whole().eval(), torch.randn(2, 5, 16)
    at_once("float32")
    called(model, x, 12)
    assert graphs(model) <= {"several.1", "named.last"}


def test_the_scripts_own_compilation_and_copies_see_plain_parts(at_once):
    model, x = Whole().eval(), torch.randn(2, 5, 16)
    wanted = called(model, x)
    at_once("float32")
    called(model, x, 12)
    assert graphs(model)
    torch._dynamo.reset()
    assert error(called(torch.compile(model, backend="eager", fullgraph=True), x, 2), wanted) < 1e-5
    copied = copy.deepcopy(model)
    assert all(tier.root_call(part) is None for part in copied.modules())
    exported = torch.export.export(model.first, (x,)).module()
    assert error(exported(x), model.first(x)) < 1e-5


def test_within_another_model(at_once):
    """What was the outermost model may become a part itself, of one that is captured as a whole."""
    model, x = Whole().eval(), torch.randn(2, 5, 16)
    at_once("float32")
    called(model, x, 12)
    around = nn.Sequential(nn.Linear(16, 16), model.first, nn.Linear(16, 16)).eval()
    wanted = called(around, x)
    called(around, x, 6)
    assert tier.root_call(around).ways
    assert error(called(around, x), wanted) < LIMIT["float32"]


def test_a_row_of_modules_says_nothing_of_other_rows(at_once):
    """The first one has nothing that is faster here; the second is tried all the same."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.busy = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (5, 16))), nn.Sequential(Part(), Part())

        def forward(self, x):
            return self.busy(self.idle(x)) + torch.rand(16)

    model, x = Rows().eval(), torch.randn(2, 5, 16)
    wanted = called(model, x)
    at_once("float32")
    called(model, x, 12)
    assert graphs(model) == {"busy"}
    assert error(called(model, x), wanted) < LIMIT["float32"]


def test_one_that_is_called_no_more_is_not_waited_for(at_once):
    """It was refused once, and its second try never comes."""

    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.unlike = nn.ModuleList(Unlike() for _ in range(2)), True
            self.parts[0].is_graph = False

        def forward(self, x, which):
            return self.parts[which](x) + torch.rand(16)

    class Unlike(Part):
        is_graph = True

        def forward(self, x):
            return super().forward(x) if self.is_graph else super().forward(x) + torch.rand(16)

    model, x = Once().eval(), torch.randn(2, 5, 16)

    def call(which, times):
        for _ in range(times):
            called(lambda given: model(given, which), x)

    def tries(part):
        found = tier.root_call(part)
        return 0 if found is None else found.schedule.captures

    call(0, 1)
    at_once("float32")
    for _ in range(24):
        if not tries(model.parts[0]):
            call(0, 1)
    assert tries(model.parts[0]) == 1
    call(1, tier.MOST_WAITED)
    assert graphs(model) == set()
    call(1, 12)
    assert graphs(model) == {"parts.1"}


class Around(nn.Module):
    """A model that is a graph, of one that is."""

    def __init__(self):
        super().__init__()
        self.inside, self.out = Part(), nn.Linear(16, 8)

    def forward(self, x):
        return self.out(self.inside(x))


@pytest.mark.parametrize("kind", ["a hook", "a forward of its own"])
def test_where_a_model_has_hooks_its_parts_have_graphs(at_once, kind):
    model, x, seen = Around().eval(), torch.randn(2, 5, 16), []
    if kind == "a hook":
        handle = model.register_forward_hook(lambda module, given, made: seen.append(made))
    else:
        forward = model.forward
        model.forward = lambda x: seen.append(x) or forward(x)
    wanted = called(model, x)
    at_once("float32")
    called(model, x, tier.MOST_ASIDE)
    assert graphs(model) == set()
    called(model, x, 12)
    assert graphs(model) == {"inside"}
    assert len(seen) == 1 + tier.MOST_ASIDE + 12
    assert error(called(model, x), wanted) < LIMIT["float32"]
    if kind == "a hook":
        handle.remove()
        called(model, x, 12)
        assert graphs(model) >= {"", "inside"}
        assert error(called(model, x), wanted) < LIMIT["float32"]


def test_parts_of_a_model_that_trains_with_hooks_are_left_alone(at_once):
    model, x = Around().train(), torch.randn(2, 5, 16)
    model.register_forward_hook(lambda *_: None)
    at_once("float32")
    called(model, x, tier.MOST_ASIDE + 12)
    assert graphs(model) == set()
