# SPDX-License-Identifier: Apache-2.0
"""Scripts that do more than compute have with graphs what they have without."""

import random

import numpy as np
import pytest
import torch

from slipstream.optimize.graph import background
from slipstream.optimize.graph.root import RootCall
from tests.optimize.graph import meanings_of_calls  # noqa: F401 - it adds to the table
from tests.optimize.graph.conftest import needs_native
from tests.optimize.graph.meanings import MEANINGS, WITHOUT_GRAPH
from tests.optimize.judging import error


def had_by(case, call):
    """What a case has, from the same random numbers."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with torch.inference_mode():
        return case(call), torch.rand(3)


def check_alike(got, wanted):
    assert type(got) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape and got.stride() == wanted.stride()
        assert not wanted.numel() or error(got, wanted) < 1e-5
    elif isinstance(wanted, (list, tuple)):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            check_alike(one, other)
    else:
        assert got == wanted


@needs_native
@pytest.mark.parametrize("name", MEANINGS)
def test_a_script_means_the_same(monkeypatch, at_once, name):
    answered, run = [], RootCall._run

    def noted(root, way, module, *others):
        if type(module).__name__ == "Given":  # and not its parts
            answered.append(module)
        return run(root, way, module, *others)

    def call(model, *args, **kwargs):
        answer = model(*args, **kwargs)
        background.wait()
        return answer

    monkeypatch.setattr(RootCall, "_run", noted)
    wanted = had_by(MEANINGS[name], lambda model, *args, **kwargs: model(*args, **kwargs))
    at_once("float32")
    check_alike(had_by(MEANINGS[name], call), wanted)
    assert bool(answered) is (name not in WITHOUT_GRAPH)
