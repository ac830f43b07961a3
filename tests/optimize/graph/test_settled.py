# SPDX-License-Identifier: Apache-2.0
"""A graph that looks at all packs once a call answers the same bits, and sees each change of a weight that operators see."""

import copy

import pytest
import torch
from torch import nn

from slipstream.optimize import packs
from slipstream.optimize.graph import settled
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.graph.models import CASES
from tests.optimize.graph.test_answers import even_same, plain, tensors
from tests.optimize.judging import LIMIT, error

pytestmark = [needs_native, pytest.mark.filterwarnings("ignore:LSTM with projections")]


class Bottleneck(nn.Module):
    """Every way of a convolution that has a quick call, and linears with and without rows of their own."""

    def __init__(self):
        super().__init__()
        self.reduce, self.conv, self.expand = nn.Conv2d(64, 32, 1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 64, 1, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (32, 32, 64))
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 2.0)
        self.query, self.key, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 16)

    def forward(self, x):
        y = self.norms[0](self.reduce(x)).relu()
        y = self.norms[1](self.conv(y)).relu()
        y = (self.norms[2](self.expand(y)) + x[:, :, ::2, ::2]).relu().mean((2, 3))
        return self.last(torch.nn.functional.gelu(self.query(y)) * self.key(y))


@pytest.fixture
def model(at_once):
    made = Bottleneck().eval()
    at_once("float32")
    return made


def image():
    return torch.randn(2, 64, 20, 20)


def settled_program(model, *args):
    """Call until the graph is settled; returns its program."""
    (way,) = settle(model, *args).ways
    for _ in range(2):
        plain(model, *args)
    assert way.program.broken is None
    return way.program


@even_same
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits(at_once, case, dtype):
    model, args = CASES[case]()
    at_once(dtype)
    program = settled_program(model, *args)
    if program.lowered.regions or program.settling.settled is None:
        pytest.skip("nothing in it has a pack")
    got = plain(model, *args)
    assert program.settling.settled is not None
    program.settling.settled, program.settling.pause = None, 10**6
    for ours, unsettled in zip(tensors(got), tensors(plain(model, *args)), strict=True):
        torch.testing.assert_close(ours, unsettled, rtol=0, atol=0, equal_nan=True)
    assert program.settling.settled is None


def in_place(model):
    with torch.no_grad():
        model.expand.weight.mul_(-2)


def in_place_of_a_buffer(model):
    model.norms[1].running_mean.add_(1)


def in_place_of_a_bias(model):
    with torch.no_grad():
        model.last.bias.add_(3)


def through_data(model):
    model.conv.weight.data.mul_(-2)


def other_data(model):
    model.last.weight.data = torch.randn_like(model.last.weight)


def other_data_of_a_bias(model):
    model.last.bias.data = torch.randn_like(model.last.bias)


def another_parameter(model):
    model.key.weight = nn.Parameter(torch.randn_like(model.key.weight))


def another_state(model):
    state = {name: value + 0.5 for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(state, strict=False)


def another_state_assigned(model):
    state = {name: value + 0.5 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


CHANGES = [
    in_place, in_place_of_a_buffer, in_place_of_a_bias, through_data, other_data, other_data_of_a_bias, another_parameter,
    another_state, another_state_assigned,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_answered_at_once(model, change):
    x = image()
    program = settled_program(model, x)
    assert program.settling.settled is not None
    old = plain(model, x)
    change(model)
    wanted = copy.deepcopy(model).double().forward(x.double())
    for _ in range(6):  # until it is settled again
        got = plain(model, x)
        assert error(got, wanted) < LIMIT["float32"]
        assert error(got, old.double()) > 10 * LIMIT["float32"]


def test_an_optimizer_that_counts_no_versions(model):
    x = image()
    settled_program(model, x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        model(x).sum().backward()
    optimizer.step()
    for _ in range(4):
        assert error(plain(model, x), copy.deepcopy(model).double().forward(x.double())) < LIMIT["float32"]


def test_packs_made_invalid_or_moved_do_not_hold(model):
    x = image()
    program = settled_program(model, x)
    taken = []
    program.settling.way = taken.append
    plain(model, x)
    (inputs,) = taken
    made = settled.Settled(program.lowered.fast, inputs)
    assert made.holds(inputs)
    packs.spoil(nn.Parameter(torch.ones(1)))  # of nobody here
    assert made.holds(inputs) and made.changes == packs.changes()
    pack, content = made.held[0]
    packs.rehouse(pack, copy.copy(content))
    assert not made.holds(inputs)
    made = settled.Settled(program.lowered.fast, inputs)
    assert made.holds(inputs)
    packs.drop_all()
    assert not made.holds(inputs)
    with pytest.raises(settled.Unsettled):
        settled.Settled(program.lowered.fast, inputs)


def test_other_tensors_do_not_hold(model):
    x = image()
    program = settled_program(model, x)
    inputs = []
    made, program.settling.settled = program.settling.settled, None
    program.settling.way = inputs.append
    plain(model, x)
    others = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in inputs[0])
    assert made.holds(inputs[0])
    assert not made.holds(others)


def test_weights_that_keep_changing_are_settled_ever_more_rarely(model):
    x = image()
    program = settled_program(model, x)
    times = 0
    for _ in range(40):
        before = program.settling.settled
        plain(model, x)
        times += program.settling.settled not in (before, None)
        in_place_of_a_buffer(model)
    assert times <= 6


def inputs_of(program, model, *args):
    """What a call gives to the graph."""
    seen = []
    way = program.settling.way
    program.settling.way = lambda inputs: (seen.append(inputs), way(inputs))[1]
    plain(model, *args)
    del program.settling.way
    return seen[0]


def test_it_settles_on_packs_of_the_calls_own_weights(model):
    """Where a thread settles before the operators have met weights that were exchanged, they have packs of the old ones."""
    program = settled_program(model, image())
    fast, inputs = program.lowered.fast, inputs_of(program, model, image())
    others = [nn.Parameter(given.detach() + 1) if isinstance(given, nn.Parameter) else given for given in inputs]
    others = [given.clone() if given.dim() == 1 and not isinstance(given, nn.Parameter) else given for given in others]
    with torch.inference_mode(), pytest.raises(settled.Unsettled):
        settled.Settled(fast, tuple(others))


def test_it_settles_on_packs_of_the_right_operators(model):
    """The weights are all known, but at other places."""
    program = settled_program(model, image())
    inputs = list(inputs_of(program, model, image()))
    query, key = (next(n for n, given in enumerate(inputs) if given is layer.weight) for layer in (model.query, model.key))
    inputs[query], inputs[key] = inputs[key], inputs[query]
    with torch.inference_mode():
        (got,), (wanted,) = settled.Settled(program.lowered.fast, inputs).run(*inputs), program.lowered.reference(*inputs)
    assert error(got, wanted) < LIMIT["float32"]
