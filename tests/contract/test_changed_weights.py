# SPDX-License-Identifier: Apache-2.0
"""However all weights of a model are changed, its next answer is by the new ones."""

import copy

import pytest
import torch
from judging import error
from zoo import LIMIT, MODELS, NOT_COPYABLE, call, check_same, fresh, made, parts


def new_state(model):
    """Half as large again, with a little noise, so that nothing cancels; integers and norms' statistics stay."""
    generator = torch.Generator().manual_seed(7)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: value if name not in names or not value.is_floating_point()
        else (1.5 * value + 0.02 * torch.randn(value.shape, generator=generator)).to(value.dtype)
        for name, value in model.state_dict().items()
    }  # fmt: skip


def in_place(model, state):
    for name, parameter in model.named_parameters():
        parameter.copy_(state[name])


def through_data(model, state):
    for name, parameter in model.named_parameters():
        parameter.data.copy_(state[name])


def data_assigned(model, state):
    for name, parameter in model.named_parameters():
        parameter.data = state[name].clone()


def loaded(model, state):
    model.load_state_dict(state)


def assigned(model, state):
    model.load_state_dict(copy.deepcopy(state), assign=True)
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def averaged(model, state):
    """As an exponential moving average is swapped in."""
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.detach().zero_()
    for (name, parameter), value in zip(model.named_parameters(), kept, strict=True):
        parameter.detach().add_(value).lerp_(state[name], 1.0)


WAYS = [in_place, through_data, data_assigned, loaded, assigned, averaged]
UNASSIGNABLE = {"translator", "shared weights"}
"""Assigning parts two modules that shared a parameter, also without us."""


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_COPYABLE])
@torch.no_grad()
def test_the_next_answer_is_by_the_new_weights(engine, name):
    made(name)
    model, inputs = fresh(name)
    before = call(model, inputs)
    first, second = copy.deepcopy(model.state_dict()), new_state(model)
    ways = [way for way in WAYS if not (way is assigned and name in UNASSIGNABLE)]
    wanted = {}
    for way in ways:
        plain, _ = fresh(name)
        call(plain, inputs)
        way(plain, second)
        wanted[way] = call(plain, inputs)
    floats = [(a, b) for a, b in zip(parts(before)[0], parts(wanted[ways[0]])[0], strict=True) if a.is_floating_point()]
    differ = max(error(a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)) for a, b in floats)
    assert differ > 100 * LIMIT["float32"], "an answer by the old weights would pass"
    engine("float32")
    for way in ways:
        model, _ = fresh(name)
        model.load_state_dict(first)
        call(model, inputs)
        way(model, second)
        check_same(call(model, inputs), wanted[way], 2 * LIMIT["float32"])


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_COPYABLE])
@torch.no_grad()
def test_a_copy_that_is_edited_leaves_its_original_alone(engine, name):
    made(name)
    model, inputs = fresh(name)
    wanted = call(model, inputs)
    plain = copy.deepcopy(model)
    edited = new_state(model)
    plain.load_state_dict(edited)
    wanted_of_copy = call(plain, inputs)
    engine("float32")
    model, _ = fresh(name)
    call(model, inputs)
    other = copy.deepcopy(model)
    other.load_state_dict(edited)
    check_same(call(other, inputs), wanted_of_copy, 2 * LIMIT["float32"])
    if name not in {"counting", "nested"}:  # they have counted a call more
        check_same(call(model, inputs), wanted, LIMIT["float32"])
