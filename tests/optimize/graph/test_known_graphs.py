# SPDX-License-Identifier: Apache-2.0
"""What a process found about a model's graph spares the next one wait and race, and is doubted where it does not fit."""

import pathlib
import subprocess
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from benchmarks.contest import contestants
from slipstream.decision import log
from slipstream.optimize import choices, guards, known_graphs
from slipstream.optimize.accounts import Account
from slipstream.optimize.graph import background, schedule, tier
from slipstream.optimize.graph.capturing.arguments import bucket_of
from slipstream.optimize.known_graphs import Known, Repayment, fingerprint
from slipstream.optimize.options import Options
from slipstream.runtime import cache_folder
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
    monkeypatch.setattr(known_graphs, "script", lambda: "some script")


def remember(model, x, *, fast, speedup, worth=10.0, dtype=torch.float32):
    """As a process that raced this, made calls worth so many captures, and ended."""
    known = Known(Options(dtype))
    with torch.inference_mode():
        known.verdict(model, bucket_of((x,), {}))
        known.keep(bucket_of((x,), {}), guards.Verdict(fast, speedup), 3, 0.1)
    ended(known, worth)
    guards.speed.clear()


def ended(known, worth):
    repayment, _ = known.repayment(1.0, worth / 100, Account())
    repayment.others = 100
    repayment.keep()


def repaid(model, dtype=torch.float32):
    """What a next process of the script is told."""
    guards.speed.clear()
    known = Known(Options(dtype))
    known.verdict(model, ())
    return known.repayment(1.0, 1.0, Account())[1]


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


def test_a_scripts_length_is_remembered_in_captures():
    model = Net()
    remember(model, torch.randn(6, 64), fast=True, speedup=2.0, worth=10.0)
    assert repaid(model) is True
    assert repaid(Net(65)) is None
    assert repaid(model, torch.bfloat16) is None
    remember(Net(65), torch.randn(6, 65), fast=True, speedup=2.0, worth=0.5)
    assert repaid(Net(65)) is False


def test_lengths_that_contradict_each_other_say_nothing():
    model, x = Net(), torch.randn(6, 64)
    remember(model, x, fast=True, speedup=2.0, worth=10.0)
    remember(model, x, fast=True, speedup=2.0, worth=0.1)
    assert repaid(model) is None
    remember(model, x, fast=True, speedup=2.0, worth=0.1)
    assert repaid(model) is False


def test_another_script_is_another_question(monkeypatch):
    model = Net()
    remember(model, torch.randn(6, 64), fast=True, speedup=2.0)
    monkeypatch.setattr(known_graphs, "script", lambda: "another")
    assert repaid(model) is None
    monkeypatch.setattr(known_graphs, "script", lambda: None)
    known = Known(Options(torch.float32))
    known.verdict(model, ())
    assert known.repayment(1.0, 1.0, Account()) == (None, None)


def test_it_is_clear_once_the_calls_so_far_have_repaid_by_a_tenth():
    graph = Account()
    repayment = Repayment(("question",), 1.0, 0.0, graph)
    repayment.others = 40
    at = repayment.clear_at(0.01)
    assert at == 110 - 40 + 1
    graph.calls = at
    assert repayment.worth() == pytest.approx(1.11)
    assert repayment.clear_at(0.1) == at + 1, "long since"


@needs_native
def test_a_script_that_ended_before_a_capture_would_have_repaid_is_not_captured_early_again(engine):
    model, x = Net().eval(), torch.randn(6, 64)
    remember(model, x, fast=True, speedup=2.0, worth=0.5)
    engine("float32")
    root = call(model, x, 6)
    assert root.schedule.captures == 0
    assert reason() == "not captured yet: when this script last ran it ended before a graph would have repaid"


@needs_native
def test_a_process_tells_the_next_one_as_soon_as_it_is_clear(engine, monkeypatch):
    model, x = Net().eval(), torch.randn(6, 64)
    remember(model, x, fast=True, speedup=2.0)
    engine("float32")
    root = call(model, x, 3)
    root.plain_s = dict.fromkeys(root.plain_s, 1e3)  # against which any call of the graph is fast
    call(model, x, 2)
    assert root.clear_at > root.account.calls
    kept = Mock()
    monkeypatch.setattr(guards.speed.memory, "keep", kept)
    call(model, x, root.clear_at - root.account.calls - 1)
    assert not kept.called
    call(model, x, 3)
    kept.assert_called_once()
    (question, fast, worth, *_), _ = kept.call_args
    assert question[:3] == ("repaid", fingerprint(model), "some script") and fast and worth > choices.CLEAR


SCRIPT = """
import torch
model = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(8))).eval()
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model
    def forward(self, x):
        return self.inner(x) + 1
net, x = Net().eval(), torch.randn(8, 16, 64, 64)
with torch.inference_mode():
    for _ in range(4):
        net(x)
"""


@needs_native
def test_a_process_that_ends_has_written_how_long_it_was(tmp_path):
    script = tmp_path / "short.py"
    script.write_text(SCRIPT)
    command = [*contestants.ipexrun(), "--auto_ipex", "--memory-allocator", "default", str(script)]
    subprocess.run(command, check=True, timeout=120)
    (kept,) = pathlib.Path(cache_folder.folder()).glob("choices-*.jsonl")
    assert sum("repaid" in line for line in kept.read_text().splitlines()) == 1
