# SPDX-License-Identifier: Apache-2.0
"""`optimize_model` concerns one model, by copy or in place, and nothing beside it."""

import pytest
import torch
from judging import decisions, error
from torch import nn

import slipstream
from slipstream.errors import UsageError


def model():
    return nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 16)).eval()


@torch.no_grad()
def test_a_copy_is_optimized_and_the_model_is_not(always_faster, clean):
    plain, x = model(), torch.randn(5, 24)
    wanted = plain(x)
    fast = slipstream.optimize_model(plain, dtype=torch.bfloat16)
    assert fast is not plain
    assert torch.equal(plain(x), wanted)
    got = fast(x)
    assert got.dtype == torch.float32 and 0 < error(got, wanted) < 2e-2
    assert set(decisions(taken=True)) == {"Sequential.0: packed linear", "Sequential.1: packed linear"}
    assert type(fast) is nn.Sequential and fast.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def test_in_place(always_faster, clean):
    plain, other, x = model(), model(), torch.randn(5, 24)
    wanted, others = plain(x), other(x)
    assert slipstream.optimize_model(plain, dtype=torch.bfloat16, inplace=True) is plain
    assert not torch.equal(plain(x), wanted)
    assert torch.equal(other(x), others)


@torch.no_grad()
def test_bfloat16_models_stay_bfloat16(always_faster, clean):
    half, x = model().bfloat16(), torch.randn(5, 24).bfloat16()
    got = slipstream.optimize_model(half)(x)
    assert got.dtype == torch.bfloat16 and error(got, half(x)) < 2e-2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_comes_back_as_it_is(clean):
    scripted = torch.jit.script(model())
    assert slipstream.optimize_model(scripted, inplace=True) is scripted


def test_bad_arguments(clean):
    with pytest.raises(UsageError, match=r"dtype torch\.int8"):
        slipstream.optimize_model(model(), dtype=torch.int8)
    with pytest.raises(UsageError, match=r"torch\.nn\.Module"):
        slipstream.optimize_model(lambda x: x)
