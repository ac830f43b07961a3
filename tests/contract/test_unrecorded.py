# SPDX-License-Identifier: Apache-2.0
"""Without `torch.no_grad()`: the same results, to the names of what made them, and the gradients of the original."""

import pytest
import torch
from judging import decisions
from zoo import LIMIT, MODELS, call, check_same, made, parts

from slipstream.optimize.unrecorded import unrecorded


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(unrecorded, "WATCHED", 1)
    monkeypatch.setattr(unrecorded, "SHARE", float("inf"))


def described(answer):
    return [(y.requires_grad, y.is_leaf, type(y.grad_fn).__name__) for y in parts(answer)[0]]


def gradients(model, answer):
    """Of a number that all results with gradients go into."""
    value = sum(y.double().nan_to_num(0, 1, -1).square().mean() for y in parts(answer)[0] if y.requires_grad)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.autograd.grad(value, wanted, allow_unused=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_script_that_forgot_no_grad(engine, name):
    model, inputs = made(name)
    recorded = call(model, inputs)
    described_before = described(recorded)
    has_gradients = any(needs for needs, _, _ in described_before)
    wanted = gradients(model, recorded) if has_gradients else []
    engine("float32")
    for _ in range(3):
        got = call(model, inputs)
        check_same(got, recorded, LIMIT["float32"])
    unrecorded_now = any("not recorded" in reason for reason in decisions(taken=True).values())
    if unrecorded_now:
        assert described(got) == described_before
    else:
        assert [needs for needs, _, _ in described(got)] == [needs for needs, _, _ in described_before]
    largest = max((float(one.norm()) for one in wanted if one is not None), default=0.0)
    for one, other in zip(gradients(model, got) if has_gradients else [], wanted, strict=True):
        assert (one is None) == (other is None)
        if other is not None and other.isfinite().all():
            assert (one - other).norm() <= 1e-3 * other.norm() + 1e-5 * largest
    assert not any("slipstream failed" in reason for reason in decisions().values()), decisions()
    with torch.no_grad():
        call(model, inputs)  # models are shared, and what one keeps must not carry gradients into the next test
