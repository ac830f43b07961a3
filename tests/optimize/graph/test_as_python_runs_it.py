# SPDX-License-Identifier: Apache-2.0
"""Where dynamo reads a script otherwise than Python runs it, a graph does what Python does, or there is none."""

import collections

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slipstream.optimize.graph.capturing import capture as capturing
from slipstream.optimize.graph.capturing.arguments import Arguments, function_of
from slipstream.optimize.graph.capturing.branches import OtherBranch, outcomes_here
from slipstream.optimize.graph.capturing.refusals import BranchOnValue, CaptureRefused
from slipstream.optimize.graph.mutation import make_pure
from tests.optimize.graph.meanings import given

X = torch.randn(2, 16)


def captured(model, x=X, **kwargs):
    with torch.inference_mode():
        return capturing.capture(model.eval(), (x,), {}, dynamic=False, **kwargs)


def answer(found, model, x=X):
    with torch.inference_mode():
        assert found.holds(Arguments(function_of(model)).bind(model, (x,), {}))
        return found.wrap(found.graph)(model, x)


def is_compiling():
    return torch.compiler.is_compiling()


@pytest.mark.parametrize("asked", [torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling, is_compiling])
def test_a_script_is_not_being_compiled(asked):
    def forward(self, x):
        return self.layers(x) * 100 if asked() else self.layers(x)

    model = given(forward)
    assert torch.equal(answer(captured(model), model), model(X))


def test_files_of_packages_that_write_masks_for_dynamo_are_told_so(monkeypatch):
    from transformers.utils import is_torchdynamo_compiling

    def forward(self, x):
        return self.layers(x) * 100 if is_torchdynamo_compiling() else self.layers(x)

    model = given(forward)
    assert torch.equal(answer(captured(model), model), model(X)), "it is who asks that counts, and not who answers"
    monkeypatch.setitem(forward.__globals__, "__name__", "transformers.masking_utils")
    assert torch.equal(answer(captured(model), model), model(X) * 100)


def test_a_deque_keeps_as_many_as_it_may():
    def forward(self, x):
        recent = self.recent
        return self.layers(x) + sum(recent), len(recent), recent.maxlen

    model = given(forward)
    model.recent = collections.deque((torch.full((16,), float(n)) for n in range(3)), maxlen=3)
    got, length, longest = answer(captured(model), model)
    assert (length, longest) == (3, 3)
    assert torch.equal(got, model(X)[0])

    def growing(self, x):
        self.recent.append(x)
        return self.layers(x) + sum(self.recent)

    model = given(growing)
    model.recent = collections.deque((torch.zeros(2, 16) for _ in range(3)), maxlen=3)
    with pytest.raises(CaptureRefused):
        captured(model)


ASSERTING = """
def with_message(self, x):
    assert x.abs().max() < 50, "too large"
    return self.layers(x)

def without(self, x):
    assert (x < 50).all()
    return self.layers(x)
"""
"""As text: pytest makes something else of the assertions in its files."""


@pytest.mark.parametrize("name", ["with_message", "without"])
def test_an_assertion_that_fails_is_an_assertion_error(name):
    functions = {}
    exec(ASSERTING, functions)
    model = given(functions[name])
    with pytest.raises(BranchOnValue):
        captured(model)
    with outcomes_here() as outcomes:
        model(X)
    found = captured(model, outcomes=outcomes)
    assert torch.equal(answer(found, model), model(X))
    with pytest.raises(OtherBranch):  # and the script's own forward raises what it raises
        answer(found, model, X * 100)


def test_numbers_of_numpy_are_not_handed_on_as_arrays():
    def forward(self, x):
        return self.layers(x), np.float64(2) * np.sqrt(x.shape[0])

    assert type(given(forward)(X)[1]) is np.float64
    with pytest.raises(CaptureRefused, match="a number of numpy's"):
        captured(given(forward))

    def array(self, x):
        return self.layers(x), np.arange(3) * 2

    model = given(array)
    got = answer(captured(model), model)[1]
    assert type(got) is np.ndarray and got.tolist() == [0, 2, 4]


