# SPDX-License-Identifier: Apache-2.0
"""What a process found about a model's graph spares the next one wait and race, and is doubted where it does not fit."""

import pytest
import torch
from torch import nn

from slipstream.decision import log
from slipstream.optimize import choices, guards
from slipstream.optimize.graph import background, schedule, tier
from slipstream.optimize.graph.root import bucket_of
from slipstream.optimize.known_graphs import Known, fingerprint
from slipstream.optimize.options import Options
from tests.optimize.graph.conftest import needs_native, settle

WHAT = "Net.graph: whole model"


class Net(nn.Module):
    def __init__(self, width=64, stride=1, dtype=None):
        super().__init__()
        self.first, self.second = nn.Linear(width, width, dtype=dtype), nn.Linear(width, width, dtype=dtype)
        self.image = nn.Conv2d(1, 1, 3, stride)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.fixture(autouse=True)
def believing(monkeypatch, clean):
    monkeypatch.setattr(choices.memory, "again", 10**12)
    monkeypatch.setattr(schedule, "SMALL_S", 0.0)
    monkeypatch.setattr(schedule, "ASK_S", 0.0)


def remember(model, x, *, fast, speedup, dtype=torch.float32):
    """As a process that raced this, and ended."""
    known = Known(Options(dtype))
    with torch.inference_mode():
        known.verdict(model, bucket_of((x,), {}))
        known.keep(bucket_of((x,), {}), guards.Verdict(fast, speedup), 3, 0.1)
    guards.speed.clear()


def reason():
    return {decision.what: decision.reason for decision in log}[WHAT]


def test_an_architecture_is_its_classes_shapes_and_settings_not_its_values():
    assert fingerprint(Net()) == fingerprint(Net())
    others = [Net(65), Net(stride=2), Net(dtype=torch.float64), nn.Sequential(Net()), Net().half()]
    assert len({fingerprint(model) for model in [Net(), *others]}) == 6
    assert fingerprint(nn.Sequential(nn.LazyLinear(3))) is None


def test_a_scripts_own_code_is_not_run_for_it():
    class Telling(nn.Identity):
        def extra_repr(self):
            raise AssertionError("called")

    assert fingerprint(nn.Sequential(Telling())) is not None


def test_what_is_kept_holds_for_these_sizes_modes_and_dtype_only():
    model, x = Net().eval(), torch.randn(6, 64)
    remember(model, x, fast=True, speedup=2.0)
    sizes = bucket_of((x,), {})
    with torch.inference_mode():
        assert Known(Options(torch.float32)).verdict(Net(), sizes) == guards.Verdict(True, 2.0, earlier=True)
        assert Known(Options(torch.float32)).verdict(Net(65), sizes) is None
        assert Known(Options(torch.bfloat16)).verdict(model, sizes) is None
        assert Known(Options(torch.float32)).verdict(model, (99,)) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert Known(Options(torch.float32)).verdict(model, sizes) is None
    assert Known(Options(torch.float32)).verdict(model, sizes) is None, "without inference mode"


def call(model, x, times):
    with torch.inference_mode():
        for _ in range(times):
            model(x)
            background.wait()
    return tier.root_call(model)


@needs_native
def test_a_known_win_is_captured_at_the_second_watched_call_and_confirmed_by_one_of_the_graph(engine):
    model, x = Net().eval(), torch.randn(6, 64)
    remember(model, x, fast=True, speedup=2.0)
    engine("float32")
    root = call(model, x, 2)
    assert not root.ways
    call(model, x, 1)  # the model itself is watched from its second call on
    (way,) = root.ways
    root.plain_s = dict.fromkeys(root.plain_s, 1e9)
    call(model, x, 2)
    assert list(way.won.values()) == [True]
    assert "measured earlier" in reason()


@needs_native
def test_a_win_that_is_not_confirmed_is_raced_for(engine):
    model, x = Net().eval(), torch.randn(6, 64)
    remember(model, x, fast=True, speedup=2.0)
    engine("float32")
    root = call(model, x, 3)
    (way,) = root.ways
    root.plain_s = dict.fromkeys(root.plain_s, 0.0)
    call(model, x, 2)
    assert not way.won
    call(model, x, 2 * 3)
    assert len(way.won) == 1
    assert "earlier" not in reason()


@needs_native
def test_a_known_loss_is_not_captured(engine):
    model, x = Net().eval(), torch.randn(6, 64)
    remember(model, x, fast=False, speedup=0.5)
    engine("float32")
    root = call(model, x, 6)
    assert root.schedule.captures == 0
    assert reason() == "not captured: the layers one by one are faster here, measured earlier"


@needs_native
def test_a_race_that_ended_is_kept(at_once):
    at_once("float32")
    model, x = Net().eval(), torch.randn(6, 64)
    settle(model, x)
    guards.speed.clear()
    with torch.inference_mode():
        assert Known(Options(torch.float32)).verdict(Net(), bucket_of((x,), {})).fast
