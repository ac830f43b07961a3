# SPDX-License-Identifier: Apache-2.0
"""Inputs of other sizes, models of bfloat16, other numbers of threads: decisions made before must not be in the way."""

import pytest
import torch
from families import FAMILIES
from judging import decisions
from zoo import A_FEW, LIMIT, call, check_same, fresh, made

from slipstream.kernels import native

EACH = [(name, "float32") for name in FAMILIES] + [(name, "bfloat16") for name in A_FEW if name in FAMILIES]


def of_batch(inputs, size):
    return {name: torch.cat([value] * 3)[:size].clone() for name, value in inputs.items()}


def shorter(inputs):
    """Fewer tokens; other inputs have a size that the configuration fixes."""
    return {key: x[:, :-3] if x.dtype == torch.long and x.shape[1] > 6 else x for key, x in inputs.items()}


@pytest.mark.parametrize(("name", "dtype"), EACH)
@torch.no_grad()
def test_sizes_that_change_from_call_to_call(engine, name, dtype):
    model, inputs = made(name)
    sizes = [of_batch(inputs, size) for size in (1, 5, 2, 1, 6)] + [shorter(inputs), inputs]
    wanted = [call(model, given) for given in sizes]
    engine(dtype)
    for _ in range(2):
        for given, want in zip(sizes, wanted, strict=True):
            check_same(call(model, given), want, LIMIT[dtype])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_models_of_bfloat16_stay_so(engine, name):
    made(name)
    model, inputs = fresh(name)
    model.bfloat16()
    inputs = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    try:
        wanted = call(model, inputs)
    except RuntimeError as error:
        pytest.skip(f"not possible in plain torch: {error}")
    engine("float32")
    for _ in range(2):
        check_same(call(model, inputs), wanted, 3 * LIMIT["bfloat16"])


@pytest.mark.parametrize("name", ["bert", "resnet", "unet", "lstm tagger", "volume", "wave", "paddings"])
@torch.no_grad()
def test_the_number_of_threads_may_change(engine, name):
    model, inputs = made(name)
    wanted = call(model, inputs)
    engine("float32")
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        check_same(call(model, inputs), wanted, LIMIT["float32"])
    assert decisions(taken=True) or not native.available()
