# SPDX-License-Identifier: Apache-2.0
"""Set-up never takes more than its share of the script's own time, in the first call too; in the end all is decided."""

import threading

import pytest
import torch
from judging import decisions, error
from torch import nn

from slipstream.autopatch.settings import Settings
from slipstream.optimize import allowance, guards, leaf_tier, options
from slipstream.optimize.allowance import SHARE, Allowance, Costs
from slipstream.optimize.options import set_up
from slipstream.optimize.pieces import deciding
from slipstream.optimize.pieces.linear import LinearPiece


def test_a_first_call_leaves_room_for_estimates_that_are_off():
    assert 1 + SHARE * 1.5 < 1.5


def test_set_up_is_earned_by_originals_and_by_what_was_saved():
    balance = Allowance(share=0.5)
    assert not balance.affords(0.1)
    balance.earn(2.0)
    assert balance.affords(1.0) and not balance.affords(1.1)
    balance.spend(3.0)
    assert not balance.affords(0.0)
    balance.save(2.0)
    assert balance.affords(0.0) and balance.balance == pytest.approx(0.0)


def test_a_thread_does_not_spend_what_another_earned():
    balance = Allowance(share=0.5)
    balance.earn(2.0)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(balance.affords(0.1)))
    thread.start()
    thread.join()
    assert seen == [False]


def test_costs_are_learnt():
    costs = Costs()
    before = costs.expected_s("packing", 10**6)
    for _ in range(20):
        costs.saw("packing", 10**6, 1.0 + allowance.FIXED_S)
    assert before < 0.01 and costs.expected_s("packing", 10**6) == pytest.approx(1.0, rel=1e-3)


class Clock:
    """Time that passes only where something is done: one unit for an original, a fast answer half of it, a pack three."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.done = []
        for module in (options, guards, deciding):
            monkeypatch.setattr(module, "clocks", lambda: (self.now, self.now))
        from slipstream.optimize.pieces import piece

        monkeypatch.setattr(piece, "clocks", lambda: (self.now, self.now))
        for name, seconds in (("run", 0.5), ("make", 3.0), ("original", 1.0)):
            monkeypatch.setattr(LinearPiece, name, self.slow(name, seconds, getattr(LinearPiece, name)))

    def slow(self, name, seconds, function):
        def spend(piece, *arguments):
            self.done.append(name)
            self.now += seconds
            return function(piece, *arguments)

        return spend


@torch.no_grad()
def test_the_first_calls_of_a_model_of_equal_layers(clean, monkeypatch):
    monkeypatch.setattr(guards, "SMALL_MACS", 0)
    monkeypatch.setattr(guards, "TRIAL_MACS", 1.0)
    monkeypatch.setattr(allowance, "START", 0.0)
    leaf_tier.install(Settings(dtype="bfloat16"))
    clock = Clock(monkeypatch)
    layers, x = [nn.Linear(32, 32).eval() for _ in range(12)], torch.randn(4, 32)
    took = []
    for _ in range(20):
        start, done = clock.now, len(clock.done)
        for layer in layers:
            y = layer(x)
            assert error(y, nn.functional.linear(x, layer.weight, layer.bias)) < 2e-2
        took.append(clock.now - start)
        assert clock.done[done:].count("make") < len(layers) / 2
    assert clock.done.count("make") == len(layers)
    assert len(decisions(taken=True)) == len(layers)
    assert took[-1] == 0.5 * len(layers)
    # a step that is longer than was thought overshoots by itself, and by no more; later calls earn the debt back
    step = 3.0 + 1.5
    assert max(took) <= (1 + SHARE) * len(layers) + step
    assert all(sum(took[:n]) <= n * (1 + SHARE) * len(layers) + step for n in range(1, 20))


@torch.no_grad()
def test_while_nothing_is_decided_the_original_answers_once(clean, monkeypatch):
    monkeypatch.setattr(guards, "SMALL_MACS", 0)
    monkeypatch.setattr(set_up.allowance, "share", 0.0)
    leaf_tier.install(Settings(dtype="bfloat16"))
    clock = Clock(monkeypatch)
    model, x = nn.Linear(32, 32).eval(), torch.randn(4, 32)
    for _ in range(5):
        assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    assert clock.done == ["original"] * 5
    assert "waits" in decisions(taken=False)["Linear: packed linear"]


@torch.no_grad()
def test_weights_that_changed_are_packed_when_it_was_earned(engine, monkeypatch):
    engine("bfloat16")
    model, x = nn.Linear(32, 32).eval(), torch.randn(4, 32)
    for _ in range(5):
        model(x)
    model.weight.mul_(2)
    monkeypatch.setattr(set_up.allowance, "share", 0.0)
    assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    monkeypatch.setattr(set_up.allowance, "share", 1e9)
    model(x)
    assert not torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))


def test_an_error_of_the_script_is_raised_once_and_as_it_was(clean, monkeypatch):
    monkeypatch.setattr(guards, "SMALL_MACS", 0)
    leaf_tier.install(Settings(dtype="bfloat16"))
    model, calls = nn.Linear(32, 32).eval(), []

    def broken(piece, module, x):
        calls.append(1)
        raise ValueError("of the script")

    monkeypatch.setattr(LinearPiece, "original", broken)  # the forward as the piece calls it, to learn from its answer
    with torch.no_grad(), pytest.raises(ValueError, match="of the script") as caught:
        model(torch.randn(4, 32))
    assert calls == [1] and caught.value.__context__ is None


@torch.no_grad()
def test_refused_weights_are_asked_about_ever_more_seldom(engine, monkeypatch):
    engine("bfloat16", budget_s=0.0)
    asked = []
    plan = LinearPiece.plan
    monkeypatch.setattr(LinearPiece, "plan", lambda *arguments: asked.append(1) or plan(*arguments))
    model, x = nn.Linear(32, 32).eval(), torch.randn(4, 32)
    for _ in range(1000):
        model(x)
    assert len(asked) < 30
