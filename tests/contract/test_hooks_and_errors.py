# SPDX-License-Identifier: Apache-2.0
"""Hooks see every call in the same order with the same forms; bad input gets the error that torch gives."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from zoo import A_FEW, LIMIT, MODELS, call, check_same, fresh, made, plain_answer

from slipstream.optimize import attention, leaf_tier


def hooked(model, inputs, which):
    """What hooks on the modules that ``which`` chooses see in one call."""
    seen = []

    def note(name):
        def hook(module, args, *rest):
            shapes = [(y.dtype, y.shape, y.stride()) if isinstance(y, torch.Tensor) else type(y) for y in (*args, *rest)]
            seen.append((name, type(module), shapes))

        return hook

    handles = []
    for name, module in model.named_modules():
        if which(name, module):
            handles.append(module.register_forward_pre_hook(note(name)))
            handles.append(module.register_forward_hook(note(name)))
    try:
        return call(model, inputs), seen
    finally:
        for handle in handles:
            handle.remove()


CHOICES = {
    "all": lambda name, module: True,
    "the root": lambda name, module: not name,
    "every third": lambda name, module: len(name) % 3 == 0,
    "norms and activations": lambda name, module: any(part in type(module).__name__ for part in ("Norm", "LU", "Act")),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_hooks_see_the_same_calls(engine, name):
    plain_answer(name)
    model, inputs = made(name)
    wanted = {choice: hooked(model, inputs, which) for choice, which in CHOICES.items()}
    engine("float32")
    call(model, inputs)
    for choice, which in CHOICES.items():
        answer, seen = hooked(model, inputs, which)
        assert seen == wanted[choice][1]
        check_same(answer, wanted[choice][0], LIMIT["float32"])


def classes_in(model):
    """Those of its modules that have a forward, the outermost first."""
    return [kind for kind in dict.fromkeys(map(type, model.modules())) if kind.forward is not nn.Module.forward]


def put_into(patch, calls, *, kind, name):
    """Another function of this name into a class or a file, which notes its calls and answers twice as much."""
    function = getattr(kind, name)

    def twice(*args, **kwargs):
        calls.append(type(args[0]))
        y = function(*args, **kwargs)
        return y * 2 if torch.is_tensor(y) and y.is_floating_point() else y

    patch.setattr(kind, name, twice)


def obeyed(engine, monkeypatch, name, replace, *, beforehand):
    """Whether what ``replace`` puts somewhere, given a list for its calls, is called as it is without the engine."""
    model, inputs = fresh(name)
    wanted, calls = [], []
    with monkeypatch.context() as patch:
        replace(patch, wanted)
        plain = call(model, inputs)
    engine("float32")
    with monkeypatch.context() as patch:
        if not beforehand:
            for _ in range(3):
                call(model, inputs)
        replace(patch, calls)
        for _ in range(3):
            calls.clear()
            answer = call(model, inputs)
            assert calls == wanted
            check_same(answer, plain, LIMIT["float32"])
    leaf_tier.uninstall()
    attention.uninstall()


WHEN = [*((name, False) for name in MODELS), *((name, True) for name in A_FEW)]
"""Models, and whether something is replaced before their first call or between two."""


@pytest.mark.parametrize(("name", "beforehand"), WHEN)
@torch.no_grad()
def test_another_forward_in_a_class_is_called(engine, monkeypatch, name, beforehand):
    """As scripts that experiment with a layer replace it."""
    for kind in classes_in(made(name)[0]):
        obeyed(engine, monkeypatch, name, functools.partial(put_into, kind=kind, name="forward"), beforehand=beforehand)


FUNCTIONS = ["linear", "conv1d", "conv2d", "batch_norm", "layer_norm", "group_norm", "relu", "gelu", "silu"]


@pytest.mark.parametrize(("name", "beforehand"), WHEN)
@torch.no_grad()
def test_another_function_is_called(engine, monkeypatch, name, beforehand):
    """As tools that simulate quantization, or count, put their own into `torch.nn.functional`."""
    model, inputs = made(name)
    for function in FUNCTIONS:
        found = []
        with monkeypatch.context() as patch:
            put_into(patch, found, kind=functional, name=function)
            call(model, inputs)
        if found:
            replace = functools.partial(put_into, kind=functional, name=function)
            obeyed(engine, monkeypatch, name, replace, beforehand=beforehand)


@pytest.mark.parametrize("name", ["bert", "resnet", "unet", "residual", "lstm tagger", "mlp"])
@torch.no_grad()
def test_a_hook_that_changes_an_answer_is_obeyed(engine, name):
    def doubled(model, inputs):
        leaves = [m for m in model.modules() if not list(m.children()) and list(m.parameters(recurse=False))]
        change = [leaf.register_forward_hook(lambda m, args, y: y * 1.1 if torch.is_tensor(y) else y) for leaf in leaves]
        try:
            return call(model, inputs)
        finally:
            for handle in change:
                handle.remove()

    model, inputs = made(name)
    wanted = doubled(model, inputs)
    engine("float32")
    call(model, inputs)
    check_same(doubled(model, inputs), wanted, LIMIT["float32"])
    check_same(call(model, inputs), call(model, inputs), 0)


def one_feature_more(x):
    return torch.cat([x, x[..., :1]], -1) if x.dim() else x


SPOILED = {
    "another dtype": lambda x: x.double() if x.is_floating_point() else x.float(),
    "bfloat16": lambda x: x.bfloat16() if x.is_floating_point() else x * 1000,
    "one feature more": one_feature_more,
    "one axis less": lambda x: x[0],
    "one axis more": lambda x: x[None],
    "integers": lambda x: x.long() if x.is_floating_point() else -x,
    "empty": lambda x: x[:0],
    "no tensor": lambda x: "text",
    "none": lambda x: None,
}


def outcome(model, inputs):
    """An answer, or the kind and the words of the error."""
    try:
        return call(model, inputs), None
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        assert error.__context__ is None or "slipstream" not in repr(error.__context__)
        return None, (type(error), str(error))


def spoiled(inputs, spoil):
    if isinstance(inputs, dict):
        first = next(name for name, value in inputs.items() if isinstance(value, torch.Tensor))
        return {name: spoil(value) if name == first else value for name, value in inputs.items()}
    return (spoil(inputs[0]), *inputs[1:])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_bad_input_gets_the_same_error(engine, name):
    model, inputs = made(name)
    bad = {what: spoiled(inputs, spoil) for what, spoil in SPOILED.items()}
    bad["no argument"] = ()
    bad["a strange keyword"] = {"what": 1}
    wanted = {what: outcome(model, values) for what, values in bad.items()}
    assert any(error is not None for _, error in wanted.values())
    engine("float32")
    call(model, inputs)
    for what, values in bad.items():
        for _ in range(2):
            answer, error = outcome(model, values)
            assert error == wanted[what][1], what
            check_same(answer, wanted[what][0], LIMIT["float32"])
