# SPDX-License-Identifier: Apache-2.0
"""Answers: structure, dtype, shape, strides, values, random numbers, and the model itself are what they were."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from judging import decisions
from zoo import LIMIT, MODELS, NOT_COPYABLE, UNPICKLABLE, UNTOUCHED, call, check_same, made, parts, plain_answer, portrait

from slipstream.kernels import native

DRAWING = {"vilt", "counting", "locked", "random anyway"}
"""Count or draw in evaluation too: what two threads get depends on who comes first, also without us."""


def check_nothing_failed():
    assert not any("slipstream failed" in reason for reason in decisions().values()), decisions()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_model_answers_as_before(engine, name, dtype):
    wanted, random_state = plain_answer(name)
    model, inputs = made(name)
    engine(dtype)
    for _ in range(3):
        check_same(call(model, inputs), wanted, LIMIT[dtype])
        assert torch.equal(torch.get_rng_state(), random_state)
    check_nothing_failed()
    if native.available():  # without the extension float32 is mostly left to torch
        assert bool(decisions(taken=True)) is (name not in UNTOUCHED), "a test of the original would prove nothing"


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_model_stays_what_it_is(engine, name):
    wanted, _ = plain_answer(name)
    model, inputs = made(name)
    call(model, inputs)  # counters and buffers of its own
    before = portrait(model)
    engine("float32")
    names = [type(module) for module in model.modules()]
    with torch.no_grad():
        for _ in range(2):
            call(model, inputs)
    after = portrait(model)
    assert after[1:] == before[1:] and names == after[1]
    if name != "nested":  # it counts its calls in a buffer
        assert after[0] == before[0]
    copies = [] if name in NOT_COPYABLE else [copy.deepcopy(model)]
    if name not in UNPICKLABLE and picklable(model):
        copies.append(pickle.loads(pickle.dumps(model)))
    for other in copies:
        assert not any("_compiled_call_impl" in vars(module) for module in other.modules())
        check_same(call(other, inputs), wanted, LIMIT["float32"])


def picklable(model):
    """Some of transformers' models hold local functions and cannot be pickled by themselves."""
    try:
        pickle.dumps(model.__reduce_ex__(2)[0])
        plain = copy.deepcopy(model)
        return bool(pickle.dumps(plain))
    except (AttributeError, RuntimeError, pickle.PicklingError):
        return False


@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_mode(engine, name):
    wanted, _ = plain_answer(name)
    model, inputs = made(name)
    recorded = call(model, inputs)
    engine("float32")
    with torch.inference_mode():
        check_same(call(model, inputs), wanted, LIMIT["float32"])
    again = call(model, inputs)
    check_same(again, recorded, LIMIT["float32"])
    with torch.no_grad():
        check_same(call(model, inputs), wanted, LIMIT["float32"])
    assert [y.requires_grad for y in parts(again)[0]] == [y.requires_grad for y in parts(recorded)[0]]
    check_nothing_failed()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_users_autocast_keeps_its_meaning(engine, name):
    def under_autocast():
        with torch.autocast("cpu", torch.bfloat16):
            try:
                return call(model, inputs)
            except RuntimeError as error:  # not every model can take it
                return str(error)

    model, inputs = made(name)
    wanted = under_autocast()
    engine("bfloat16")
    call(model, inputs)
    # float16 rounds by itself: both are as far from float32, and from each other (CLIP's scores: 2.1e-2 and 2.5e-2)
    limit = LIMIT["bfloat16"] * (2 if native.active_level() == native.FLOAT16 else 1)
    for _ in range(2):
        check_same(under_autocast(), wanted, limit)
    check_nothing_failed()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in DRAWING])
def test_two_threads_at_once(engine, name):
    wanted, _ = plain_answer(name)
    model, inputs = made(name)
    engine("float32")

    def ask(_):
        with torch.no_grad():
            return model(**inputs) if isinstance(inputs, dict) else model(*inputs)

    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(ask, range(4)):
            check_same(got, wanted, LIMIT["float32"])
    check_nothing_failed()
