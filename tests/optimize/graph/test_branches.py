# SPDX-License-Identifier: Apache-2.0
"""Branches on tensors' values: a graph goes the way that a call of the script went, and steps aside where that is another."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo import symbolic_convert

from slipstream.decision import log
from slipstream.optimize.graph import background, tier, way
from slipstream.optimize.graph.capturing.branches import OtherBranch, outcomes_here
from slipstream.optimize.graph.capturing.capture import capture
from slipstream.optimize.graph.capturing.refusals import BranchOnValue, CaptureRefused
from tests.optimize.graph.conftest import needs_native


class Checking(nn.Module):
    """What people check."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.repaired = 0

    def repair(self, y):
        if torch.isnan(y).any() or (y > 1e6).any():
            self.repaired += 1
            y = torch.nan_to_num(y)
        return y

    def forward(self, x):
        assert not torch.isinf(x).any(), "infinite"
        y = self.repair(self.first(x))
        return self.second(y) if x.sum() > 0 else self.first(y)


class Halving(nn.Module):
    """A loop that values end."""

    def forward(self, x):
        rounds = 0
        while x.abs().max() > 1:
            x, rounds = x / 2, rounds + 1
        return x + rounds


class Fitting(nn.Module):
    """As MONAI's Swin UNETR."""

    def forward(self, x):
        if ((np.array(x.shape) % np.power(2, 2)) > 0).any():
            raise ValueError("does not fit")
        return x + 1


def captured(model, x, *, dynamic=False):
    with torch.no_grad():
        with outcomes_here() as outcomes:
            model(x)
        return capture(model, (x,), {}, dynamic=dynamic, outcomes=outcomes)


def run(found, model, x):
    with torch.no_grad():
        return found.wrap(found.graph)(model, x)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return Checking().eval()


@pytest.fixture
def x():
    return torch.rand(4, 8) + 0.1


def test_it_asks_first(model, x):
    with torch.no_grad(), pytest.raises(BranchOnValue, match="values decide"):
        capture(model, (x,), {}, dynamic=False)


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_goes_the_same_way(model, x, dynamic):
    for given in (x, -x):
        found = captured(model, given, dynamic=dynamic)
        with torch.no_grad():
            assert torch.equal(run(found, model, given), model(given))
        for other in (-given, given * torch.nan, given * torch.inf):
            with pytest.raises(OtherBranch):
                run(found, model, other)


def test_what_python_notes_is_noted_once_an_answer_is_there(model, x):
    broken = captured(model, torch.full_like(x, torch.nan))
    before = model.repaired
    with pytest.raises(OtherBranch):
        run(broken, model, x)
    assert model.repaired == before
    run(broken, model, torch.full_like(x, torch.nan))
    assert model.repaired == before + 1


def test_loops_go_round_as_often():
    model, x = Halving(), torch.full((3,), 7.0)
    found = captured(model, x)
    assert torch.equal(run(found, model, x), model(x))
    for other in (x / 4, x * 4):
        with pytest.raises(OtherBranch):
            run(found, model, other)


def test_sizes_that_numpy_checks_are_no_values(model, x):
    found = captured(Fitting(), x)
    assert not any("assumed" in node.name for node in found.graph.graph.nodes)
    with torch.no_grad():
        assert torch.equal(capture(Fitting(), (x,), {}, dynamic=False).wrap(found.graph)(model, x), x + 1)
    with pytest.raises(CaptureRefused), torch.no_grad():
        capture(Fitting(), (x[:3],), {}, dynamic=False)


def test_what_was_not_seen_is_refused(model, x):
    with torch.no_grad(), pytest.raises(CaptureRefused, match=r"(?i)data-dependent"):
        capture(model, (x,), {}, dynamic=False, outcomes={})


def test_torch_and_dynamo_are_as_before(model, x):
    kinds = [symbolic_convert.InstructionTranslator, symbolic_convert.InliningInstructionTranslator]
    before = [list(kind.dispatch_table) for kind in kinds]
    captured(model, x)
    with contextlib.suppress(AssertionError), outcomes_here():
        model(x * torch.inf)
    assert "__bool__" not in vars(torch.Tensor)
    assert [list(kind.dispatch_table) for kind in kinds] == before


def test_other_threads_are_not_listened_to():
    with outcomes_here() as outcomes:
        thread = threading.Thread(target=lambda: bool(torch.ones(1) > 0))
        thread.start()
        thread.join()
        assert not outcomes
        assert torch.ones(1)
    assert list(outcomes.values()) == [[True]]


def settled(model, x):
    with torch.inference_mode():
        for _ in range(3):
            model(x)
            background.wait()
        for _ in range(4):
            model(x)
    return tier.root_call(model)


@needs_native
def test_the_script_sees_no_difference(at_once, model, x):
    others = -x, x * torch.nan
    wanted = [model(given).detach() for given in (x, *others)]
    at_once("float32")
    root_call = settled(model, x)
    (way,) = root_call.ways
    assert True in way.won.values()
    counted = model.repaired
    with torch.inference_mode():
        for given, want in zip((x, *others, x), [*wanted, wanted[0]], strict=True):
            torch.testing.assert_close(model(given), want, equal_nan=True)
        with pytest.raises(AssertionError, match="infinite"):
            model(x * torch.inf)
    assert model.repaired == counted + 1
    assert root_call.ways == (way,)


@needs_native
def test_a_graph_that_mostly_steps_aside_is_dropped(at_once, model, x):
    at_once("float32")
    root_call = settled(model, x)
    calls = root_call.account.calls
    assert root_call.ways
    other = -x  # made without inference mode, as x was
    wanted = model(other).detach()
    with torch.inference_mode():
        for _ in range(way.OTHERWISE + calls + 2):
            torch.testing.assert_close(model(other), wanted)
            background.wait()
    assert not root_call.ways
    assert any("values decide otherwise" in decision.reason for decision in log if decision.what == root_call.what)