@pytest.mark.parametrize("draw", [lambda: np.random.rand(16), lambda: np.random.normal(size=16), lambda: np.random.randn(16)])
def test_numpys_random_numbers_are_drawn_by_numpy(draw):
    def forward(self, x):
        return self.layers(x) + torch.from_numpy(draw()).float()

    model, before = given(forward), torch.get_rng_state()
    try:
        found = captured(model)
    except CaptureRefused:
        pass
    else:
        with pytest.raises(CaptureRefused, match="draws random numbers"):
            make_pure(found.graph.graph)
    assert torch.equal(torch.get_rng_state(), before)


class Base(nn.Module):
    def scaled(self, x):
        return x * 2


class Part(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.scaled(self.bent(self.layer(x))) * self.gain + self.shift() + self.moved() + super().scaled(x)

    def bent(self, x):
        return torch.relu(x)

    @property
    def gain(self):
        return 2.0

    @staticmethod
    def shift():
        return 1.0

    @classmethod
    def moved(cls):
        return 2.0


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.part, self.layer, self.act = Part(), nn.Linear(16, 16), nn.ReLU()

    def forward(self, x):
        return self.act(self.layer(self.part(x)))


REPLACED = {
    "forward": (Whole, "forward", lambda self, x: self.part(x)),
    "a part's forward": (Part, "forward", lambda self, x: self.layer(x)),
    "a part's method": (Part, "bent", lambda self, x: torch.tanh(x)),
    "one that a subclass did not have": (Part, "scaled", lambda self, x: x * 9),
    "one of its base": (Base, "scaled", lambda self, x: x * 9),
    "a property": (Part, "gain", property(lambda self: 5.0)),
    "a static method": (Part, "shift", staticmethod(lambda: 5.0)),
    "a class method": (Part, "moved", classmethod(lambda cls: 5.0)),
    "a layer's": (nn.Linear, "forward", lambda self, x: x @ self.weight.t()),
    "an activation's": (nn.ReLU, "forward", lambda self, x: torch.tanh(x)),
    "what calls all modules": (nn.Module, "__call__", lambda self, x: self.forward(x) * 2),
}


@pytest.mark.parametrize("which", REPLACED)
def test_what_is_replaced_in_a_class_is_what_is_called(monkeypatch, which):
    model = Whole().eval()
    found = captured(model)
    assert torch.equal(answer(found, model), model(X))
    with torch.inference_mode():
        monkeypatch.setattr(*REPLACED[which])
        assert not found.holds({"self": model, "x": X})
        monkeypatch.undo()
        assert found.holds({"self": model, "x": X})


def test_nothing_is_captured_that_somebody_else_calls(monkeypatch):
    monkeypatch.setattr(nn.Module, "__call__", lambda self, x: self._wrapped_call_impl(x))
    with pytest.raises(CaptureRefused, match="not PyTorch's own"):
        captured(Whole())


@pytest.mark.parametrize("name", ["batch_norm", "linear", "softplus", "relu"])
def test_a_function_of_torch_that_is_replaced_is_the_scripts(monkeypatch, name):
    """A graph's code finds functions by their names, where the script's may stand for one that calls torch's."""
    model, real = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Softplus()).eval(), getattr(F, name)
    before = captured(model)
    with torch.inference_mode():
        assert before.holds({"self": model, "input": X})
        monkeypatch.setattr(F, name, lambda *args, **kwargs: real(*args, **kwargs) * 3)
        assert not before.holds({"self": model, "input": X})
        try:
            found = captured(model)
        except CaptureRefused as error:
            assert f"another function in place of torch.nn.functional.{name}" in str(error)
        else:
            assert torch.equal(found.wrap(found.graph)(model, X), model(X))


@pytest.mark.parametrize(("owner", "name"), [(torch, "relu"), (torch, "mul"), (torch.Tensor, "relu"), (torch.Tensor, "mul")])
def test_a_graph_ends_with_the_functions_that_it_calls(monkeypatch, owner, name):
    def forward(self, x):
        x = torch.relu(self.layers(x)) if owner is torch else self.layers(x).relu()
        return torch.mul(x, 2) if owner is torch else x.mul(2)

    model, real = given(forward), getattr(owner, name)
    found = captured(model)
    assert torch.equal(answer(found, model), model(X))
    with torch.inference_mode():
        values = Arguments(function_of(model)).bind(model, (X,), {})
        assert found.holds(values)
        monkeypatch.setattr(owner, name, lambda *args: real(*args) * 3)
        assert not found.holds(values)
