# SPDX-License-Identifier: Apache-2.0
"""Every model of the contract by name, made once a session, and how two answers of a model are compared."""

import copy
import dataclasses
import functools
import io

import numpy as np
import torch
from compositions import COMPOSITIONS
from families import AUDIO, DECODERS, ENCODERS, FAMILIES, MULTIMODAL, SEQUENCE_TO_SEQUENCE, VISION, build
from judging import error
from nasties import NASTIES
from torch import nn

from slipstream.kernels import native

MODELS = [*FAMILIES, *COMPOSITIONS, *NASTIES]
A_FEW = [
    "bert", "llama", "resnet", "t5", "vit", "lstm tagger", "unet", "residual", "normalized mlp", "wave",
    "recurrent steps", "own call",
]  # fmt: skip
"""One of each kind, for what takes long."""

GENERATORS = [*DECODERS, *SEQUENCE_TO_SEQUENCE, "whisper"]
NOT_COPYABLE = {"locked"}
UNPICKLABLE = {"locked", "temporary"}

assert len(MODELS) >= 60 and len(FAMILIES) >= 40, "what the contract is said to be tested on"
assert {*ENCODERS, *DECODERS, *VISION, *AUDIO, *SEQUENCE_TO_SEQUENCE, *MULTIMODAL} == set(FAMILIES)

LIMIT = {"float32": 1e-5, "bfloat16": 3e-2}
"""Relative error in the norm of an output: float32 sums in another order; bfloat16 after a few layers."""

UNTOUCHED = {"records"}
"""Where no piece answers: a layer that is called by keyword."""


@functools.cache
def made(name):
    """(model, its inputs): in evaluation, statistics of norms at random; not to be changed by a test."""
    torch.manual_seed(0)
    model, inputs = {**COMPOSITIONS, **NASTIES}[name]() if name not in FAMILIES else build(name)
    with torch.no_grad():
        call(model.eval(), inputs)  # lazy layers become layers
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
    return model, inputs


def fresh(name):
    """A copy to be changed at will."""
    model, inputs = made(name)
    if name in NOT_COPYABLE:
        made.cache_clear()
        return made(name)
    return copy.deepcopy(model), inputs


def call(model, inputs, seed=1):
    torch.manual_seed(seed)
    np.random.seed(seed)  # transformers' speech models draw their masks from it
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


@functools.cache
def plain_answer(name):
    """(answer, state of the random numbers behind it): only to be asked for before the engine is on."""
    with torch.no_grad():
        return call(*made(name)), torch.get_rng_state()


def parts(value):
    """The tensors of an answer, and in their places everything else that it says."""
    if isinstance(value, torch.Tensor):
        return [value], "tensor"
    if dataclasses.is_dataclass(value) and not isinstance(value, dict | type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)} | {"": type(value)}
    if isinstance(value, dict):
        keys, found = list(value), [parts(item) for item in value.values()]
    elif isinstance(value, list | tuple):
        keys, found = len(value), [parts(item) for item in value]
    elif hasattr(value, "layers") and hasattr(value, "get_seq_length"):  # transformers' caches
        return parts([(layer.keys, layer.values) for layer in value.layers if getattr(layer, "keys", None) is not None])
    else:
        return [], value if isinstance(value, str | int | float | bool | type | None) else type(value)
    return [tensor for tensors, _ in found for tensor in tensors], (type(value), keys, [form for _, form in found])


def check_same(got, wanted, limit):
    """Structure, dtypes, shapes and strides are equal, values within ``limit``; 0 means to the last bit."""
    tensors, form = parts(got)
    expected, expected_form = parts(wanted)
    if limit and native.active_level() == native.FLOAT16 and any(w.dtype is torch.bfloat16 for w in expected):
        limit = max(limit, LIMIT["bfloat16"])  # what multiplies bfloat16 of the model's own adds it up in float16
    assert form == expected_form
    for y, w in zip(tensors, expected, strict=True):
        assert (y.dtype, y.shape, y.stride(), type(y)) == (w.dtype, w.shape, w.stride(), type(w))
        if limit == 0 or not w.is_floating_point():
            torch.testing.assert_close(y, w, rtol=0, atol=0, equal_nan=True)
            continue
        finite = w.isfinite()
        torch.testing.assert_close(y[~finite], w[~finite], rtol=0, atol=0, equal_nan=True)
        assert error(y[finite], w[finite]) <= limit


def portrait(model):
    """Everything of a model that must stay: its saved state, classes, names, and the slots of its instances."""
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    slots = [sorted(set(vars(module)) - {"_compiled_call_impl"}) for module in model.modules()]
    return state.getvalue(), [type(module) for module in model.modules()], [n for n, _ in model.named_parameters()], slots
