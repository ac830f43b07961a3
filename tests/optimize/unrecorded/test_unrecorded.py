# SPDX-License-Identifier: Apache-2.0
"""Calls in `eval()` with gradients on run without a record where nobody asks for gradients; who asks gets the original's."""

import copy
import gc
import random
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import nn

from slipstream.decision import log
from slipstream.optimize.graph import background, tier
from slipstream.optimize.unrecorded import unrecorded
from slipstream.optimize.unrecorded.unrecorded import Unrecorded
from tests.optimize.graph.conftest import at_once, needs_native  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings("ignore:Can't initialize NVML")


class Result(NamedTuple):
    scores: torch.Tensor
    hidden: torch.Tensor | None
    rows: int
    extras: dict[str, torch.Tensor]


class Network(nn.Module):
    """Results of every kind: repeated, a view of something within, one that needs no gradient, numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x, *, hidden=True):
        h = self.norm(self.first(x).relu())
        y = self.second(self.dropout(h))
        return Result(y, h[:, :5] if hidden else None, x.shape[0], {"same": y, "table": self.table * 2})


class Calls:
    """A model behind `Unrecorded`, and what answered: "plain" or "fast"."""

    def __init__(self, model):
        self.model = model
        self.unrecorded = Unrecorded("a model: gradients")
        self.ways = []

    def __call__(self, *args, **kwargs):
        return self.unrecorded.answer(
            self.model, args, kwargs, lambda: self.by("plain", args, kwargs), lambda: self.by("fast", args, kwargs)
        )

    def by(self, way, args, kwargs):
        self.ways.append(way)
        assert torch.is_grad_enabled() is (way == "plain")
        return self.model(*args, **kwargs)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """After two calls, however short they are."""
    monkeypatch.setattr(unrecorded, "WATCHED", 2)
    monkeypatch.setattr(unrecorded, "SHARE", float("inf"))


@pytest.fixture
def x():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(1)
    model = Network()
    model(torch.randn(32, 6))  # statistics that are not 0 and 1
    return model.eval()


@pytest.fixture
def calls(model, x):
    """Watched for long enough."""
    calls = Calls(model)
    for _ in range(2):
        calls(x)
    assert calls.ways == ["plain", "plain"]
    calls.ways.clear()
    return calls


def loss(result):
    return (result.scores**3).sum() + (result.hidden**2).sum() + result.extras["same"].mean()


def gradients(model, value, **settings):
    return torch.autograd.grad(value, list(model.parameters()), **settings)


def test_results_are_what_they_are(calls, model, x):
    got, wanted = calls(x), model(x)
    assert calls.ways == ["fast"]
    assert type(got) is Result and got.rows == 5 and got.extras["same"] is got.scores
    for one, other in ((got.scores, wanted.scores), (got.hidden, wanted.hidden), (got.extras["table"], wanted.extras["table"])):
        assert torch.equal(one, other)
        assert (one.requires_grad, one.is_leaf, one.stride()) == (other.requires_grad, other.is_leaf, other.stride())
        assert repr(one) == repr(other)  # with the name of what made it


def test_gradients_are_the_originals(calls, model, x):
    wanted = gradients(model, loss(model(x)))
    got = gradients(model, loss(calls(x)))
    assert calls.ways == ["fast", "plain"]
    assert all(map(torch.equal, got, wanted))


def test_they_reach_parameters_as_ever(calls, model, x):
    plainly = copy.deepcopy(model)
    loss(plainly(x)).backward()
    heard = []
    model.first.weight.register_post_accumulate_grad_hook(heard.append)
    loss(calls(x)).backward()
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(model.parameters(), plainly.parameters(), strict=True))
    assert [id(one) for one in heard] == [id(model.first.weight)]


def test_twice_differentiated(calls, model, x):
    def second(result):
        first = gradients(model, loss(result), create_graph=True)
        return gradients(model, sum((g**2).sum() for g in first), allow_unused=True)

    for got, wanted in zip(second(calls(x)), second(model(x)), strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted)


def test_some_parameters_some_results(calls, model, x):
    model.first.requires_grad_(False)
    wanted = torch.autograd.grad(model(x).scores.sum(), model.second.weight)
    got = torch.autograd.grad(calls(x).scores.sum(), model.second.weight)
    assert torch.equal(got[0], wanted[0])


def test_the_first_backward_ends_it(calls, x):
    loss(calls(x)).backward()
    calls.ways.clear()
    calls(x)
    assert calls.ways == ["plain"]
    assert any("gradients are wanted" in decision.reason for decision in log)


def test_a_backward_of_a_watched_call_ends_it_before_it_began(model, x):
    calls = Calls(model)
    for _ in range(4):
        loss(calls(x)).backward()
    assert calls.ways == ["plain"] * 4


def test_memory_is_freed_and_versions_are_checked(calls, model, x):
    value = loss(calls(x))
    value.backward(retain_graph=True)
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_nothing_outlives_its_result(calls, x):
    gc.collect()
    gc.disable()
    try:
        result = calls(x)
        kept = [weakref.ref(result.scores), weakref.ref(result.hidden), weakref.ref(result.scores.grad_fn)]
        del result
        assert [one() for one in kept] == [None] * 3
    finally:
        gc.enable()


def test_weights_that_changed_meanwhile_are_told(calls, model, x):
    value = loss(calls(x))
    with torch.no_grad():
        model.second.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_model_that_trains_by_then_is_computed_as_it_was(calls, model, x):
    wanted = gradients(model, loss(model(x)))
    value = loss(calls(x))
    model.train()
    assert all(map(torch.equal, gradients(model, value), wanted))
    assert model.training and model.dropout.training


def test_results_may_be_changed_in_place(calls, model, x):
    def changed(result):
        result.scores[:, 0] = 0
        return result.scores.mul_(2).sum() + result.hidden.sum()

    assert all(map(torch.equal, gradients(model, changed(calls(x))), gradients(model, changed(model(x)))))


def with_hooks(model):
    return model.second.register_forward_hook(lambda *_: None)


def in_training(model):
    model.dropout.train()


def heard_gradients(model):
    return model.second.weight.register_hook(lambda gradient: gradient)


def compiled(model):
    model.second.compile(backend="eager")


@pytest.mark.parametrize("change", [with_hooks, in_training, heard_gradients, compiled], ids=lambda change: change.__name__)
def test_it_stands_aside_for(calls, model, x, change):
    change(model)
    calls(x)
    assert calls.ways == ["plain"]


def test_inputs_that_want_gradients(calls, x):
    calls(x.requires_grad_())
    assert calls.ways == ["plain"]


def test_what_may_hold_anything(calls, model, x):
    model.forward = lambda x, settings: Network.forward(model, x)
    calls(x, settings=object())
    assert calls.ways == ["plain"]


def test_nothing_wants_gradients(calls, model, x):
    model.requires_grad_(False)
    assert not calls(x).scores.requires_grad
    assert calls.ways == ["fast"]


def test_results_of_another_form(calls, model, x):
    assert calls(x, hidden=False).hidden is None
    calls(x)
    assert calls.ways == ["fast", "plain", "plain"]


class Keeping(Network):
    def forward(self, x):
        self.kept = [self.first(x)]
        return self.second(self.norm(self.kept[0]))


class Drawing(Network):
    def forward(self, x):
        return super().forward(x).scores + random.random()


class Returning(Network):
    def forward(self, x):
        return super().forward(x).scores, x[:2]


class Pooling(Network):
    def forward(self, x):
        hidden = self.first(x)
        return hidden, self.second(hidden)


class Borrowing(Network):
    """Weights that its `parameters` do not know of."""

    def __init__(self):
        super().__init__()
        self.others = [nn.Linear(4, 4)]

    def forward(self, x):
        return self.others[0](super().forward(x).scores)


class Wrapping(Network):
    def forward(self, x):
        return {super().forward(x).scores}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Keeping, "keeps"),
        (Drawing, "random"),
        (Returning, "share memory"),
        (Wrapping, "holds a set"),
        (Pooling, "depend on"),
        (Borrowing, "no parameter"),
    ],
)
def test_what_speaks_against_it(kind, why, x):
    calls = Calls(kind().eval())
    for _ in range(4):
        calls(x)
    assert calls.ways == ["plain"] * 4
    assert any(why in decision.reason for decision in log)


def test_short_calls_are_left_alone(monkeypatch, model, x):
    monkeypatch.setattr(unrecorded, "SHARE", 0.0)
    calls = Calls(model)
    for _ in range(unrecorded.SHORT + 1):
        assert not calls.unrecorded.is_given_up
        calls(x)
    assert calls.unrecorded.is_given_up
    assert set(calls.ways) == {"plain"}


@needs_native
def test_a_graph_answers_a_script_that_forgot_no_grad(at_once, model, x):  # noqa: F811
    wanted = model(x)
    wanted_gradients = gradients(model, loss(wanted))
    at_once("float32")
    for _ in range(8):
        got = model(x)
        background.wait()
    (way,) = tier.root_call(model).ways
    assert True in way.won.values()
    torch.testing.assert_close(got.scores, wanted.scores)
    for one, other in zip(gradients(model, loss(got)), wanted_gradients, strict=True):
        torch.testing.assert_close(one, other)
