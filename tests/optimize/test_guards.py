# SPDX-License-Identifier: Apache-2.0
"""The guards: a piece that is not right or not faster does not answer, and the report says why."""

import math

import pytest
import torch
from judging import decisions, error
from torch import nn

from slipstream.optimize import guards, leaf_tier
from slipstream.optimize.guards import SpeedGuard, Verdict
from slipstream.optimize.pieces import linear


@torch.no_grad()
def test_an_inaccurate_piece_is_demoted_with_the_error(engine, monkeypatch):
    monkeypatch.setitem(guards.LIMITS, torch.bfloat16, 1e-6)
    engine("bfloat16")
    model, x = nn.Linear(24, 16).eval(), torch.randn(5, 24)
    for _ in range(3):
        assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    assert decisions() == {"Linear: packed linear": "not accurate enough on live data"}


@torch.no_grad()
def test_data_that_are_not_finite_decide_nothing(engine):
    engine("bfloat16")
    model, x = nn.Linear(24, 16).eval(), torch.randn(5, 24)
    bad = x.clone()
    bad[0, 0] = math.nan
    assert bool(model(bad)[0].isnan().all())
    assert not decisions(taken=True)
    model(x)
    assert decisions(taken=True)


@torch.no_grad()
def test_a_piece_that_is_slower_is_left_alone_for_good(engine, monkeypatch):
    engine("bfloat16")
    monkeypatch.setattr(guards.speed, "known", lambda question: Verdict(False, 0.5))
    model, x = nn.Linear(24, 16).eval(), torch.randn(5, 24)
    for _ in range(40):
        assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    assert decisions() == {"Linear: packed linear": "the original is faster here"}
    assert vars(model)["_compiled_call_impl"] is None


@torch.no_grad()
def test_tiny_layers_are_left_alone_without_packing(clean):
    leaf_tier.install(settings())
    model, x = nn.Linear(64, 64).eval(), torch.randn(1, 64)
    for _ in range(40):
        model(x)
    assert "too small" in decisions()["Linear: packed linear"]
    assert vars(model)["_compiled_call_impl"] is None


def settings(**others):
    from slipstream.autopatch.settings import Settings

    return Settings(dtype="bfloat16", **others)


def trial(rounds, margin=1.0, guard=None, question="q"):
    """The verdict after rounds of (original, fast) seconds for a million multiply-adds."""
    guard = guard or SpeedGuard()
    for original, fast in rounds:
        assert not guard.is_fasts_turn(question)
        guard.saw(question, False, (original, original), 1e6, margin)
        assert guard.is_fasts_turn(question)
        guard.saw(question, True, (fast, fast), 1e6, margin)
    verdict = guard.known(question)
    return None if verdict is None else verdict.fast


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [
        ([(2.0, 1.0)], None),
        ([(2.0, 1.0)] * 2, True),
        ([(1.1, 1.0)] * 2, None),
        ([(1.1, 1.0)] * 4, True),
        ([(0.9, 1.0)] * 2, None),
        ([(0.9, 1.0)] * 4, False),
        ([(0.1, 1.0)] * 2, False),
        ([(1.2, 9.0), (9.0, 1.0), (1.2, 9.0), (9.0, 1.0)], True),
    ],
)
def test_a_clear_win_takes_two_rounds_and_a_loss_four(rounds, verdict):
    assert trial(rounds) is verdict


def test_a_margin_has_to_be_won_by():
    assert trial([(1.1, 1.0)] * 4, margin=1.2) is False
    assert trial([(1.1, 1.0)] * 4, margin=1.05) is True


def test_what_the_gates_take_counts_against_the_fast_way():
    assert trial([(1e-6, 0.9e-6)] * 4) is False


def test_calls_of_other_lengths_compare_by_the_multiply_add():
    guard = SpeedGuard()
    for _ in range(2):
        guard.saw("q", False, (2.0, 2.0), 1e6)
        guard.saw("q", True, (3.0, 3.0), 2e6)
    assert guard.known("q").speedup_x == pytest.approx(4 / 3, rel=1e-3)


def test_who_only_asks_gets_a_verdict_at_once():
    ran = []
    verdict = SpeedGuard().settle("q", lambda: ran.append("fast"), lambda: ran.append("original"), 1.0)
    assert {"fast", "original"} == set(ran[:2]) and verdict.fast in (True, False)


@pytest.mark.parametrize(
    ("fast", "original", "wanted"),
    [([1.0, 2.0], [1.0, 2.0], 0.0), ([0.0], [0.0], 0.0), ([1.0], [0.0], math.inf), ([math.nan], [1.0], math.inf)],
)
def test_relative_error(fast, original, wanted):
    assert guards.relative_error(torch.tensor(fast), torch.tensor(original)) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lay", [lambda x: x, lambda x: x.mT, lambda x: x[..., ::2]])
def test_relative_error_of_results_that_are_compared_in_parts(lay, dtype):
    original = lay(torch.randn(2, 7, guards.COMPARED // 8, dtype=dtype))
    fast = original.clone(memory_format=torch.contiguous_format)
    fast[-1, -1] *= 1.5
    wanted = float(0.5 * original[-1, -1].float().norm() / original.float().norm())
    for one in (fast, torch.empty_like(original).copy_(fast)):  # laid out otherwise, and alike
        assert guards.relative_error(one, original) == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_value_that_is_not_finite_in_a_large_result_is_seen(value):
    original = torch.randn(2 * guards.COMPARED + 3)
    wrong = original.clone()
    wrong[-1] = value
    assert guards.relative_error(wrong, original) == math.inf
    assert guards.relative_error(original, wrong) is None


def test_relative_error_of_what_is_not_finite_is_unknown():
    assert guards.relative_error(torch.tensor([1.0]), torch.tensor([math.inf])) is None


@torch.no_grad()
def test_a_spent_budget_packs_nothing_more(engine):
    engine("bfloat16", budget_s=0.0)
    model, x = nn.Linear(24, 16).eval(), torch.randn(5, 24)
    assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    assert decisions() == {"Linear: packed linear": "the set-up budget is spent"}


@torch.no_grad()
def test_low_memory_makes_no_second_float32_copy(engine):
    engine("float32", low_memory=True)
    model, x = nn.Conv2d(3, 8, 3).eval(), torch.randn(2, 3, 8, 8)
    model(x)
    assert "low memory" in decisions()["Conv2d: prepacked convolution"]


@torch.no_grad()
def test_a_failure_of_ours_lets_the_original_answer(engine, monkeypatch):
    engine("bfloat16")
    model, x = nn.Linear(24, 16).eval(), torch.randn(5, 24)
    model(x)

    def broken(*args, **kwargs):
        raise RuntimeError("broken kernel")

    monkeypatch.setattr(linear.LinearPiece, "run", broken)
    for _ in range(2):
        assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    assert "RuntimeError: broken kernel" in decisions()["Linear: packed linear"]


@torch.no_grad()
def test_threads_that_meet_a_model_at_once(engine):
    from concurrent.futures import ThreadPoolExecutor

    engine("bfloat16")
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    x = torch.randn(5, 24)
    wanted = model[2].forward(model[0].forward(x).relu())

    def ask(_):
        with torch.no_grad():
            return error(model(x), wanted)

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(200))) < 2e-2
    assert not any("failed" in reason for reason in decisions().values())


def test_relative_error_of_numbers_whose_squares_overflow():
    large = torch.tensor([1e30, -1e30])
    assert guards.relative_error(large * 1.001, large) == pytest.approx(1e-3, rel=1e-3)
